"""What goes into a replica and what comes out: positions and entries, events, messages between
nodes, effects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import msgspec
from holdfast_cluster.placement.model import Assignment

from holdfast_node.replication.core.chain import Term


class Position(NamedTuple):
    """A place in a log; the higher epoch is the later, whatever its seq."""

    epoch: int
    seq: int


class LogEntry(NamedTuple):
    """One record of a shard's log. What its data say: `changes.py`."""

    epoch: int
    seq: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ReplicationSettings:
    """Times in seconds. `promise_owner_s` is shorter than `promise_s` by what two clocks may differ
    in rate (5 % each)."""

    promise_s: float = 3.0
    promise_owner_s: float = 2.7
    heartbeat_s: float = 0.4
    replica_timeout_s: float = 2.0
    first_patience_s: float = 0.4
    """How long a new owner waits for a replica's first word before it has it removed: it may be
    absent as the owner before is."""
    corner_patience_s: float = 2.0
    """How much longer an owner waits that would be left with too few copies to write: it may be the
    one that is cut off."""
    canvass_patience_s: float = 2.0
    """How long an owner that was restarted waits for the reports of more in-sync replicas once one
    other has reported."""
    lone_patience_s: float = 30.0
    """How long it waits when no other reports. After that its copy alone counts."""
    high_patience_s: float = 1.0
    """After so long without an entry that could carry it, the high-water is kept in a row of its
    own."""
    proposal_retry_s: float = 1.0
    min_in_sync: int = 2
    """Below it the shard is read-only."""
    batch_entries_max: int = 64
    batch_bytes_max: int = 1 << 20
    """A message's entries; one that is larger goes alone."""
    log_keep_max: int = 200
    """Applied entries that stay in the log, for replicas that come back; above it the older half
    goes."""
    log_keep_bytes: int = 256 << 10
    """Also bounds them, by their data."""
    log_hold_bytes: int = 64 << 20
    """What the log may grow to while a snapshot is sent that its tail has to follow; above it the
    snapshot is given up."""


# -- events


class Assigned(msgspec.Struct, frozen=True, gc=False):
    """etcd shows this assignment at this revision."""

    assignment: Assignment
    revision: int


class Append(msgspec.Struct, frozen=True, gc=False):
    """The owner's engine has an entry; its seq is in the effect `Appended`."""

    data: bytes


class Persisted(msgspec.Struct, frozen=True, gc=False):
    """Everything up to the `Persist` of this number is on disk."""

    number: int


class Received(msgspec.Struct, frozen=True, gc=False):
    """A message came from a node."""

    sender: str
    message: Message


class ProposalResult(msgspec.Struct, frozen=True, gc=False):
    """etcd's answer to a `Propose`: it happened (`written`, at `revision`), it did not, or (None)
    nobody knows."""

    happened: bool | None
    revision: int = 0
    written: Assignment | None = None


class Release(msgspec.Struct, frozen=True, gc=False):
    """Give the shard to another in-sync replica; all replies have left."""

    to: str
    incarnation: int


class Abdicate(msgspec.Struct, frozen=True, gc=False):
    """Give the shard to another in-sync replica, though it is not heard: this owner is `isolated`,
    and the other is a member."""

    to: str
    incarnation: int


class Rejoined(msgspec.Struct, frozen=True, gc=False):
    """The node is a member under a new incarnation: what was assigned to the earlier one is not its
    own any more."""

    incarnation: int


class Lost(msgspec.Struct, frozen=True, gc=False):
    """The connection to a node broke: unless it is heard again soon, it is taken for silent."""

    node: str


class Concede(msgspec.Struct, frozen=True, gc=False):
    """Give the shard to a node whose copy has more than the owner's (`concedes_to`), or, while
    nobody is heard, to an in-sync one."""

    to: str
    incarnation: int


class SnapshotStarted(msgspec.Struct, frozen=True, gc=False):
    """The shell has taken the state as it is now, and sends it: the log behind it is needed until
    the replica has it."""

    to: str


class SnapshotEnded(msgspec.Struct, frozen=True, gc=False):
    """The snapshot to this node is delivered, or given up. A delivered one still needs the log
    behind it."""

    to: str
    delivered: bool


class Tick(msgspec.Struct, frozen=True, gc=False):
    """Time has passed. `slow`: nodes whose copies hold up commits."""

    slow: frozenset[str] = frozenset()


Event = (
    Assigned
    | Append
    | Persisted
    | Received
    | ProposalResult
    | Release
    | Abdicate
    | Concede
    | Rejoined
    | Lost
    | SnapshotStarted
    | SnapshotEnded
    | Tick
)


# -- messages between nodes


