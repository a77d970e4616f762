"""An activation: an object's instance in its owner's memory, with its storage, its mailbox and its place in the commit order."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

from holdfast.app import Kind
from holdfast.object import DurableObject, Objects
from holdfast.storage import Limits, Rows, Storage
from holdfast.tracing import Tracing
from holdfast_cluster.ring import object_hash

from holdfast_node import keys
from holdfast_node.effects.alarms import ObjectAlarms
from holdfast_node.effects.due_index import DueIndex
from holdfast_node.effects.expiry import ExpiryIndex
from holdfast_node.effects.sent import Sent
from holdfast_node.outgoing import Notifier, ObjectCalls, Outgoing
from holdfast_node.replies import object_digest
from holdfast_node.shards import Entry, Shard
from holdfast_node.stats import KindStats
from holdfast_node.store import Store
from holdfast_node.turn import Turn

_log = logging.getLogger("holdfast.objects")
_MARKS_MAX = 256


@dataclass(frozen=True, slots=True)
class Environment:
    """What all objects of a node have in common.

    `outgoing`: what takes calls to other objects. `sent`: what they send. `alarms` and `expiry`: what is due when. `account`: takes
    note of what an activation's cache has grown or shrunk by.
    """

    store: Store
    limits: Limits
    outgoing: Outgoing
    sent: Sent
    alarms: DueIndex
    expiry: ExpiryIndex
    account: Callable[[Activation], None]
    tracing: Tracing | None = None


class RowReader:
    """The user's rows of one object. Implements `holdfast.storage.Reader`."""

    __slots__ = ("_store", "prefix")

    def __init__(self, store: Store, prefix: bytes) -> None:
        self._store = store
        self.prefix = prefix

    def get(self, key: bytes) -> bytes | None:
        return self._store.get("state", self.prefix + key)

    def scan(self, start: bytes, end: bytes | None, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        skip = len(self.prefix)
        stop = keys.after(self.prefix) if end is None else self.prefix + end
        for key, value in self._store.scan("state", self.prefix + start, stop, reverse):
            yield key[skip:], value


class LastError(NamedTuple):
    """What went wrong last with an object, since it came into memory."""

    code: str
    message: str
    method: str
    at_ms: int
    request_id: bytes


class Activation:
    """One active object. `turn` is the one that runs; `last_entry` the newest entry that a turn of this epoch wrote to.

    The instance comes and goes (an exception drops it), the activation stays: it is what keeps requests in their order.
    """

    __slots__ = (
        "_alarms",
        "_dedup_marks",
        "_environment",
        "cached_bytes",
        "deactivating",
        "digest",
        "expiry_ms",
        "forgotten",
        "hash",
        "instance",
        "key",
        "kind",
        "last_entry",
        "last_error",
        "last_used",
        "mailbox",
        "reads",
        "row_prefix",
        "shard",
        "stats",
        "storage",
        "turn",
    )

    def __init__(self, environment: Environment, kind: Kind, key: str, shard: Shard, stats: KindStats) -> None:
        self._environment = environment
        self.stats = stats
        self.kind = kind
        self.key = key
        self.shard = shard
        self._alarms: ObjectAlarms | None = None
        self._dedup_marks: dict[bytes, bytes] | None = None
        self.row_prefix = keys.row_prefix(shard.number, kind.name, key)
        """What the keys of the user's rows begin with in the store."""
        self.storage = Rows(RowReader(environment.store, self.row_prefix), environment.limits, shard)
        self.instance: DurableObject | None = None
        self.turn: Turn | None = None
        self.mailbox: deque[Turn] | None = None
        self.reads: set[Turn] | None = None
        """The calls that run beside its turns."""
        self.deactivating = False
        """Whether its handler has asked to leave memory when the running turn has ended well."""
        self.expiry_ms = 0 if kind.options.ttl is None else self._stored_expiry()
        """When the whole object expires, Unix time in ms; 0: never."""
        self.last_entry: Entry | None = None
        self.last_used = 0.0
        self.last_error: LastError | None = None
        self.cached_bytes = 0
        self.digest = object_digest(kind.name, key)
        self.hash = object_hash(kind.name, key).to_bytes(8, "big")
        self.forgotten = False

    @property
    def name(self) -> str:
        """How errors and chains of calls name the object."""
        return f"{self.kind.name}/{self.key}"

    @property
    def uncommitted(self) -> Entry | None:
        """The newest entry of this object while it is on its way: nothing that saw its writes may leave before it."""
        entry = self.last_entry
        return None if entry is None or entry.committed or entry.abandoned else entry

    def wrote_to(self, entry: Entry) -> None:
        """A turn has written to this entry, the newest of the object."""
        if self.last_entry is not entry:
            self.last_entry = entry
            entry.followers.append(self)

    def settled(self, entry: Entry) -> None:
        """An entry that turns wrote to is committed, and the store shows it. With the newest one the object is at rest."""
        if self.last_entry is entry:
            self.last_entry = None
            self.storage.settle()
            self._environment.account(self)

    @property
    def in_chain(self) -> str:
        """How chains of calls name it."""
        return self.name

    def at_rest(self) -> bool:
        """Whether it has no turn, no read, no waiting call and no writes that the store does not show yet."""
        return self.turn is None and not self.mailbox and not self.reads and self.uncommitted is None and self.storage.settled()

    # -- expiry of the whole object

    def _stored_expiry(self) -> int:
        raw = self._environment.store.get("state", keys.expiry_key(self.shard.number, self.kind.name, self.key))
        return 0 if raw is None else int.from_bytes(raw, "big")

    def has_expired(self) -> bool:
        """Whether the whole object is to be taken for deleted."""
        return bool(self.expiry_ms) and self.shard.expired(self.expiry_ms)

    def is_gone(self) -> bool:
        """The same for reads beside its turns: one that a running turn has found alive is alive until that has ended."""
        return self.has_expired() and (self.turn is None or self.storage.emptied)

    def expire(self) -> None:
        """At the begin of a turn: there is nothing of the object any more. What is there is deleted with what the turn writes."""
        self.instance = None
        self.storage.empty()

    def make_instance(self) -> DurableObject:
        """A new instance of the user's class, with its context in place before its `__init__` runs."""
        instance = self.kind.cls.__new__(self.kind.cls)
        instance._context = self
        instance.storage = Storage(self.storage, lambda: self.alarms)
        instance.__init__()  # type: ignore[misc]
        return instance

    # -- notifications that it gets

    def already_received(self, notification: bytes) -> bool:
        """Whether the object has taken this notification, or a later one of the same sender, before; perhaps not committed yet."""
        sequence, sender = notification[: keys.SEQUENCE_BYTES], notification[keys.SEQUENCE_BYTES :]
        last = None if self._dedup_marks is None else self._dedup_marks.get(sender)
        if last is None:
            last = self._environment.store.get("state", keys.mark_key(self.shard.number, self.kind.name, self.key, sender))
        return last is not None and sequence <= last[: keys.SEQUENCE_BYTES]

    def record(self, notification: bytes) -> tuple[bytes, bytes]:
        """The running turn takes this notification: its dedup mark, the row that says so."""
        sequence, sender = notification[: keys.SEQUENCE_BYTES], notification[keys.SEQUENCE_BYTES :]
        marks = self._dedup_marks
        if marks is None:
            marks = self._dedup_marks = {}
        elif len(marks) >= _MARKS_MAX and self.uncommitted is None and self.storage.settled():
            marks.clear()  # the store has them
        marks[sender] = sequence
        key = keys.mark_key(self.shard.number, self.kind.name, self.key, sender)
        return key, sequence + self.shard.time_bytes

    # -- holdfast.object.Context

    @property
    def kind_name(self) -> str:
        return self.kind.name

    @property
    def epoch(self) -> int:
        return self.shard.epoch

    @property
    def objects(self) -> Objects:
        return ObjectCalls(self, self._environment.outgoing)

    @property
    def alarms(self) -> ObjectAlarms:
        alarms = self._alarms
        if alarms is None:
            alarms = self._alarms = ObjectAlarms(self, self._environment.store, self._environment.alarms)
        return alarms

    def notify(self, kind: type | str, key: str, delay: timedelta | None) -> Notifier:
        return Notifier(self, self._environment.sent, kind, key, delay)

    @property
    def request(self) -> Turn:
        if self.turn is None:
            raise RuntimeError("there is a request only while a turn runs")
        return self.turn

    def deactivate(self) -> None:
        if self.turn is None:
            raise RuntimeError("an object can be deactivated only while a turn of it runs")
        self.deactivating = True

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        return self.log_for(self.turn)

    def log_for(self, turn: Turn | None) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose lines say that they are this turn's."""
        return logging.LoggerAdapter(_log, self.log_fields(turn))

    def log_fields(self, turn: Turn | None) -> dict[str, Any]:
        """What identifies a turn of the object in a line of the log."""
        fields: dict[str, Any] = {"kind": self.kind.name, "key": self.key, "epoch": self.shard.epoch}
        if turn is not None:
            fields["request_id"] = turn.request_id.hex()
        return fields
