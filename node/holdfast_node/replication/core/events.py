"""Input and output of a replica: positions and entries, events, messages between nodes, effects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import msgspec
from holdfast_cluster.placement.model import Assignment

from holdfast_node.replication.core.chain import Term


class Position(NamedTuple):
    """A place in a log. A higher epoch is always later, with any seq."""

    epoch: int
    seq: int


class LogEntry(NamedTuple):
    """One record of a shard's log. `changes.py` describes its data."""

    epoch: int
    seq: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ReplicationSettings:
    """Settings of replication, times in seconds.

    `promise_owner_s` is shorter than `promise_s`, because clocks may differ in rate (5 % each).
    """

    promise_s: float = 3.0
    promise_owner_s: float = 2.7
    heartbeat_s: float = 0.4
    replica_timeout_s: float = 2.0
    first_patience_s: float = 0.4
    """How long a new owner waits for a replica's first answer before it removes the replica. The
    replica may be absent together with the earlier owner. Any owner waits as long for a replica
    whose connection broke."""
    corner_patience_s: float = 2.0
    """How much longer an owner waits if the removal would leave too few copies to write. The owner
    itself may be cut off."""
    canvass_patience_s: float = 2.0
    """How long an owner whose copy is not unbroken waits for the reports of all in-sync replicas.
    The time counts from the start of the election (`elected_at`), not from the first report. After
    it, one report is enough."""
    lone_patience_s: float = 30.0
    """How long such an owner waits if no replica has reported, counted from the same moment. After
    that its copy alone counts."""
    high_patience_s: float = 1.0
    """After this time without an entry that could carry it, the replica keeps the high-water in a
    row of its own."""
    proposal_retry_s: float = 1.0
    min_in_sync: int = 2
    """With fewer copies in sync the shard is read-only."""
    batch_entries_max: int = 64
    batch_bytes_max: int = 1 << 20
    """The bytes of entries in one message. A larger entry goes alone."""
    log_keep_max: int = 200
    """The most applied entries that stay in the log, for replicas that come back. When there are
    more, the copy shortens its log to half of this."""
    log_keep_bytes: int = 256 << 10
    """The same for the bytes of all entries in the log."""
    log_hold_bytes: int = 64 << 20
    """The bytes that the log may have while it keeps the entries that replicas need after their
    snapshots. If it has more, the owner keeps no entries for them. Such a replica may then need
    another snapshot."""


# -- events


class Assigned(msgspec.Struct, frozen=True, gc=False):
    """etcd shows this assignment at this revision."""

    assignment: Assignment
    revision: int


class Append(msgspec.Struct, frozen=True, gc=False):
    """The owner's engine has an entry. The effect `Appended` tells its seq."""

    data: bytes


class Persisted(msgspec.Struct, frozen=True, gc=False):
    """Everything up to the `Persist` of this number is on disk."""

    number: int


class Received(msgspec.Struct, frozen=True, gc=False):
    """A message came from a node."""

    sender: str
    message: Message


class ProposalResult(msgspec.Struct, frozen=True, gc=False):
    """The answer of etcd to a `Propose`.

    `happened`: True if etcd has taken it (`written`, at `revision`), False if not, None if unknown.
    """

    happened: bool | None
    revision: int = 0
    written: Assignment | None = None


class Release(msgspec.Struct, frozen=True, gc=False):
    """An order to give the shard to another in-sync replica. All replies have left."""

    to: str
    incarnation: int


class Abdicate(msgspec.Struct, frozen=True, gc=False):
    """An order to give the shard to another in-sync replica, if this owner is `isolated`.

    The other node is a member.
    """

    to: str
    incarnation: int


class Rejoined(msgspec.Struct, frozen=True, gc=False):
    """The node is a member under a new incarnation. Shards of the earlier incarnation are not its
    own any more."""

    incarnation: int


class Lost(msgspec.Struct, frozen=True, gc=False):
    """The connection to a node broke. Unless the node is heard again soon, it counts as silent."""

    node: str


class Concede(msgspec.Struct, frozen=True, gc=False):
    """An order to give the shard to another node.

    Its copy has entries that the owner's lacks (`concedes_to`). Or it is in sync, and no replica
    has reported to the owner (`unheard`).
    """

    to: str
    incarnation: int


class SnapshotStarted(msgspec.Struct, frozen=True, gc=False):
    """The shell has taken the state as it is now, and sends it.

    The owner needs the log behind that state until the replica has it.
    """

    to: str


