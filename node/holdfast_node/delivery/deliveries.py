"""The shell of delivering: reads what owned shards have to send and to fire, hands it on, and writes what became of it.

Everything that it writes goes into the shard's entries, beside what turns write, so it is committed in the same order.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

from holdfast.app import NOTIFY_AGE_MAX, App, KindOptions
from holdfast.errors import Unavailable, WrongOwner, code_name, is_refusal
from holdfast.ids import effect_id
from holdfast.tracing import TRACEPARENT
from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.clock import boottime

from holdfast_node import keys
from holdfast_node.delivery.census import AlarmCensus
from holdfast_node.delivery.expiry import Expiry
from holdfast_node.delivery.firing import NEVER, AlarmClock, Look, Turns
from holdfast_node.delivery.outbox import Dead, Delivered, Failed, Failure, Note, Outbox, OutboxLimits, Target
from holdfast_node.delivery.records import Letter, decode_notification, encode, metadata_of
from holdfast_node.shards import Shard, Shards
from holdfast_node.store import Store

if TYPE_CHECKING:
    from holdfast_node.commit import Entry
    from holdfast_node.hosting import ShardKinds
    from holdfast_node.outgoing import Notify

log = logging.getLogger(__name__)

DELIVERY_TIMEOUT_MS = 30_000
MARKS_KEPT = timedelta(days=7)
"""How long, of its shard's time, a receiver remembers what it was told last by a sender that tells it nothing more."""
assert MARKS_KEPT > 2 * NOTIFY_AGE_MAX

_SCAN_MAX = 2_000
_SWEEP_MAX = 200
_BROKEN_S = 10.0
_MOVE_BYTES = 1 << 20
_MOVES_PATIENCE = 100  # times 20 ms
_SAFE_AGE_MS = int((MARKS_KEPT - timedelta(days=1)).total_seconds() * 1000)
_NOT_COUNTED = frozenset((pb.CODE_UNAVAILABLE, pb.CODE_OVERLOADED, pb.CODE_WRONG_OWNER))


class Router(Protocol):
    """What takes the calls: a dispatcher."""

    def submit(self, call: pb.Call, origin: Any) -> int: ...
    def reachable(self, kind: str, key: str) -> bool: ...


@dataclass(slots=True)
class _Duties:
    """What a shard has to do. Times are Unix time in ms."""

    delayed_due: int = NEVER
    delayed: int = 0
    letters: int = 0
    owed: dict[bytes, bytes | None] = field(default_factory=dict)
    """Writes that the shard could not take at the moment."""
    delayed_changes: int = 0
    """Grows with each delayed notification that is sent, and again when it is committed."""
    delayed_senders: tuple[int, set[Target]] = (-1, set())
    """Who had delayed ones, as of that many changes."""


@dataclass(frozen=True, slots=True)
class Forget:
    """What a turn does beside its rows: nothing that its object has sent is to be delivered. `delayed`: the rows of those delayed."""

    delayed: list[bytes]


