"""The outbox decides which notification goes next, and what to do when a delivery fails. Pure: no
I/O, no clock.

There is one queue for each pair of sender and receiver. Only its head is on its way, which keeps
the order. A head is in one of these places:

- *fresh*: committed a moment ago, goes at once;
- *backlog*: found at a take-over, or to be tried again: goes at a bounded rate;
- *waiting*: for its time (`backoff`, or its receiver cannot be reached);
- *crowded*: its receiver has as many on their way as it may have;
- *paused*: an operator has stopped what goes to its receiver;
- *on its way*, until `answered`.

The number of notifications on their way is bounded: in all, for each receiver, and to a half for
repeated attempts. So a stuck receiver does not delay the others. (If as many receivers as the bound
are stuck at their first notification, they delay the others until their deliveries time out.)
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

from holdfast_node.effects.records import Notification, sender_name

Target = tuple[str, str]

_LOOK_MAX = 2_000  # the most notifications that one `take` looks at
_UNREACHABLE_S = ((0.2, 0.5), (0.5, 1.5))


@dataclass(frozen=True, slots=True)
class OutboxLimits:
    """Bounds of one node's outbox."""

    object_max: int = 1_000
    """Notifications of one object in the outbox."""
    node_max: int = 100_000
    """Notifications of all objects of the node."""
    node_bytes_max: int = 256 << 20
    shard_delayed_max: int = 100_000
    """Delayed notifications of one shard."""
    dead_letters_max: int = 10_000
    """Dead letters of one shard. A shard that has so many makes no more: its owner then tries
    failed notifications and alarms again for ever."""
    on_way_max: int = 2_048
    receiver_on_way_max: int = 128
    backlog_per_s: float = 1_000.0
    """The rate at which a backlog is delivered, and at which late alarms fire."""
    backoff_s: tuple[float, float] = (0.1, 60.0)


@dataclass(slots=True, eq=False)
class PendingNotification:
    """A notification in the outbox of `shard`. `sequence`: its place among the notifications that
    the shard sends. `backlog`: it goes at the bounded rate."""

    shard: Any
    sequence: bytes
    row: Notification
    backlog: bool = False
    tries: int = 0
    gone: bool = False
    again: bool = False  # it is on its way, and came from the backlog
    unreached: bool = False

    @property
    def target(self) -> Target:
        return self.row.kind, self.row.key

    @property
    def sender(self) -> Target:
        return self.row.sender_kind, self.row.sender_key


@dataclass(frozen=True, slots=True)
class Failure:
    """The reason why an attempt failed. `final`: another attempt would not help. `counts`: the
    receiver's handler itself failed."""

    code: str
    message: str
    counts: bool
    final: bool = False


@dataclass(frozen=True, slots=True)
class Delivered:
    note: PendingNotification


@dataclass(frozen=True, slots=True)
class Failed:
    """A failed attempt: the notification is tried again. Its row has changed."""

    note: PendingNotification


@dataclass(frozen=True, slots=True)
class Dead:
    """A notification that is given up: it becomes a dead letter."""

    note: PendingNotification
    failure: Failure