class SnapshotEnded(msgspec.Struct, frozen=True, gc=False):
    """The snapshot to this node is delivered, or given up.

    After a delivered snapshot the replica still needs the log behind it.
    """

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
    """Owner to replica: entries behind `previous`, and the seq up to which the owner has committed.

    Without entries it is a heartbeat. `nonce` belongs to the term of `previous`.
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
    """Replica to owner: the replica has everything up to `matched` on disk, and promises.

    `sent_at` is the owner's own time, from the message that this answers.
    """

    epoch: int
    matched: int
    sent_at: float


class Mismatch(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=3):
    """Replica to owner: its log does not contain `previous`; the owner should try behind `last`. It
    promises as `Acknowledge` does."""

    epoch: int
    last: int
    sent_at: float


class Fenced(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=4):
    """Replica to owner: the replica has heard of a higher epoch."""

    epoch: int


class MayDrop(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=5):
    """Replica to owner: the node holds a copy that is not assigned to it, and asks to drop it.

    `number` is the number of this question.
    """

    epoch: int
    number: int = 0


class Drop(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=6):
    """Owner to replica: the node is no replica of this owner, so the shard does not need its copy.

    It answers the question `number`.
    """

    epoch: int
    number: int = 0


class Canvass(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=8):
    """New owner to in-sync replica, before the owner's first entry: a request for a `Report`."""

    epoch: int
    sent_at: float


class Report(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=9):
    """Replica to new owner: the answer to `Canvass`. It promises as `Acknowledge` does.

    `last` is the end of the log, `turn` its newest entry of a turn, `high` its high-water.
    `unbroken`: see `Replica`. `hears_owner` tells whether the replica hears the earlier owner. It
    is kept for elections without the controller.
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
    """Replica to owner: the replica's log is committed up to `high`, and the owner's log differs.

    The replica has cut nothing. It promises as `Acknowledge` does.
    """

    epoch: int
    last: Position
    high: int
    chain: tuple[Term, ...]
    sent_at: float


class Yield(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=11):
    """Owner to a replica that sent `Conflict`: an order to give up its log behind `seq`.

    That part of the log holds no entry of a turn.
    """

    epoch: int
    seq: int


WireMessage = (
    Replicate
    | Acknowledge
    | Mismatch
    | Fenced
    | MayDrop
    | Drop
    | Canvass
    | Report
    | Conflict
    | Yield
)
"""The messages that frames carry (links.py). Snapshots have streams of their own."""
Message = WireMessage | Snapshot


# -- effects


class Persist(msgspec.Struct, frozen=True, gc=False):
    """Write to disk, in the order of numbers, and answer with `Persisted`.

    Cut the log from seq `cut` on (None: no cut), and append `entries`. With `install`, replace
    state and log by a snapshot. With `wipe`, delete the state, and begin an empty log behind that
    position. `high` is the copy's high-water; keep it with each entry.
    """

    number: int
    epoch: int
    cut: int | None = None
    entries: tuple[LogEntry, ...] = ()
    install: Snapshot | None = None
    wipe: Position | None = None
    high: int = 0


class Apply(msgspec.Struct, frozen=True, gc=False):
    """Apply committed entries to the state, together with its position. The log keeps the entries
    behind `trim`."""

    entries: tuple[LogEntry, ...]
    trim: int


class KeepHigh(msgspec.Struct, frozen=True, gc=False):
    """Keep the high-water in a row of its own, with the next write."""

    high: int


class Send(msgspec.Struct, frozen=True, gc=False):
    """Send a message to a node. The message may be lost, doubled or delayed."""

    to: str
    message: Message


class SendSnapshot(msgspec.Struct, frozen=True, gc=False):
    """Send the state with its position, unless that is under way. Answer with `SnapshotStarted` and
    `SnapshotEnded`."""

    to: str
    epoch: int


class Appended(msgspec.Struct, frozen=True, gc=False):
    """The entry has this seq."""

    seq: int


class NotAppended(msgspec.Struct, frozen=True, gc=False):
    """The replica refused the entry: the node does not own the shard, or is about to release it."""

    why: str


class Propose(msgspec.Struct, frozen=True, gc=False):
    """Ask etcd to replace the assignment at `revision` by `to`. Answer with `ProposalResult`."""

    revision: int
    to: Assignment


Effect = Persist | Apply | KeepHigh | Send | SendSnapshot | Appended | NotAppended | Propose