class Deliveries:
    """All that the shards of a node send by themselves. Lives on the loop; `tick` about ten times a second."""

    def __init__(
        self,
        app: App,
        store: Store,
        shards: Shards,
        router: Router,
        turns: Turns,
        kinds: ShardKinds,
        entry: Callable[[Shard], Entry],
        show: Callable[[], None],
        limits: OutboxLimits,
    ) -> None:
        """`entry`: the entry that is gathering for a shard. `show`: has the store show all that is committed."""
        self._loop = asyncio.get_running_loop()
        self._app = app
        self._store = store
        self._shards = shards
        self._router = router
        self._kinds = kinds
        self._entry = entry
        self.show = show
        self._first = 0
        self._failing: dict[Shard, float] = {}
        self._limits = limits
        self.outbox = Outbox(limits, random.Random(), self._loop.time())
        self._duties: dict[Shard, _Duties] = {}
        self._number = 0
        self.given_up = 0
        """Dead letters that were made here."""
        self._pumping = False
        self._timer: asyncio.TimerHandle | None = None
        self._moving: set[bytes] = set()
        self._forgotten: set[bytes] = set()
        self._paused: frozenset[tuple[str, str]] = frozenset()
        self._sweep: tuple[int, bytes] = (0, b"")
        self.alarms = AlarmClock(app, store, turns, self, kinds, limits.backlog_per_s)
        self.expiry = Expiry(app, store, turns, turns.find, self)
        self.census = AlarmCensus(store, shards)

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

    def letters_full(self, shard: Shard) -> bool:
        """Whether a shard has as many dead letters as it may have: then nothing dies, and is tried on."""
        return self._known(shard).letters >= self._limits.letters_max

    def prepare(self, shard: Shard) -> None:
        """Read what a shard has to send before it gets more. Raises what is wrong with that: staging afterwards cannot fail."""
        self._known(shard)

    def stage(self, entry: Entry, what: Notify) -> None:
        """Put a notification into the entry of the turn that sends it."""
        shard, row, delay_ms = entry.shard, what.row, what.delay_ms
        sequence = self.next_sequence(shard)
        if delay_ms > 0:
            due = row.created_ms + delay_ms
            entry.rows.append((keys.due_key(shard.number, keys.DELAYED, due, sequence), what.raw))
            duties = self._known(shard)
            duties.delayed += 1
            duties.delayed_changes += 1
            self.due_at(entry, due, keys.DELAYED)
        else:
            entry.rows.append((keys.index_prefix(shard.number, keys.OUTBOX) + sequence, what.raw))
            note = Note(shard, sequence, row)
            self.outbox.stage(note)
            entry.waiters.append(_Leaves(self, [note]))

    async def delayed_of(self, shard: Shard, sender: Target) -> list[bytes]:
        """The rows of an object's delayed notifications. Raises Unavailable when the shard's go on moving out for seconds."""
        for _ in range(_MOVES_PATIENCE):
            # Those that are being moved can be read neither there nor in the outbox, until their entry is committed.
            if not self._moves(shard):
                found = await self._scan_delayed(shard, sender)
                if not self._moves(shard):
                    return [key for key in found if self._store.get("state", key) is not None]
            await asyncio.sleep(0.02)
        raise Unavailable("notifications of its shard are about to leave", definite=True, retryable=True, retry_after_s=0.5)

    async def _scan_delayed(self, shard: Shard, sender: Target) -> list[bytes]:
        """The rows; whose others are is remembered until one is sent, so that many objects are deleted by one scan."""
        duties = self._known(shard)
        as_of, senders = duties.delayed_senders
        if not duties.delayed or (as_of == duties.delayed_changes and sender not in senders):
            return []
        self.show()
        as_of, senders, found = duties.delayed_changes, set(), []
        for looked, (key, value) in enumerate(self._rows(shard.number, keys.DELAYED), 1):
            row = decode_notification(value)
            whose = row.sender_kind, row.sender_key
            senders.add(whose)
            if whose == sender:
                found.append(key)
            if looked % _SCAN_MAX == 0:
                await asyncio.sleep(0)
        duties.delayed_senders = as_of, senders
        return found

    def _moves(self, shard: Shard) -> bool:
        prefix = keys.index_prefix(shard.number, keys.DELAYED)
        return any(key.startswith(prefix) for key in self._moving)

    def forget(self, entry: Entry, sender: Target, delayed: list[bytes]) -> None:
        """Put into the entry that what an object has sent, and that is not delivered, is not to be delivered."""
        duties = self._known(entry.shard)
        prefix = keys.index_prefix(entry.shard.number, keys.OUTBOX)
        gone = [prefix + note.sequence for note in self.outbox.forget(entry.shard, sender)] + delayed
        for key in gone:
            duties.owed.pop(key, None)
            entry.rows.append((key, None))
            entry.deletes = True
        duties.delayed -= len(delayed)
        self._forgotten.update(delayed)  # no tick moves them before the entry is there
        self.when_shown(entry, lambda: self._forgotten.difference_update(delayed))

    def due_at(self, entry: Entry, due_ms: int, index: int) -> None:
        """Something of an index (`keys`) is due when this entry is committed, and it is that time."""
        entry.waiters.append(_Due(self, index, due_ms))

    def due_committed(self, shard: Shard, index: int, due_ms: int) -> None:
        """What was put into an index is committed."""
        duties = self._known(shard)
        if index == keys.DELAYED:
            duties.delayed_changes += 1  # what was staged could not be seen before
            duties.delayed_due = min(duties.delayed_due, due_ms)
        elif index == keys.ALARMS:
            self.alarms.due_at(shard, due_ms)
        else:
            self.expiry.due_at(shard, due_ms)

    def leave(self, notes: list[Note]) -> None:
        """These notifications are committed: they may leave."""
        self.outbox.add(notes)
        self._pump_soon()

    # -- shards come and go

    def _known(self, shard: Shard) -> _Duties:
        duties = self._duties.get(shard)
        if duties is None:
            if not shard.owned:  # the end of a turn that was cancelled, say: nothing of the shard may come back
                raise WrongOwner(f"shard {shard.number} is no longer served by this node", retryable=True)
            duties = _Duties()
            self._load(shard, duties)
            self._duties[shard] = duties
        return duties

    def _load(self, shard: Shard, duties: _Duties) -> None:
        number = shard.number
        outbox = [
            Note(shard, key[keys.INDEX_PREFIX_BYTES :], decode_notification(value), backlog=True)
            for key, value in self._rows(number, keys.OUTBOX)
        ]
        for key, _ in self._rows(number, keys.DELAYED):
            duties.delayed += 1
            duties.delayed_due = min(duties.delayed_due, keys.read_due_key(key)[0])
        duties.letters = sum(1 for _ in self._rows(number, keys.LETTERS))
        self.alarms.load(shard)
        self.expiry.load(shard)
        if outbox:
            log.info("shard %d: %d notifications are to be delivered", number, len(outbox))
            self.outbox.add(outbox)
            self._pump_soon()

    def _rows(self, shard: int, index: int) -> Iterable[tuple[bytes, bytes]]:
        prefix = keys.index_prefix(shard, index)
        return self._store.scan("state", prefix, keys.after(prefix))

    def drop(self, shards: set[Shard]) -> None:
        """These are not owned any more."""
        for shard in shards:
            self._failing.pop(shard, None)
            self._duties.pop(shard, None)
            self.alarms.drop(shard)
            self.expiry.drop(shard)
        self.outbox.drop(shards)

    def follow(self, paused: frozenset[tuple[str, str]]) -> None:
        """Operators have paused these: kinds (with an empty key) and objects."""
        if paused != self._paused:
            self._paused = paused
            self.outbox.resumed(self.paused)
            self.alarms.resumed()
            self._pump_soon()

    def paused(self, target: Target) -> bool:
        """Whether deliveries and alarms to an object wait."""
        return bool(self._paused) and (target in self._paused or (target[0], "") in self._paused)

    # -- time passes

    def tick(self) -> None:
        """Take up shards that serve by now, move and fire what is due. What is wrong with one shard does not stop the others."""
        if not self._shards.clock.started:
            return  # nobody knows what is due
        now, wall = boottime(), self._shards.clock.now_ms()
        self.show()  # what is committed may be staged still: an index that is read has to be complete
        look = Look(_SCAN_MAX)
        shards = sorted(self._shards.serving(now), key=lambda shard: shard.number)
        first = self._first % len(shards) if shards else 0
        for i, shard in enumerate((*shards[first:], *shards[:first])):
            if self._failing.get(shard, 0.0) > now:
                continue
            try:
                self._do_duties(shard, wall, look)
            except Exception:
                log.exception("shard %d: its notifications and alarms cannot be read; tried again in %.0f s", shard.number, _BROKEN_S)
                self._failing[shard] = now + _BROKEN_S
            if not look.left:
                self._first = first + i + 1
                break
        self._sweep_marks()
        self.census.tick(wall)
        self._pump()

    def _do_duties(self, shard: Shard, wall: int, look: Look) -> None:
        duties = self._known(shard)
        if not self._may_write(shard):
            return
        if duties.owed:
            owed, duties.owed = duties.owed, {}
            for key, value in owed.items():  # one by one: an entry that is full is closed
                self.write(shard, [(key, value)])
        if duties.delayed_due <= wall:
            self._move_delayed(shard, duties, wall, look)
        self.alarms.fire_due(shard, wall, look)
        self.expiry.sweep(shard, wall, look)

    @staticmethod
    def _may_write(shard: Shard) -> bool:
        return shard.owned and not shard.closing and shard.read_only is None

    def _move_delayed(self, shard: Shard, duties: _Duties, wall: int, look: Look) -> None:
        """Put delayed notifications whose time has come into the outbox, behind what is there."""
        prefix = keys.index_prefix(shard.number, keys.DELAYED)
        rows: list[tuple[bytes, bytes | None]] = []
        notes: list[Note] = []
        size = 0
        for key, value in self._store.scan("state", prefix, keys.after(prefix)):
            due, _ = keys.read_due_key(key)
            if due > wall or size > _MOVE_BYTES or not look.left:
                duties.delayed_due = due
                break
            look.left -= 1
            if key in self._moving or key in self._forgotten:
                continue
            self._moving.add(key)
            note = Note(shard, self.next_sequence(shard), decode_notification(value))
            rows += [(key, None), (keys.index_prefix(shard.number, keys.OUTBOX) + note.sequence, value)]
            notes.append(note)
            size += len(value)
        else:
            duties.delayed_due = NEVER
        if notes:
            duties.delayed -= len(notes)
            moved = [key for key, value in rows if value is None]
            entry = self.write(shard, rows, notes)
            self.when_shown(entry, lambda: self._moving.difference_update(moved))

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
            if row.first_ms and self._shards.clock.now_ms() - row.first_ms > _SAFE_AGE_MS:
                # It was tried, its receiver was paused for days since, and has perhaps forgotten by now that it took it.
                why = "it was tried before a pause of days: whether it took effect is not known any more"
                self._loop.call_soon(self._answered, note, Failure("DEADLINE_EXCEEDED", why, counts=False, final=True))
                continue
            sender = keys.ident(row.sender_kind, row.sender_key)
            call = pb.Call(
                kind=row.kind,
                key=row.key,
                method=row.method,
                arguments=row.arguments,
                request_id=effect_id(b"notify", sender, note.sequence),
                timeout_ms=DELIVERY_TIMEOUT_MS,
                caller=row.caller,
                notification=note.sequence + sender,
                metadata=metadata_of(row.options),
            )
            if row.trace:
                call.metadata[TRACEPARENT] = row.trace
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
        self._answered(note, None if error is None else _failure(error))

    def _answered(self, note: Note, failure: Failure | None) -> None:
        shard: Shard = note.shard
        responsible = note.row.sender_kind or note.row.kind
        kind = self._app.kinds.get(responsible)
        options = kind.options if kind is not None else KindOptions()
        duties = self._duties.get(shard)
        may_die = (
            duties is not None
            and duties.letters < self._limits.letters_max
            and self._may_write(shard)
            and not (kind is None and self._kinds.elsewhere(responsible))  # how long to try is written there
        )
        age_ms = int(options.notify_age.total_seconds() * 1000)
        now = self._loop.time()
        outcome = self.outbox.answered(note, failure, now, self._shards.clock.now_ms(), options.notify_attempts, age_ms, may_die)
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
        letter = Letter(row, self._shards.clock.now_ms(), why.code, why.message)
        duties.letters += 1
        self.given_up += 1
        own = keys.index_prefix(shard.number, keys.OUTBOX) + note.sequence
        self._write_or_owe(
            shard, duties, [(own, None), (keys.index_prefix(shard.number, keys.LETTERS) + note.sequence, encode(letter))]
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

    def bury_alarm(self, entry: Entry, raw: bytes) -> None:
        """Put the dead letter of an alarm into the entry of the turn that gives it up."""
        self._known(entry.shard).letters += 1
        self.given_up += 1
        key = keys.index_prefix(entry.shard.number, keys.LETTERS) + self.next_sequence(entry.shard)
        entry.rows.append((key, raw))

    # -- writing

    def write(self, shard: Shard, rows: list[tuple[bytes, bytes | None]], notes: list[Note] | None = None) -> Entry:
        """Put rows into the shard's entry; `notes` leave when it is committed."""
        entry = self._entry(shard)
        entry.rows += rows
        entry.deletes = True
        entry.bytes += sum([len(key) + len(value or b"") for key, value in rows])
        if notes:
            entry.waiters.append(_Leaves(self, notes))
        return entry

    def _write_or_owe(self, shard: Shard, duties: _Duties, rows: list[tuple[bytes, bytes | None]]) -> None:
        if self._may_write(shard):
            self.write(shard, rows)
        else:
            duties.owed.update(rows)

    def when_shown(self, entry: Entry, done: Callable[[], None]) -> None:
        """Call `done` when the entry is settled and the store shows it."""

        def settled() -> None:
            self.show()
            done()

        entry.waiters.append(_Soon(self._loop, settled))

    def _sweep_marks(self) -> None:
        """Forget what was taken long ago by the shard's time, a few rows at a time."""
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
        oldest = int(shard.time_ms - MARKS_KEPT.total_seconds() * 1000)
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

    def next_due_ms(self) -> int:
        """When something is due first in what is owned, Unix time in ms: a delayed notification, an alarm, or what expires."""
        delayed = min((duties.delayed_due for duties in self._duties.values()), default=NEVER)
        return min(delayed, self.alarms.next_due_ms(), self.expiry.next_due_ms())

    def counts(self) -> dict[str, int]:
        """For `StatsResponse`."""
        oldest = self.outbox.oldest_ms()
        return {
            "outbox": self.outbox.depth,
            "outbox_oldest_ms": 0 if oldest is None else max(0, self._shards.clock.now_ms() - oldest),
            "notifications_delivered": self.outbox.delivered,
            "notification_retries": self.outbox.retries,
            "notifications_delayed": sum(duties.delayed for duties in self._duties.values()),
            "dead_letters": self.letters,
            "alarms_fired": self.alarms.fired,
            "alarms_failed": self.alarms.failed,
            "expired": self.expiry.removed,
        }


class _Leaves:
    """Notifications that leave when their entry is committed. Implements `holdfast_node.commit.Waiter`."""

    __slots__ = ("_deliveries", "_notes")

    def __init__(self, deliveries: Deliveries, notes: list[Note]) -> None:
        self._deliveries = deliveries
        self._notes = notes

    def settled(self, entry: Entry) -> None:
        if entry.committed and entry.shard.owned:
            self._deliveries.leave(self._notes)


class _Due:
    """A row of an index, due at that time. Implements `holdfast_node.commit.Waiter`."""

    __slots__ = ("_deliveries", "_due_ms", "_index")

    def __init__(self, deliveries: Deliveries, index: int, due_ms: int) -> None:
        self._deliveries = deliveries
        self._index = index
        self._due_ms = due_ms

    def settled(self, entry: Entry) -> None:
        if entry.committed and entry.shard.owned:
            self._deliveries.due_committed(entry.shard, self._index, self._due_ms)


class _Soon:
    """Has a function called soon after an entry is settled. Implements `holdfast_node.commit.Waiter`."""

    __slots__ = ("_done", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, done: Callable[[], None]) -> None:
        self._loop = loop
        self._done = done

    def settled(self, entry: Entry) -> None:
        self._loop.call_soon(self._done)


class _Answer:
    """Waits for the answer to one delivery. Implements `holdfast_cluster.dispatch.Origin`."""

    __slots__ = ("_deliveries", "_note")

    def __init__(self, deliveries: Deliveries, note: Note) -> None:
        self._deliveries = deliveries
        self._note = note

    def push(self, reply: pb.Reply, size: int) -> None:
        self._deliveries.answered(self._note, None if reply.result else reply.error)


def _failure(error: pb.Error) -> Failure:
    code = code_name(error.code)
    if error.code == pb.CODE_APPLICATION:
        return Failure(code, f"{error.type}: {error.message}", counts=True, final=is_refusal(error))
    return Failure(code, error.message, counts=error.code not in _NOT_COUNTED)