class Replicate(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=1):
    """Owner to replica: entries behind `previous`, and how far the owner has committed. Without
    entries it is a heartbeat.

    `nonce`: that of the term that `previous` belongs to.
    """

    epoch: int
    previous: Position
    entries: tuple[LogEntry, ...]
    commit: int
    sent_at: float
    nonce: int = 0


class Snapshot(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=7):
    """Owner to joining replica: the whole state as of `position`."""

    epoch: int
    position: Position
    state: bytes
    sent_at: float
    shard_ms: int = 0
    cluster_time: int = 0
    chain: tuple[Term, ...] = ()


class Acknowledge(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=2):
    """Replica to owner: it has everything up to `matched` on disk, and promises. `sent_at` is the
    owner's own."""

    epoch: int
    matched: int
    sent_at: float


class Mismatch(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=3):
    """Replica to owner: it has nothing like `previous`; try behind `last`. It promises as
    `Acknowledge` does."""

    epoch: int
    last: int
    sent_at: float


class Refused(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=4):
    """Replica to owner: it has heard of a higher epoch."""

    epoch: int


class MayDrop(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=5):
    """Replica to owner: it holds a copy that it is not assigned (any more), and would like to drop
    it. `number`: of this question."""

    epoch: int
    number: int = 0


class Drop(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=6):
    """Owner to replica: the owner does not know it as a replica, so nothing rests on its copy.
    Answers the question `number`."""

    epoch: int
    number: int = 0


class Canvass(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=8):
    """A new owner to an in-sync replica, before its first entry: what do you hold?"""

    epoch: int
    sent_at: float


class Report(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=9):
    """The answer. It promises as `Acknowledge` does.

    `last` is where the log ends, `turn` its newest entry of a turn, `high` how far it is known to
    be committed. `unbroken`: see `Replica`. `hears_owner` is kept for elections without the
    controller: whether it hears the owner before.
    """

    epoch: int
    last: Position
    turn: Position
    high: int
    chain: tuple[Term, ...]
    unbroken: bool
    sent_at: float
    hears_owner: bool = False


class Conflict(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=10):
    """Replica to owner: up to `high` its log is known to be committed, and the owner's log is
    another one. Nothing was cut.

    It promises as `Acknowledge` does.
    """

    epoch: int
    last: Position
    high: int
    chain: tuple[Term, ...]
    sent_at: float


class Yield(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=11):
    """Owner to a replica that has told of a conflict: behind `seq` your log holds no entry of a
    turn; give that up."""

    epoch: int
    seq: int


WireMessage = (
    Replicate
    | Acknowledge
    | Mismatch
    | Refused
    | MayDrop
    | Drop
    | Canvass
    | Report
    | Conflict
    | Yield
)
"""What frames carry (links.py); snapshots have streams of their own."""
Message = WireMessage | Snapshot


# -- effects


class Persist(msgspec.Struct, frozen=True, gc=False):
    """Write to disk, in the order of numbers, and answer with `Persisted`.

    Cut the log from seq `cut` on (None: no cut), append `entries`; with `install` replace state and
    log by a snapshot, with `wipe` by nothing, and an empty log that begins behind that position.
    `high`: the copy's high-water, kept with each entry.
    """

    number: int
    epoch: int
    cut: int | None = None
    entries: tuple[LogEntry, ...] = ()
    install: Snapshot | None = None
    wipe: Position | None = None
    high: int = 0


class Apply(msgspec.Struct, frozen=True, gc=False):
    """Apply committed entries to the state, which changes together with its position. The log keeps
    what is behind `trim`."""

    entries: tuple[LogEntry, ...]
    trim: int


class KeepHigh(msgspec.Struct, frozen=True, gc=False):
    """Keep the high-water in a row of its own, with whatever is written next."""

    high: int


class Send(msgspec.Struct, frozen=True, gc=False):
    """Send to a node. It may be lost, doubled, delayed."""

    to: str
    message: Message


class SendSnapshot(msgspec.Struct, frozen=True, gc=False):
    """Send the state with the position that it is at, unless that is under way; say
    `SnapshotStarted` and `SnapshotEnded`."""

    to: str
    epoch: int


class Appended(msgspec.Struct, frozen=True, gc=False):
    """The entry got this seq."""

    seq: int


class NotAppended(msgspec.Struct, frozen=True, gc=False):
    """The entry was not taken: this node does not own the shard, or is about to release it."""

    why: str


class Propose(msgspec.Struct, frozen=True, gc=False):
    """Ask etcd to put `to` in the place of the assignment at `revision`; answer with
    `ProposalResult`."""

    revision: int
    to: Assignment


Effect = Persist | Apply | KeepHigh | Send | SendSnapshot | Appended | NotAppended | Propose