class Bucket:
    """A token bucket: `per_s` tokens a second. It saves up the tokens of a tenth of a second at
    most, but at least one token."""

    def __init__(self, per_s: float, now: float) -> None:
        self._per_s = per_s
        self._most = max(1.0, per_s / 10)
        self._tokens = self._most
        self._at = now

    def take(self, now: float) -> bool:
        """Take a token if there is one, and return whether there was."""
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._per_s)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Outbox:
    """All notifications of the shards that a node owns. Times are seconds of any clock that does
    not jump, except `wall_ms`."""

    def __init__(
        self, limits: OutboxLimits, uniform: Callable[[float, float], float], now: float
    ) -> None:
        """`uniform(least, most)`: returns a random number between them."""
        self._limits = limits
        self._uniform = uniform
        self._queues: dict[tuple[Any, Target, Target], deque[PendingNotification]] = {}
        self._of_sender: Counter[tuple[Any, Target]] = Counter()
        # By shard: notifications that are counted, and not committed yet.
        self._staged: dict[Any, set[PendingNotification]] = {}
        self._fresh: deque[PendingNotification] = deque()
        self._backlog: deque[PendingNotification] = deque()
        self._waiting: list[tuple[float, int, PendingNotification]] = []
        self._crowded: dict[Target, deque[PendingNotification]] = {}
        self._paused: list[PendingNotification] = []
        self._on_way: Counter[Target] = Counter()
        self._number = 0
        self.bucket = Bucket(limits.backlog_per_s, now)
        self.on_way = 0
        self._again_on_way = 0
        self.depth = 0
        self.bytes = 0
        self.delivered = 0
        self.retries = 0

    def room(self, shard: Any, sender: Target, more: int) -> str | None:
        """Return why an object may not send one more notification; None if it may. `more`: how many
        it sends that are not in the outbox yet."""
        if self._of_sender[shard, sender] + more >= self._limits.object_max:
            return (
                f"{self._limits.object_max} notifications of {sender_name(*sender)} wait to be"
                " delivered"
            )
        if self.depth + more >= self._limits.node_max or self.bytes > self._limits.node_bytes_max:
            return (
                f"{self.depth} notifications of {self.bytes} bytes wait to be delivered on this"
                " node"
            )
        return None

    def stage(self, note: PendingNotification) -> None:
        """Count a notification that is about to be committed."""
        self._staged.setdefault(note.shard, set()).add(note)
        self._count_in(note)

    def add(self, notes: Iterable[PendingNotification]) -> None:
        """Add committed notifications, in the order of their sequences."""
        for note in notes:
            if (staged := self._staged.get(note.shard)) is not None and note in staged:
                staged.discard(note)
            else:
                self._count_in(note)
            key = (note.shard, note.sender, note.target)
            queue = self._queues.get(key)
            if queue is None:
                queue = self._queues[key] = deque()
            queue.append(note)
            if len(queue) == 1:
                self._place(note)

    def drop(self, shards: Collection[Any]) -> None:
        """Drop the notifications of shards that this node does not own any more: their new owners
        deliver them."""
        for shard in shards:
            for note in self._staged.pop(shard, ()):
                self._count_out(note)
        for key in [key for key in self._queues if key[0] in shards]:
            for note in self._queues.pop(key):
                self._count_out(note)
        self._paused = [note for note in self._paused if not note.gone]
        self._uncrowd()

    def of(self, shard: Any, sender: Target) -> list[PendingNotification]:
        """Return the notifications of an object that wait or are on their way, in no order."""
        if not self._of_sender[shard, sender]:
            return []
        return [
            note
            for key, queue in self._queues.items()
            if key[0] is shard and key[1] == sender
            for note in queue
        ]

    def from_clients(self, shard: Any, target: Target) -> list[PendingNotification]:
        """Return the notifications of clients to an object of the shard that wait or are on their
        way, in no order."""
        return [
            note
            for key, queue in self._queues.items()
            if key[0] is shard and key[2] == target and not key[1][0]
            for note in queue
        ]

    def forget(self, shard: Any, sender: Target) -> list[PendingNotification]:
        """Drop an object's notifications that are not delivered, and return them. Those on their
        way may still arrive."""
        gone = []
        for key in [key for key in self._queues if key[0] is shard and key[1] == sender]:
            for note in self._queues.pop(key):
                self._count_out(note)
                gone.append(note)
        self._paused = [note for note in self._paused if not note.gone]
        self._uncrowd()
        return gone

    def take(
        self, now: float, ready: Callable[[Target], bool], paused: Callable[[Target], bool]
    ) -> list[PendingNotification]:
        """Return the notifications that go now. `ready(receiver)`: whether the receiver's node can
        be reached. `paused(receiver)`: whether an operator has paused its notifications."""
        while self._waiting and self._waiting[0][0] <= now:
            note = heappop(self._waiting)[2]
            if not note.gone:
                self._backlog.append(note)
        out: list[PendingNotification] = []
        for _ in range(_LOOK_MAX):
            if self.on_way >= self._limits.on_way_max:
                break
            if self._fresh:
                note = self._fresh.popleft()
                backlog = False
            elif self._backlog and self._again_on_way < self._limits.on_way_max // 2:
                note = self._backlog.popleft()
                backlog = True
            else:
                break
            if note.gone:
                continue
            target = note.target
            if paused(target):
                self._paused.append(note)
            elif not ready(target):
                self._wait(note, now + self._uniform(*_UNREACHABLE_S[note.unreached]))
                note.unreached = True
            elif self._on_way[target] >= self._limits.receiver_on_way_max:
                self._crowded.setdefault(target, deque()).append(note)
            elif backlog and not self.bucket.take(now):
                self._backlog.appendleft(note)
                break
            else:
                note.unreached = False
                note.again = backlog
                self._again_on_way += backlog
                self._on_way[target] += 1
                self.on_way += 1
                out.append(note)
        self._uncrowd()
        return out

    def due(self, now: float) -> float | None:
        """Return when `take` may next return notifications; None while it returns none before an
        event."""
        if self.on_way >= self._limits.on_way_max:
            return None
        if self._fresh:
            return now
        if self._backlog and self._again_on_way < self._limits.on_way_max // 2:
            return now + 0.02
        return self._waiting[0][0] if self._waiting else None

    def resumed(self, paused: Callable[[Target], bool]) -> None:
        """Put the paused notifications of receivers that are not paused any more into the
        backlog."""
        held, self._paused = self._paused, []
        for note in held:
            if not note.gone:
                (self._paused if paused(note.target) else self._backlog).append(note)

    def answered(
        self,
        note: PendingNotification,
        failure: Failure | None,
        now: float,
        wall_ms: int,
        attempts_max: int,
        age_max_ms: int,
        may_die: bool,
    ) -> Delivered | Failed | Dead | None:
        """Decide what to do with a notification that was on its way. `failure`: None if it was
        delivered.

        Return None if the notification was dropped meanwhile, or if the row of a failed one need
        not change.
        """
        target = note.target
        self.on_way -= 1
        self._again_on_way -= note.again
        self._on_way[target] -= 1
        if not self._on_way[target]:
            del self._on_way[target]
        if target in self._crowded:
            self._let_in(target, 1)
        if note.gone:
            return None
        if failure is None:
            self.delivered += 1
            self._pop(note)
            return Delivered(note)
        row = note.row
        first = not row.first_ms
        row.first_ms = row.first_ms or wall_ms
        if failure.counts:
            row.attempts += 1
        row.error = failure.message
        over = row.attempts >= attempts_max or wall_ms - row.first_ms > age_max_ms
        if (failure.final or over) and may_die:
            self._pop(note)
            return Dead(note, failure)
        least, most = self._limits.backoff_s
        self.retries += 1
        note.tries += 1
        note.backlog = True
        self._wait(
            note, now + self._uniform(0.5, 1.0) * min(most, least * 2 ** min(note.tries - 1, 20))
        )
        return Failed(note) if failure.counts or first else None

    def _let_in(self, target: Target, most: int) -> None:
        """Let up to `most` crowded notifications of a receiver go on."""
        crowd = self._crowded[target]
        while crowd and most:
            note = crowd.popleft()
            if not note.gone:
                most -= 1
                self._place(note)
        if not crowd:
            del self._crowded[target]

    def _uncrowd(self) -> None:
        """Let crowded notifications go on if their receiver has none on its way. No answer would
        release them."""
        for target in [target for target in self._crowded if not self._on_way[target]]:
            self._let_in(target, self._limits.receiver_on_way_max)

    def oldest_ms(self) -> int | None:
        """Return when the oldest notification was sent, Unix time in ms; None if there is none."""
        return min((queue[0].row.created_ms for queue in self._queues.values()), default=None)

    def _place(self, note: PendingNotification) -> None:
        (self._backlog if note.backlog else self._fresh).append(note)

    def _wait(self, note: PendingNotification, until: float) -> None:
        self._number += 1
        heappush(self._waiting, (until, self._number, note))

    def _pop(self, note: PendingNotification) -> None:
        """Remove a notification that is the head of its queue, and let the next one go."""
        key = (note.shard, note.sender, note.target)
        queue = self._queues[key]
        assert queue[0] is note
        queue.popleft()
        self._count_out(note)
        if queue:
            self._place(queue[0])
        else:
            del self._queues[key]

    def _count_in(self, note: PendingNotification) -> None:
        self._of_sender[note.shard, note.sender] += 1
        self.depth += 1
        self.bytes += note.row.size

    def _count_out(self, note: PendingNotification) -> None:
        note.gone = True
        sender = (note.shard, note.sender)
        self._of_sender[sender] -= 1
        if not self._of_sender[sender]:
            del self._of_sender[sender]
        self.depth -= 1
        self.bytes -= note.row.size
