"""Delivery of notifications: the service hands those in the outbox to the dispatcher, and writes
their outcomes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta

from holdfast.app import NOTIFY_AGE_MAX, App, KindOptions
from holdfast.errors import code_name, is_refusal
from holdfast.ids import effect_id
from holdfast.tracing import TRACEPARENT
from holdfast.v1 import objects_pb2 as pb

from holdfast_node.effects.dead_letters import DeadLetters
from holdfast_node.effects.notifications import Notifications
from holdfast_node.effects.outbox import (
    Dead,
    Delivered,
    Failed,
    Failure,
    PendingNotification,
    Target,
)
from holdfast_node.effects.records import DeadLetter, encode, metadata_of
from holdfast_node.effects.writes import ShardWrites
from holdfast_node.log.shards import Shard
from holdfast_node.objects.environment import Outgoing
from holdfast_node.objects.hosted_kinds import ShardKinds
from holdfast_node.services.pauses import Pauses
from holdfast_node.store import keys

log = logging.getLogger(__name__)

DELIVERY_TIMEOUT_MS = 30_000
MARKS_KEPT = timedelta(days=7)
"""How long, by its shard's time, a receiver keeps its mark of a sender after the sender's last
notification."""
assert MARKS_KEPT > 2 * NOTIFY_AGE_MAX

_SAFE_AGE_MS = int((MARKS_KEPT - timedelta(days=1)).total_seconds() * 1000)
_NOT_COUNTED = frozenset((pb.CODE_UNAVAILABLE, pb.CODE_OVERLOADED, pb.CODE_WRONG_OWNER))


class NotificationService:
    """Delivers notifications as soon as they are in the outbox. It runs on the event loop.
    Implements `Periodic`."""

    def __init__(
        self,
        app: App,
        notifications: Notifications,
        letters: DeadLetters,
        writes: ShardWrites,
        outgoing: Outgoing,
        kinds: ShardKinds,
        pauses: Pauses,
        now_ms: Callable[[], int],
    ) -> None:
        """`now_ms`: cluster time, Unix time in ms."""
        self._loop = asyncio.get_running_loop()
        self._app = app
        self._outbox = notifications.outbox
        self._dead_letters = letters
        self._writes = writes
        self._outgoing = outgoing
        self._kinds = kinds
        self._pauses = pauses
        self._now_ms = now_ms
        self._pumping = False
        self._timer: asyncio.TimerHandle | None = None
        notifications.listeners.append(self._pump_soon)
        pauses.listeners.append(self._resumed)

    def tick(self, now_ms: int) -> None:
        self._pump()

    def _resumed(self) -> None:
        self._outbox.resumed(self._pauses.paused)
        self._pump_soon()

    def _pump_soon(self) -> None:
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        now = self._loop.time()
        for pending in self._outbox.take(now, self._ready, self._pauses.paused):
            row = pending.row
            if row.first_ms and self._now_ms() - row.first_ms > _SAFE_AGE_MS:
                # It was tried before its receiver was paused for days. The receiver may have taken
                # it, and forgotten its mark since.
                why = (
                    "it was tried before a pause of days: whether it took effect is not known any"
                    " more"
                )
                self._loop.call_soon(
                    self._settle,
                    pending,
                    Failure("DEADLINE_EXCEEDED", why, counts=False, final=True),
                )
                continue
            sender = keys.ident(row.sender_kind, row.sender_key)
            call = pb.Call(
                kind=row.kind,
                key=row.key,
                method=row.method,
                arguments=row.arguments,
                request_id=effect_id(b"notify", sender, pending.sequence),
                timeout_ms=DELIVERY_TIMEOUT_MS,
                caller=row.caller,
                notification=pending.sequence + sender,
                metadata=metadata_of(row.options),
            )
            if row.trace:
                call.metadata[TRACEPARENT] = row.trace
            self._outgoing.submit(call, _Answer(self, pending))
        due = self._outbox.due(now)
        if due is not None and self._timer is None:
            self._timer = self._loop.call_later(max(0.005, min(due - now, 0.5)), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._pump()

    def _ready(self, target: Target) -> bool:
        return self._outgoing.reachable(*target)

    def answered(self, pending: PendingNotification, error: pb.Error | None) -> None:
        """Act on an answer, from the receiver or from a process on the way to it."""
        self._settle(pending, None if error is None else _failure(error))

    def _settle(self, pending: PendingNotification, failure: Failure | None) -> None:
        shard: Shard = pending.shard
        responsible = pending.row.sender_kind or pending.row.kind
        kind = self._app.kinds.get(responsible)
        options = kind.options if kind is not None else KindOptions()
        # The kind says how long to try. So if this node lacks the kind and another node has it,
        # this node makes no dead letter.
        may_die = self._dead_letters.room(shard) and not (
            kind is None and self._kinds.elsewhere(responsible)
        )
        age_ms = int(options.notify_age.total_seconds() * 1000)
        now = self._loop.time()
        outcome = self._outbox.answered(
            pending, failure, now, self._now_ms(), options.notify_attempts, age_ms, may_die
        )
        row_key = keys.index_prefix(shard.number, keys.OUTBOX) + pending.sequence
        if shard.owned:
            match outcome:
                case Delivered():
                    self._writes.write_or_defer(shard, [(row_key, None)])
                case Failed():
                    self._writes.write_or_defer(shard, [(row_key, encode(pending.row))])
                case Dead(_, why):
                    self._bury(shard, pending, why)
        self._pump_soon()

    def _bury(self, shard: Shard, pending: PendingNotification, why: Failure) -> None:
        row = pending.row
        letter = DeadLetter(row, self._now_ms(), why.code, why.message)
        own = keys.index_prefix(shard.number, keys.OUTBOX) + pending.sequence
        self._writes.write_or_defer(
            shard, [(own, None), self._dead_letters.row(shard, pending.sequence, letter)]
        )
        log.error(
            "%s/%s.%s(), a notification of %s, is a dead letter after %d attempts: %s: %s",
            row.kind,
            row.key,
            row.method,
            row.sender,
            row.attempts,
            why.code,
            why.message,
        )


class _Answer:
    """Takes the answer to one delivery. Implements `holdfast_cluster.routing.pending.Origin`."""

    __slots__ = ("_pending", "_service")

    def __init__(self, service: NotificationService, pending: PendingNotification) -> None:
        self._service = service
        self._pending = pending

    def push(self, reply: pb.Reply, size: int) -> None:
        self._service.answered(self._pending, None if reply.result else reply.error)


def _failure(error: pb.Error) -> Failure:
    code = code_name(error.code)
    if error.code == pb.CODE_APPLICATION:
        return Failure(code, f"{error.type}: {error.message}", counts=True, final=is_refusal(error))
    return Failure(code, error.message, counts=error.code not in _NOT_COUNTED)
