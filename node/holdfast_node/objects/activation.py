"""An object in its owner's memory, and its turns. An object runs one turn at a time, from start to
end.

An activation holds an object's instance, its storage, its mailbox and its place in the commit
order.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterator
from time import perf_counter
from typing import Any, NamedTuple, Protocol

from holdfast.app import Kind
from holdfast.errors import HoldfastError
from holdfast.object import DurableObject
from holdfast.signature import Handler, Sending
from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.placement.ring import object_hash

from holdfast_node.effects.alarms import ObjectAlarms
from holdfast_node.effects.rows import ReadRows, Rows
from holdfast_node.log.shards import Entry, Shard
from holdfast_node.objects.environment import Environment
from holdfast_node.objects.handlers import Firing, InternalHandler
from holdfast_node.objects.responses import object_digest
from holdfast_node.objects.spans import TurnSpan
from holdfast_node.objects.stats import KindStats
from holdfast_node.objects.stepping import Stepped
from holdfast_node.store import keys
from holdfast_node.store.rocks import Store

_log = logging.getLogger("holdfast.objects")
_MARKS_MAX = 256

ON_ACTIVATE_CALLS = 1 << 30
"""The first number for the calls that `on_activate` makes."""

QUEUED, RUNNING, COMMITTING, DONE = range(4)


class RowReader:
    """A reader of the user's rows of one object. Implements
    `holdfast_node.effects.row_layers.Reader`."""

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
    """The last error of an object since it came into memory. `at_ms`: Unix time in ms."""

    code: str
    message: str
    method: str
    at_ms: int
    request_id: bytes


class Activation:
    """One active object. `turn`: the running turn. `last_entry`: the newest entry that its turns
    wrote to, until the store shows that entry.

    An exception drops the instance, but not the activation, which keeps the requests in order.
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

    def __init__(
        self, environment: Environment, kind: Kind, key: str, shard: Shard, stats: KindStats
    ) -> None:
        self._environment = environment
        self.stats = stats
        self.kind = kind
        self.key = key
        self.shard = shard
        self._alarms: ObjectAlarms | None = None
        self._dedup_marks: dict[bytes, bytes] | None = None
        self.row_prefix = keys.row_prefix(shard.number, kind.name, key)
        """The prefix of the user's rows in the store."""
        self.storage = Rows(
            RowReader(environment.store, self.row_prefix), environment.limits, shard
        )
        self.instance: DurableObject | None = None
        self.turn: Turn | None = None
        self.mailbox: deque[Turn] | None = None
        self.reads: set[Turn] | None = None
        """The reads that run beside its turns."""
        self.deactivating = False
        """Whether the handler has asked that the object leaves memory when the running turn has
        ended well."""
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
        """The object's name in errors and in chains of calls."""
        return f"{self.kind.name}/{self.key}"

    @property
    def uncommitted(self) -> Entry | None:
        """The newest entry of this object while it is not committed. A reply that may have seen its
        writes must not leave before."""
        entry = self.last_entry
        return None if entry is None or entry.committed or entry.abandoned else entry

    def wrote_to(self, entry: Entry) -> None:
        """Note that a turn has written to this entry, the newest of the object."""
        if self.last_entry is not entry:
            self.last_entry = entry
            entry.followers.append(self)

    def settled(self, entry: Entry) -> None:
        """Settle the storage if the entry is the newest of the object. The entry is committed, and
        visible in the store."""
        if self.last_entry is entry:
            self.last_entry = None
            self.storage.layers.settle()
            self.account()

    def at_rest(self) -> bool:
        """Return whether the object has no turn, no read, no waiting call, and no writes that are
        not visible in the store yet."""
        return (
            self.turn is None
            and not self.mailbox
            and not self.reads
            and self.uncommitted is None
            and self.storage.layers.settled()
        )

    def close_read(self, turn: Turn) -> None:
        """Close the rows of a read that has ended: it can read nothing any more."""
        assert turn.read_rows is not None
        assert self.reads is not None
        turn.read_rows.closed = True
        self.reads.discard(turn)
        if not self.reads:
            self.reads = None

    # -- expiry of the whole object

    def _stored_expiry(self) -> int:
        raw = self._environment.store.get(
            "state", keys.expiry_key(self.shard.number, self.kind.name, self.key)
        )
        return 0 if raw is None else int.from_bytes(raw, "big")

    def has_expired(self) -> bool:
        """Return whether the whole object has expired, so that it counts as deleted."""
        return bool(self.expiry_ms) and self.shard.expired(self.expiry_ms)

    def is_gone(self) -> bool:
        """Return the same for reads. If a running turn has found the object alive, it counts as
        alive until that turn has ended."""
        return self.has_expired() and (self.turn is None or self.storage.emptied)

    def expire(self) -> None:
        """Empty an expired object as a turn begins. Its stored rows are deleted with the turn's
        writes."""
        self.instance = None
        self.storage.empty()

    # -- notifications that the object receives

    def already_received(self, notification: bytes) -> bool:
        """Return whether the object has already taken this notification, or a later one of the same
        sender. That turn may not be committed yet."""
        sequence, sender = notification[: keys.SEQUENCE_BYTES], notification[keys.SEQUENCE_BYTES :]
        last = None if self._dedup_marks is None else self._dedup_marks.get(sender)
        if last is None:
            last = self._environment.store.get(
                "state", keys.mark_key(self.shard.number, self.kind.name, self.key, sender)
            )
        return last is not None and sequence <= last[: keys.SEQUENCE_BYTES]

    def record(self, notification: bytes) -> tuple[bytes, bytes]:
        """Record that the running turn takes this notification, and return its dedup mark as a
        row."""
        sequence, sender = notification[: keys.SEQUENCE_BYTES], notification[keys.SEQUENCE_BYTES :]
        marks = self._dedup_marks
        if marks is None:
            marks = self._dedup_marks = {}
        elif (
            len(marks) >= _MARKS_MAX and self.uncommitted is None and self.storage.layers.settled()
        ):
            marks.clear()  # the store has them
        marks[sender] = sequence
        key = keys.mark_key(self.shard.number, self.kind.name, self.key, sender)
        return key, sequence + self.shard.time_bytes

    @property
    def alarms(self) -> ObjectAlarms:
        """The object's alarms. They are read from the store at the first use."""
        alarms = self._alarms
        if alarms is None:
            alarms = self._alarms = ObjectAlarms(
                self.shard, self.kind, self.key, self.storage, self._environment.alarms, self.call
            )
        return alarms

    def call(self) -> pb.Call:
        """Return the call of the running turn. Raises RuntimeError if no turn runs."""
        return self.running().call

    def running(self) -> Turn:
        """Return the running turn. Raises RuntimeError if no turn runs."""
        if self.turn is None:
            raise RuntimeError("there is a request only while a turn runs")
        return self.turn

    def account(self) -> None:
        """Add the change in the size of its cache to the node's total."""
        grown = self.storage.layers.cached_bytes - self.cached_bytes
        if grown and not self.forgotten:
            self.cached_bytes += grown
            self._environment.cache.bytes += grown

    def log_for(self, turn: Turn | None) -> logging.LoggerAdapter[logging.Logger]:
        """Return a logger whose lines name this turn."""
        return logging.LoggerAdapter(_log, self.log_fields(turn))

    def log_fields(self, turn: Turn | None) -> dict[str, Any]:
        """Return the fields that identify a turn of the object in a log line."""
        fields: dict[str, Any] = {
            "kind": self.kind.name,
            "key": self.key,
            "epoch": self.shard.epoch,
        }
        if turn is not None:
            fields["request_id"] = turn.request_id.hex()
        return fields


