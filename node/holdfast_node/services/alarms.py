"""Firing of due alarms, and of alarms whose firing failed. Memory holds only the time of each
shard's next alarm.

Alarms lie in an index by time. `tick` looks at the due alarms, and fires each as a turn of its
object. That turn deletes the alarm, or sets it to its next time (`effects/alarms.py`). If a firing
failed, another turn of the same object records the failure.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from holdfast.alarms import Alarm
from holdfast.app import App
from holdfast.errors import NotFound, code_name, is_refusal
from holdfast.ids import RequestIds, effect_id
from holdfast.v1 import objects_pb2 as pb

from holdfast_node.effects.alarms import firing_id, to_alarm
from holdfast_node.effects.dead_letters import AddDeadLetter, DeadLetters, RemoveDeadLetter
from holdfast_node.effects.due_index import DueIndex
from holdfast_node.effects.outbox import Bucket
from holdfast_node.effects.records import (
    AlarmRecord,
    DeadLetter,
    Notification,
    decode_alarm,
    encode,
    metadata_of,
)
from holdfast_node.effects.writes import ShardWrites
from holdfast_node.log.shard_service import ScanBudget
from holdfast_node.log.shards import NEVER, Shard
from holdfast_node.objects.activation import Activation
from holdfast_node.objects.engine import Engine
from holdfast_node.objects.handlers import Firing, InternalHandler
from holdfast_node.objects.hosted_kinds import ShardKinds
from holdfast_node.services.pauses import Pauses
from holdfast_node.store import keys

log = logging.getLogger(__name__)

FIRING_MAX = 256
"""The most alarms of a node that fire at once."""

_LATE_MS = 5_000  # an alarm that is later than this belongs to a backlog
_AGAIN_S = 1.0
_SOON_S = 0.05
_HELD_PAUSE_S = (0.5, 5.0)
_ATTEMPTS_UNLIMITED = 1 << 30  # while the shard can take no more dead letters

Fired = Callable[[pb.Error | None, bool], None]
"""Called when a firing is committed or has failed: with the error or None, and whether the handler
ran at all."""


class AlarmService:
    """The alarms of the shards that a node owns. Implements `ShardService`."""

    def __init__(
        self,
        app: App,
        engine: Engine,
        index: DueIndex,
        letters: DeadLetters,
        writes: ShardWrites,
        kinds: ShardKinds,
        pauses: Pauses,
        late_per_s: float,
    ) -> None:
        """`late_per_s`: the most late alarms that fire in a second."""
        self._app = app
        self._store = index.store
        self._engine = engine
        self._index = index
        self._dead_letters = letters
        self._writes = writes
        self._kinds = kinds
        self._pauses = pauses
        self._loop = asyncio.get_running_loop()
        self._late = Bucket(late_per_s, self._loop.time())
        self._ids = RequestIds()
        self._firing: set[bytes] = set()
        self.fired = 0
        self.failed = 0
        pauses.listeners.append(self._resumed)

    def _resumed(self) -> None:
        for coming in self._index.all():
            coming.not_before = coming.pause = 0.0

    # -- holdfast_node.log.shard_service.ShardService

    def opened(self, shard: Shard) -> None:
        self._index.of(shard)

    def closed(self, shard: Shard) -> None:
        self._index.closed(shard)

    def tick(self, shard: Shard, now_ms: int, budget: ScanBudget) -> None:
        """Fire the due alarms of a shard."""
        coming = self._index.of(shard)
        now = self._loop.time()
        if coming.due_ms > now_ms or coming.not_before > now:
            return
        prefix = keys.index_prefix(shard.number, keys.ALARMS)
        end = keys.due_key(shard.number, keys.ALARMS, now_ms + 1, b"")
        whole = not coming.cursor
        looked = held = 0
        for key, _ in self._store.scan("state", max(prefix, coming.cursor), end):
            due, rest = keys.read_due_key(key)
            if not budget.rows_left or len(self._firing) >= FIRING_MAX:
                coming.cursor = key  # go on here
                return
            looked += 1
            budget.rows_left -= 1
            if key in self._firing:
                continue
            kind, name_of, raw = keys.read_ident(rest)
            if self._pauses.paused((kind, name_of)):
                held += 1
                continue
            if kind not in self._app.kinds:
                self._kinds.ask(shard, kind, name_of)
                held += 1
                continue
            if now_ms - due > _LATE_MS and not self._late.take(now):
                coming.cursor = key
                return
            self._fire_indexed(shard, key, kind, name_of, raw.decode(), due)
        coming.cursor = b""
        # All due alarms are paused, or of kinds that this node lacks: look less and less often.
        if held and held == looked:
            least, most = _HELD_PAUSE_S
            coming.pause = min(most, coming.pause * 2 or least)
            coming.not_before = now + coming.pause
        elif looked or not whole:
            coming.pause = 0.0
            coming.not_before = now + _SOON_S  # the firing alarms are still in the index
        else:
            following = next(iter(self._store.scan("state", end, keys.after(prefix))), None)
            coming.due_ms = NEVER if following is None else keys.read_due_key(following[0])[0]

    def _fire_indexed(
        self, shard: Shard, index_key: bytes, kind: str, key: str, name: str, due: int
    ) -> None:
        raw = self._store.get("state", keys.alarm_prefix(shard.number, kind, key) + name.encode())
        if raw is None:
            log.error(
                "shard %d: alarm %r of %s/%s is in the index, but the alarm itself is missing",
                shard.number,
                name,
                kind,
                key,
            )
            self._writes.write(shard, [(index_key, None)])
            return
        self._firing.add(index_key)

        def release() -> None:
            self._firing.discard(index_key)

        def written() -> None:
            self._loop.call_later(_SOON_S, release)

        def done(error: pb.Error | None, ran: bool) -> None:
            if error is None:
                self.fired += 1
                written()
            elif not ran or error.code == pb.CODE_WRONG_OWNER:  # not a failure of the handler
                self._loop.call_later(_AGAIN_S, release)
            else:
                self.failed += 1
                self._write_down(kind, key, name, due, error, written)

        self.fire(kind, key, name, due, decode_alarm(raw), done)

    # -- turns

    def fire(
        self, kind: str, key: str, name: str, due_ms: int, record: AlarmRecord, done: Fired
    ) -> None:
        """Fire an alarm, if it is still there and due at `due_ms`."""
        self._fire(
            kind, key, name, record, lambda activation: activation.alarms.begin(name, due_ms), done
        )

    def fire_dead_letter(
        self, kind: str, key: str, name: str, record: AlarmRecord, row: bytes, done: Fired
    ) -> None:
        """Fire the alarm of a dead letter once more. If that succeeds, the same commit removes the
        letter (at `row`)."""

        def begin(activation: Activation) -> Alarm:
            activation.storage.add_effect(RemoveDeadLetter(row))
            return to_alarm(name, record)

        self._fire(kind, key, name, record, begin, done)

    def _fire(
        self,
        kind: str,
        key: str,
        name: str,
        record: AlarmRecord,
        begin: Callable[[Activation], Alarm | None],
        done: Fired,
    ) -> None:
        """Run the turn that fires an alarm. `begin` is called in the turn, and returns the alarm,
        or None if it must not fire."""
        firing: Firing | None = None
        request_id = firing_id(kind, key, name, record)

        def handler(activation: Activation) -> Firing:
            nonlocal firing
            if activation.kind.on_alarm is None:
                raise NotFound(f"{activation.kind.name} has no on_alarm", definite=True)
            firing = Firing(lambda: begin(activation), activation.kind.arounds)
            return firing

        def told(error: pb.Error | None) -> None:
            done(error, firing is not None and firing.ran)

        self._engine.run_internal(
            kind, key, request_id, handler, told, metadata=metadata_of(record.options)
        )

    def _write_down(
        self, kind: str, key: str, name: str, due_ms: int, error: pb.Error, done: Callable[[], None]
    ) -> None:
        """Record a failed firing in a turn of the object: the alarm fires again later, or becomes a
        dead letter."""

        def fail(activation: Activation) -> None:
            full = self._dead_letters.full(activation.shard)
            final = error.code == pb.CODE_APPLICATION and is_refusal(error) and not full
            attempts_max = _ATTEMPTS_UNLIMITED if full else activation.kind.options.alarm_attempts
            record = activation.alarms.fail(name, due_ms, attempts_max, final)
            if record is not None:
                told = f"{error.type}: {error.message}" if error.type else error.message
                lost = Notification(
                    kind,
                    key,
                    kind,
                    key,
                    "on_alarm",
                    record.payload,
                    record.scheduled_ms,
                    record.attempt + 1,
                    error=told,
                )
                code = code_name(error.code)
                raw = encode(
                    DeadLetter(lost, activation.shard.clock.now_ms(), code, told, record, name)
                )
                activation.storage.add_effect(AddDeadLetter(self._dead_letters, raw))
                log.error(
                    "alarm %r of %s/%s is a dead letter after %d attempts: %s",
                    name,
                    kind,
                    key,
                    record.attempt + 1,
                    told,
                )

        request_id = effect_id(self._ids.next())
        self._engine.run_internal(
            kind,
            key,
            request_id,
            lambda activation: InternalHandler("alarm failed", lambda: fail(activation)),
            lambda _: done(),
        )
