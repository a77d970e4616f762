"""Engines and dispatchers that each break one rule of what happens exactly once. The simulator has
to catch every one of them."""

from __future__ import annotations

import asyncio
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.ids import effect_id
from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.routing.dispatch import Dispatcher
from holdfast_cluster.routing.pending import Pending
from holdfast_cluster.routing.pipe import Pipe
from holdfast_node.effects.alarms import following, to_alarm
from holdfast_node.effects.outbox import PendingNotification
from holdfast_node.effects.records import AlarmRecord
from holdfast_node.objects.activation import Activation
from holdfast_node.objects.engine import Engine
from holdfast_node.objects.handlers import InternalHandler
from holdfast_node.objects.outcome import Outcomes
from holdfast_node.services.alarms import AlarmService, Fired
from holdfast_node.services.host import ObjectHost
from holdfast_node.services.notifications import NotificationService
from holdfast_node.store import keys


class _KeepsMarksOutsideTheEntry(Outcomes):
    """What was taken from whom is written a little after the effect, in an entry of its own."""

    def write(self, turn: Any) -> Any:
        marked = turn.call.notification
        if not marked:
            return super().write(turn)
        activation: Activation = turn.activation
        row = activation.record(marked)
        taken = activation._dedup_marks
        assert taken is not None
        taken.pop(marked[keys.SEQUENCE_BYTES :])
        turn.call.ClearField("notification")
        entry = super().write(turn)

        def later() -> None:
            if activation.shard.owned and not activation.shard.closing:
                taken[marked[keys.SEQUENCE_BYTES :]] = marked[: keys.SEQUENCE_BYTES]
                self._environment.sent._writes.write(activation.shard, [row])

        asyncio.get_running_loop().call_later(0.05, later)
        return entry


class KeepsMarksOutsideTheEntry(ObjectHost):
    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.engine.outcomes.__class__ = _KeepsMarksOutsideTheEntry


class _DropsWhatItSends(NotificationService):
    def _pump(self) -> None:
        take = self._outbox.take

        def and_drop(*given: Any) -> list[PendingNotification]:
            notes = take(*given)
            for note in notes:
                if note.shard.may_write():
                    self._writes.write(
                        note.shard,
                        [(keys.index_prefix(note.shard.number, keys.OUTBOX) + note.sequence, None)],
                    )
            return notes

        self._outbox.take = and_drop  # type: ignore[method-assign, assignment]
        try:
            super()._pump()
        finally:
            self._outbox.take = take  # type: ignore[method-assign]


class DropsNotificationsBeforeTheReceiverCommitted(ObjectHost):
    """Takes a notification out of the outbox as it is sent."""

    notifications_class = _DropsWhatItSends


class _DoesNotJoinRequestsInFlight(Engine):
    """Runs a request again that comes again while it is under way."""

    def deliver(self, call: pb.Call, port: Any) -> None:
        self._in_flight.pop(call.request_id, None)
        super().deliver(call, port)


class DoesNotJoinRequestsInFlight(ObjectHost):
    engine_class = _DoesNotJoinRequestsInFlight


class _FiresFromMemory(AlarmService):
    def fire(
        self, kind: str, key: str, name: str, due_ms: int, record: AlarmRecord, done: Fired
    ) -> None:
        fired: list[Any] = []

        def go_on(activation: Activation) -> None:
            current = activation.alarms.current().get(name)
            if current is not None and current.due_ms == due_ms:
                activation.alarms.change(name, following(current, activation.shard.clock.now_ms()))
                fired.append(current)

        def then(error: pb.Error | None) -> None:
            if error is not None or not fired:
                done(error, False)
            else:
                self._fire(
                    kind, key, name, record, lambda activation: to_alarm(name, fired[0]), done
                )

        first_id = effect_id(self._ids.next())
        self._engine.run_internal(
            kind,
            key,
            first_id,
            lambda activation: InternalHandler("go on", lambda: go_on(activation)),
            then,
        )


class DeletesAlarmsBeforeTheirEffect(ObjectHost):
    """Sets an alarm to its next time, and when that is committed has it fire."""

    alarms_class = _FiresFromMemory


class _TrustsFirstAttempts(Engine):
    """Takes every first attempt for one that has not run anywhere, also one that was made before
    this node owned the shard."""

    def deliver(self, call: pb.Call, port: Any) -> None:
        for shard in self._shards.owned():
            shard.lookup_all_until = 0.0
        super().deliver(call, port)


class TrustsFirstAttempts(ObjectHost):
    engine_class = _TrustsFirstAttempts


class ForgetsAttemptsBeforeItself(Dispatcher):
    """Takes its own attempts for all that there are: what the call arrived with is forgotten when
    it fails here."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._came: dict[int, int] = {}

    def submit(self, call: pb.Call, origin: Any) -> int:
        self._came[self._number + 1] = call.attempt
        return super().submit(call, origin)

    def _fail(self, pending: Pending, error: HoldfastError) -> None:
        pending.call.attempt -= self._came[pending.call.id]
        super()._fail(pending, error)


class DoesNotCountWhatABrokenPipeTook(Dispatcher):
    """Sends what was on a broken pipe again as if it had never been sent."""

    def on_pipe_down(self, pipe: Pipe) -> None:
        before = {
            number: pending.call.attempt
            for number, pending in self._pending.items()
            if pending.pipe is pipe
        }
        super().on_pipe_down(pipe)
        for number, attempt in before.items():
            if (pending := self._pending.get(number)) is not None:
                pending.call.attempt = attempt


DISPATCHER_BUGS: dict[str, type[Dispatcher]] = {
    "a retry's earlier attempts forgotten": ForgetsAttemptsBeforeItself,
    "attempt not counted when its pipe breaks": DoesNotCountWhatABrokenPipeTook,
}
BUGS: dict[str, type[ObjectHost]] = {
    "dedup record outside the entry": KeepsMarksOutsideTheEntry,
    "outbox record dropped before the receiver committed": (
        DropsNotificationsBeforeTheReceiverCommitted
    ),
    "in-flight join missing": DoesNotJoinRequestsInFlight,
    "alarm deleted before its effect committed": DeletesAlarmsBeforeTheirEffect,
    "first attempts trusted after a fail-over": TrustsFirstAttempts,
}