class ReplyPort(Protocol):
    """The place where a reply goes: the stream or the caller from which the call came. `closed`:
    the stream is gone."""

    closed: bool

    def reply(
        self, number: int, result: bytes, error: pb.Error | None, shard: Shard | None
    ) -> None:
        """Take the reply to call `number`: a result or an error. The reply may leave only while the
        node may answer for `shard`."""


class TurnRunner(Protocol):
    """The part that runs a turn, and is told of its end."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...

    def ended(self, turn: Turn, value: Any, error: BaseException | None) -> None:
        """Act on the end of the turn's handler, with a value or an exception."""


def _void(turn: Turn, value: Any, error: BaseException | None) -> None:
    """Ignore the end of an abandoned turn."""


class Turn(Stepped):
    """One request on its way through an object. `deadline`: a time of the loop's clock.

    `port` gets the reply to call `number`. `also`: the ports and numbers of repeated attempts,
    which get the same reply. `runner` is told when the handler has ended.
    """

    __slots__ = (
        "activation",
        "also",
        "arrived",
        "attempt",
        "began",
        "call",
        "call_number",
        "calls_made",
        "deadline",
        "ended_at",
        "error",
        "given_up",
        "handler",
        "late",
        "number",
        "port",
        "read_rows",
        "request_id",
        "result",
        "span",
        "state",
        "stopped",
    )

    def __init__(
        self,
        runner: TurnRunner,
        activation: Activation,
        call: pb.Call,
        handler: Handler | Sending | Firing | InternalHandler,
        port: ReplyPort,
        deadline: float,
    ) -> None:
        # The fields of `Stepped` are set here: a call of its constructor would be a tenth of the
        # cost of a turn.
        self.loop = runner.loop
        self._coroutine = self._context = self._fut_waiter = None
        self._must_cancel = False
        self._cancel_requests = 0
        self.ended = runner.ended
        self.enter = None
        self.activation = activation
        self.call = call
        self.handler = handler
        self.request_id = call.request_id
        self.attempt = call.attempt
        self.port = port
        self.number = call.id
        self.also: list[tuple[ReplyPort, int]] | None = None
        self.deadline = deadline
        self.state = QUEUED
        self.stopped: HoldfastError | None = None
        """Why the turn was cancelled: by its deadline, by an operator, or because its caller does
        not wait any more."""
        self.given_up = False
        """Whether the turn is rolled back because no caller waits for it any more."""
        self.late: list[tuple[ReplyPort, int]] | None = None
        """The attempts that came after `given_up`: the request runs again for them."""
        self.calls_made = 0
        self.call_number = 0
        self.result = b""
        self.error: pb.Error | None = None
        self.arrived = self.began = perf_counter()
        self.ended_at = 0.0
        self.span: TurnSpan | None = None
        self.read_rows: ReadRows | None = None
        """The rows that a read sees; None for a turn."""

    def abandon(self) -> None:
        """Ignore all that the handler still does."""
        self.ended = _void

    def trace(self, span: TurnSpan | None) -> None:
        """Make the turn's own spans children of this span."""
        self.span = span
        if span is not None:
            self.enter = span.enter

    def get_name(self) -> str:
        return f"turn {self.activation.name}.{self.handler.name}"

    # -- what `self.request` shows

    @property
    def id(self) -> bytes:
        return self.request_id

    @property
    def metadata(self) -> dict[str, str]:
        return dict(self.call.metadata)

    @property
    def caller(self) -> str:
        return self.call.caller

    @property
    def remaining_s(self) -> float:
        return max(0.0, self.deadline - self.loop.time())
