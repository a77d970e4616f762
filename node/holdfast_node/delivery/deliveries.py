"""The shell of delivering: reads what owned shards have to send and to fire, hands it on, and writes what became of it.

Everything that it writes goes into the shard's entries, beside what turns write, so it is committed in the same order. What it
holds in memory is the outbox, and of each shard when the next alarm is due; alarms themselves stay in the store until they are.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

from holdfast.app import NOTIFY_AGE_MAX, App, Retries
from holdfast.ids import keyed_id
from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.clock import boottime

from holdfast_node import keys
from holdfast_node.delivery.alarms import firing_id
from holdfast_node.delivery.outbox import Dead, Delivered, Failed, Failure, Note, Outbox, OutboxLimits, Target
from holdfast_node.delivery.records import Letter, Notification, decode_alarm, decode_notification, encode
from holdfast_node.shards import Shard, Shards
from holdfast_node.store import Store

if TYPE_CHECKING:
    from holdfast_node.commit import Entry

log = logging.getLogger(__name__)

DELIVERY_TIMEOUT_MS = 30_000
MARKS_KEPT = timedelta(days=7)
"""How long a receiver remembers what it was told last by a sender that tells it nothing more."""
assert MARKS_KEPT > 2 * NOTIFY_AGE_MAX

FIRING_MAX = 256
"""Alarms of a node that fire at once."""

_LATE_MS = 5_000  # an alarm that is so late is a part of a backlog
_SCAN_MAX = 2_000
_SWEEP_MAX = 200
_AGAIN_S = 0.5
_NEVER = 1 << 62
_NO_RETRY_COUNT = frozenset((pb.CODE_UNAVAILABLE, pb.CODE_OVERLOADED, pb.CODE_WRONG_OWNER))


class Router(Protocol):
    """What takes the calls: a dispatcher."""

    def submit(self, call: pb.Call, origin: Any) -> None: ...
    def reachable(self, kind: str, key: str) -> bool: ...


class Turns(Protocol):
    """The engine, as far as alarms need it."""

    def fire(self, kind: str, key: str, name: str, due_ms: int, request_id: bytes, done: Callable[[pb.Error | None], None]) -> None:
        """Have an alarm fire; `done` gets what came of it."""

    def alarm_failed(self, kind: str, key: str, name: str, due_ms: int, error: pb.Error, done: Callable[[], None]) -> None:
        """Write down that a firing failed."""


@dataclass(slots=True)
class _Duties:
    """What a shard has to do. Times are Unix time in ms."""

    alarm_due: int = _NEVER
    alarm_cursor: bytes = b""
    alarm_not_before: float = 0.0
    delayed_due: int = _NEVER
    delayed: int = 0
    letters: int = 0
    owed: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    """Writes that the shard could not take at the moment."""


class Deliveries:
    """All that the shards of a node send by themselves. Lives on the loop; `tick` about ten times a second."""

    def __init__(
        self,
        app: App,
        store: Store,
        shards: Shards,
        router: Router,
        turns: Turns,
        entry: Callable[[Shard], Entry],
        limits: OutboxLimits,
    ) -> None:
        """`entry`: the entry that is gathering for a shard."""
        self._app = app
        self._store = store
        self._shards = shards
        self._router = router
        self._turns = turns
        self._entry = entry
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self.outbox = Outbox(limits, random.Random(), boottime())
        self._duties: dict[Shard, _Duties] = {}
        self._number = 0
        self._pumping = False
        self._timer: asyncio.TimerHandle | None = None
        self._moving: set[bytes] = set()
        self._firing: set[bytes] = set()
        self._paused: frozenset[tuple[str, str]] = frozenset()
        self._sweep: tuple[int, bytes] = (0, b"")
        self.alarms_fired = 0
        self.alarms_failed = 0

    # -- what turns do

    def next_sequence(self, shard: Shard) -> bytes:
        """A sequence above all that were given for the shard: epochs grow with each owner, the number within a process."""
        self._number += 1
        return keys.sequence(shard.epoch, self._number)

    def room(self, shard: Shard, sender: Target, more: int) -> str | None:
        """Why an object may not notify once more, after `more` of this turn; None when it may."""
        return self.outbox.room(shard, sender, more)

    def room_delayed(self, shard: Shard) -> str | None:
        """The same for one that is delayed."""
        if self._known(shard).delayed >= self._limits.shard_delayed_max:
            return f"{self._limits.shard_delayed_max} delayed notifications wait in shard {shard.number}"
        return None

    def stage(self, entry: Entry, row: Notification, delay_ms: int) -> None:
        """Put a notification into the entry of the turn that sends it."""
        shard = entry.shard
        self._known(shard)  # what the outbox had before is read before it has this
        sequence = self.next_sequence(shard)
        if delay_ms > 0:
            due = row.created_ms + delay_ms
            entry.rows.append((keys.due_key(shard.number, keys.DELAYED, due, sequence), encode(row)))
            self._known(shard).delayed += 1
            self.due_at(entry, due, delayed=True)
        else:
            entry.rows.append((keys.index_prefix(shard.number, keys.OUTBOX) + sequence, encode(row)))
            if entry.notes is None:
                entry.notes = []
            entry.notes.append(Note(shard, sequence, row))

    def due_at(self, entry: Entry, due_ms: int, delayed: bool = False) -> None:
        """Something is due when this entry is committed, and it is that time."""
        if entry.dues is None:
            entry.dues = []
        entry.dues.append((delayed, due_ms))

    def committed(self, entry: Entry) -> None:
        """The entry is committed: what is in it may leave."""
        if not entry.shard.owned:
            return
        duties = self._known(entry.shard)
        for delayed, due in entry.dues or ():
            if delayed:
                duties.delayed_due = min(duties.delayed_due, due)
            else:
                duties.alarm_due = min(duties.alarm_due, due)
        if entry.notes:
            self.outbox.add(entry.notes, self._loop.time())
            self._pump_soon()

    # -- shards come and go

    def _known(self, shard: Shard) -> _Duties:
        duties = self._duties.get(shard)
        if duties is None:
            duties = self._duties[shard] = _Duties()
            self._load(shard, duties)
        return duties

    def _load(self, shard: Shard, duties: _Duties) -> None:
        number = shard.number
        outbox = [
            Note(shard, key[keys.INDEX_PREFIX_BYTES :], decode_notification(value), backlog=True)
            for key, value in self._rows(number, keys.OUTBOX)
        ]
        if outbox:
            log.info("shard %d: %d notifications are to be delivered", number, len(outbox))
            self.outbox.add(outbox, self._loop.time())
            self._pump_soon()
        for key, _ in self._rows(number, keys.DELAYED):
            duties.delayed += 1
            duties.delayed_due = min(duties.delayed_due, keys.read_due_key(key)[0])
        duties.letters = sum(1 for _ in self._rows(number, keys.LETTERS))
        for key, _ in self._rows(number, keys.ALARMS):
            duties.alarm_due = keys.read_due_key(key)[0]
            break

    def _rows(self, shard: int, index: int) -> Iterable[tuple[bytes, bytes]]:
        prefix = keys.index_prefix(shard, index)
        return self._store.scan("state", prefix, keys.after(prefix))

    def drop(self, shards: set[Shard]) -> None:
        """These are not owned any more."""
        for shard in shards:
            if self._duties.pop(shard, None) is not None:
                self.outbox.drop(shard)

    def follow(self, paused: frozenset[tuple[str, str]]) -> None:
        """Operators have paused these: kinds (with an empty key) and objects."""
        if paused != self._paused:
            self._paused = paused
            self.outbox.resumed(self.paused)
            for duties in self._duties.values():
                duties.alarm_not_before = 0.0
            self._pump_soon()

    def paused(self, target: Target) -> bool:
        """Whether deliveries and alarms to an object wait."""
        return bool(self._paused) and (target in self._paused or (target[0], "") in self._paused)

    # -- time passes

    def tick(self) -> None:
        """Take up shards that serve by now, move and fire what is due."""
        now, wall = boottime(), _now_ms()
        for shard in self._shards.serving(now):
            duties = self._known(shard)
            if not self._may_write(shard):
                continue
            if duties.owed:
                owed, duties.owed = duties.owed, []
                self.write(shard, owed)
            if duties.delayed_due <= wall:
                self._move_delayed(shard, duties, wall)
            if duties.alarm_due <= wall and duties.alarm_not_before <= self._loop.time():
                self._fire_due(shard, duties, wall)
        self._sweep_marks(wall)
        self._pump()

    @staticmethod
    def _may_write(shard: Shard) -> bool:
        return shard.owned and not shard.closing and shard.read_only is None

    def _move_delayed(self, shard: Shard, duties: _Duties, wall: int) -> None:
        """Put delayed notifications whose time has come into the outbox, behind what is there."""
        prefix = keys.index_prefix(shard.number, keys.DELAYED)
        rows: list[tuple[bytes, bytes | None]] = []
        notes: list[Note] = []
        for key, value in self._store.scan("state", prefix, keys.after(prefix)):
            due, _ = keys.read_due_key(key)
            if due > wall or len(notes) >= _SCAN_MAX:
                duties.delayed_due = due
                break
            if key in self._moving:
                continue
            self._moving.add(key)
            note = Note(shard, self.next_sequence(shard), decode_notification(value))
            rows += [(key, None), (keys.index_prefix(shard.number, keys.OUTBOX) + note.sequence, value)]
            notes.append(note)
        else:
            duties.delayed_due = _NEVER
        if notes:
            duties.delayed -= len(notes)
            moved = [key for key, value in rows if value is None]
            entry = self.write(shard, rows, notes)
            self._when_settled(entry, lambda: self._moving.difference_update(moved))

    def _fire_due(self, shard: Shard, duties: _Duties, wall: int) -> None:
        prefix = keys.index_prefix(shard.number, keys.ALARMS)
        end = keys.due_key(shard.number, keys.ALARMS, wall + 1, b"")
        start = max(prefix, duties.alarm_cursor)
        looked = 0
        held = 0
        for key, _ in self._store.scan("state", start, end):
            looked += 1
            due, rest = keys.read_due_key(key)
            if looked > _SCAN_MAX or len(self._firing) >= FIRING_MAX:
                duties.alarm_cursor = key  # go on here
                return
            kind, name_of, raw = keys.read_ident(rest)
            if key in self._firing:
                continue
            if kind not in self._app.kinds or self.paused((kind, name_of)):
                held += 1
                continue
            if wall - due > _LATE_MS and not self.outbox.bucket.take(self._loop.time()):
                duties.alarm_cursor = key
                return
            self._fire(shard, key, kind, name_of, raw.decode(), due)
        duties.alarm_cursor = b""
        if held:
            duties.alarm_not_before = self._loop.time() + _AGAIN_S
        else:
            following = next(iter(self._store.scan("state", end, keys.after(prefix))), None)
            if looked:
                duties.alarm_not_before = self._loop.time() + 0.05  # what fires now is still in the index
            else:
                duties.alarm_due = _NEVER if following is None else keys.read_due_key(following[0])[0]

    def _fire(self, shard: Shard, index_key: bytes, kind: str, key: str, name: str, due: int) -> None:
        raw = self._store.get("state", keys.alarm_prefix(shard.number, kind, key) + name.encode())
        scheduled = decode_alarm(raw).scheduled_ms if raw is not None else due
        self._firing.add(index_key)

        def release() -> None:
            self._firing.discard(index_key)

        def written() -> None:
            self._loop.call_later(0.05, release)

        def done(error: pb.Error | None) -> None:
            if error is None:
                self.alarms_fired += 1
                release()
            elif error.code in _NO_RETRY_COUNT:
                self._loop.call_later(2 * _AGAIN_S, release)
            else:
                self.alarms_failed += 1
                self._turns.alarm_failed(kind, key, name, due, error, written)

        self._turns.fire(kind, key, name, due, firing_id(kind, key, name, scheduled), done)

    # -- delivering

    def _pump_soon(self) -> None:
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        now = self._loop.time()
        for note in self.outbox.take(now, self._ready, self.paused):
            row = note.row
            sender = keys.ident(row.sender_kind, row.sender_key)
            call = pb.Call(
                kind=row.kind,
                key=row.key,
                method=row.method,
                arguments=row.arguments,
                request_id=keyed_id(b"notify", sender, note.sequence),
                timeout_ms=DELIVERY_TIMEOUT_MS,
                notification=note.sequence + sender,
            )
            self._router.submit(call, _Answer(self, note))
        due = self.outbox.due(now)
        if due is not None and self._timer is None:
            self._timer = self._loop.call_later(max(0.005, min(due - now, 0.5)), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._pump()

    def _ready(self, target: Target) -> bool:
        return self._router.reachable(*target)

    def answered(self, note: Note, error: pb.Error | None) -> None:
        """The receiver, or whatever is on the way to it, has answered."""
        failure = None if error is None else _failure(error)
        shard: Shard = note.shard
        kind = self._app.kinds.get(note.row.sender_kind)
        retries = kind.retries if kind is not None else Retries()
        duties = self._duties.get(shard)
        may_die = duties is not None and duties.letters < self._limits.letters_max and self._may_write(shard)
        age_ms = int(retries.notify_age.total_seconds() * 1000)
        now = self._loop.time()
        outcome = self.outbox.answered(note, failure, now, _now_ms(), retries.notify_attempts, age_ms, may_die)
        row_key = keys.index_prefix(shard.number, keys.OUTBOX) + note.sequence
        if duties is not None and shard.owned:
            match outcome:
                case Delivered():
                    self._write_or_owe(shard, duties, [(row_key, None)])
                case Failed():
                    self._write_or_owe(shard, duties, [(row_key, encode(note.row))])
                case Dead(_, why):
                    self._bury(shard, duties, note, why)
        self._pump_soon()

    def _bury(self, shard: Shard, duties: _Duties, note: Note, why: Failure) -> None:
        row = note.row
        letter = Letter(row, _now_ms(), why.code, why.message)
        duties.letters += 1
        own = keys.index_prefix(shard.number, keys.OUTBOX) + note.sequence
        self._write_or_owe(
            shard, duties, [(own, None), (keys.index_prefix(shard.number, keys.LETTERS) + note.sequence, encode(letter))]
        )
        log.error(
            "%s/%s.%s(), a notification of %s/%s, is a dead letter after %d attempts: %s: %s",
            row.kind,
            row.key,
            row.method,
            row.sender_kind,
            row.sender_key,
            row.attempts,
            why.code,
            why.message,
        )

    def bury_alarm(self, entry: Entry, letter: Letter) -> None:
        """Put the dead letter of an alarm into the entry of the turn that gives it up."""
        self._known(entry.shard).letters += 1
        key = keys.index_prefix(entry.shard.number, keys.LETTERS) + self.next_sequence(entry.shard)
        entry.rows.append((key, encode(letter)))

    # -- writing

    def write(self, shard: Shard, rows: list[tuple[bytes, bytes | None]], notes: list[Note] | None = None) -> Entry:
        """Put rows into the shard's entry; `notes` leave when it is committed."""
        entry = self._entry(shard)
        entry.rows += rows
        entry.deletes = True
        entry.bytes += sum([len(key) + len(value or b"") for key, value in rows])
        if notes:
            entry.notes = (entry.notes or []) + notes
        return entry

    def _write_or_owe(self, shard: Shard, duties: _Duties, rows: list[tuple[bytes, bytes | None]]) -> None:
        if self._may_write(shard):
            self.write(shard, rows)
        else:
            duties.owed += rows

    def _when_settled(self, entry: Entry, done: Callable[[], None]) -> None:
        waiter = self._loop.create_future()
        if entry.waiters is None:
            entry.waiters = []
        entry.waiters.append(waiter)
        waiter.add_done_callback(lambda _: self._loop.call_later(0.2, done))  # by then the store shows it

    def _sweep_marks(self, wall: int) -> None:
        """Forget what was taken long ago, a few rows at a time."""
        shards = sorted((shard for shard in self._duties if self._may_write(shard)), key=lambda shard: shard.number)
        if not shards:
            return
        number, cursor = self._sweep
        shard = next((shard for shard in shards if shard.number >= number), None)
        if shard is None:
            self._sweep = (0, b"")
            return
        if shard.number != number:
            cursor = b""
        prefix = keys.index_prefix(shard.number, keys.MARKS)
        oldest = wall - int(MARKS_KEPT.total_seconds() * 1000)
        gone: list[tuple[bytes, bytes | None]] = []
        for looked, (key, value) in enumerate(self._store.scan("state", max(prefix, cursor), keys.after(prefix))):
            if looked >= _SWEEP_MAX:
                self._sweep = shard.number, key
                break
            if int.from_bytes(value[keys.SEQUENCE_BYTES :], "big") < oldest:
                gone.append((key, None))
        else:
            self._sweep = shard.number + 1, b""
        if gone:
            self.write(shard, gone)

    @property
    def letters(self) -> int:
        """Dead letters of the shards that this node owns."""
        return sum(duties.letters for duties in self._duties.values())

    def letters_changed(self, shard: Shard, by: int) -> None:
        """An operator has replayed or dropped some."""
        self._known(shard).letters += by

    def counts(self) -> dict[str, int]:
        """For `StatsResponse`."""
        oldest = self.outbox.oldest_ms()
        return {
            "outbox": self.outbox.depth,
            "outbox_oldest_ms": 0 if oldest is None else max(0, _now_ms() - oldest),
            "notifications_delivered": self.outbox.delivered,
            "notification_retries": self.outbox.retries,
            "notifications_delayed": sum(duties.delayed for duties in self._duties.values()),
            "dead_letters": self.letters,
            "alarms_fired": self.alarms_fired,
            "alarms_failed": self.alarms_failed,
        }


class _Answer:
    """Waits for the answer to one delivery. Implements `holdfast_cluster.dispatch.Origin`."""

    __slots__ = ("_deliveries", "_note")

    def __init__(self, deliveries: Deliveries, note: Note) -> None:
        self._deliveries = deliveries
        self._note = note

    def push(self, reply: pb.Reply, size: int) -> None:
        self._deliveries.answered(self._note, None if reply.result else reply.error)


def _failure(error: pb.Error) -> Failure:
    code = pb.Code.Name(error.code).removeprefix("CODE_")
    if error.code == pb.CODE_APPLICATION:
        return Failure(code, f"{error.type}: {error.message}", counts=True, final=error.type == "Rejected")
    return Failure(code, error.message, counts=error.code not in _NO_RETRY_COUNT)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
