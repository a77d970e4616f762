"""What goes into a replica and what comes out: positions and entries, events, messages between nodes, effects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from holdfast_cluster.model import Assignment


class Position(NamedTuple):
    """A place in a log; the higher epoch is the later, whatever its seq."""

    epoch: int
    seq: int


class LogEntry(NamedTuple):
    """One record of a shard's log. Empty `data` is an owner's first entry."""

    epoch: int
    seq: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ReplicationSettings:
    """Times in seconds. `promise_owner_s` is shorter than `promise_s` by what two clocks may differ in rate (5 % each)."""

    promise_s: float = 3.0
    promise_owner_s: float = 2.7
    heartbeat_s: float = 0.5
    replica_timeout_s: float = 2.0
    first_patience_s: float = 0.5
    """How long a new owner waits for a replica's first word before it has it removed: it may be absent as the owner before is."""
    swap_retry_s: float = 1.0
    min_in_sync: int = 2
    """Below it appends are refused; reads go on."""
    batch_entries_max: int = 64
    log_keep_max: int = 1_000
    """Applied entries that stay in the log, for replicas that come back."""


# -- events


@dataclass(frozen=True, slots=True)
class Assigned:
    """etcd shows this assignment at this revision."""

    assignment: Assignment
    revision: int


@dataclass(frozen=True, slots=True)
class Append:
    """The owner's engine has an entry; its seq is in the effect `Appended`."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Persisted:
    """Everything up to the `Persist` of this number is on disk."""

    number: int


@dataclass(frozen=True, slots=True)
class Received:
    """A message came from a node."""

    sender: str
    message: Message


@dataclass(frozen=True, slots=True)
class Swapped:
    """etcd's answer to a `Swap`: it happened (at `revision`), it did not, or (None) nobody knows."""

    happened: bool | None
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Release:
    """Give the shard to another in-sync replica; all replies have left."""

    to: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class Rejoined:
    """The node is a member under a new incarnation: what was assigned to the earlier one is not its own any more."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = Assigned | Append | Persisted | Received | Swapped | Release | Rejoined | Tick


# -- messages between nodes


@dataclass(frozen=True, slots=True)
class Replicate:
    """Owner to replica: entries behind `previous`, and how far the owner has committed. Without entries it is a heartbeat."""

    epoch: int
    previous: Position
    entries: tuple[LogEntry, ...]
    commit: int
    sent_at: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Owner to joining replica: the whole state as of `position`."""

    epoch: int
    position: Position
    state: bytes
    sent_at: float


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Replica to owner: it has everything up to `matched` on disk, and promises. `sent_at` is the owner's own."""

    epoch: int
    matched: int
    sent_at: float


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Replica to owner: it has nothing like `previous`; try behind `last`. It promises as `Acknowledge` does."""

    epoch: int
    last: int
    sent_at: float


@dataclass(frozen=True, slots=True)
class Refused:
    """Replica to owner: it has heard of a higher epoch."""

    epoch: int


Message = Replicate | Snapshot | Acknowledge | Mismatch | Refused


# -- effects


@dataclass(frozen=True, slots=True)
class Persist:
    """Write to disk, in the order of numbers, and answer with `Persisted`.

    Cut the log from seq `cut` on (None: no cut), append `entries`; with `install` replace state and log by a snapshot.
    """

    number: int
    epoch: int
    cut: int | None = None
    entries: tuple[LogEntry, ...] = ()
    install: Snapshot | None = None


@dataclass(frozen=True, slots=True)
class Apply:
    """Apply committed entries to the state, which changes together with its position. The log keeps what is behind `trim`."""

    entries: tuple[LogEntry, ...]
    trim: int


@dataclass(frozen=True, slots=True)
class Send:
    """Send to a node. It may be lost, doubled, delayed."""

    to: str
    message: Message


@dataclass(frozen=True, slots=True)
class SendSnapshot:
    """Send the state with the position that it is at."""

    to: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Appended:
    """The entry got this seq."""

    seq: int


@dataclass(frozen=True, slots=True)
class NotAppended:
    """The entry was not taken: not the owner, or too few in-sync replicas."""

    why: str


@dataclass(frozen=True, slots=True)
class Swap:
    """Ask etcd to put `to` in the place of the assignment at `revision`; answer with `Swapped`."""

    revision: int
    to: Assignment


Effect = Persist | Apply | Send | SendSnapshot | Appended | NotAppended | Swap
