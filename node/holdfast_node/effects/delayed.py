"""Notifications with a delay. They wait in an index by time, and go to the outbox when they are
due."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from holdfast.errors import Unavailable

from holdfast_node.effects.notifications import Notifications
from holdfast_node.effects.outbox import PendingNotification, Target
from holdfast_node.effects.records import Notification, decode_notification
from holdfast_node.effects.writes import Row, ShardWrites
from holdfast_node.log.shard_service import ScanBudget
from holdfast_node.log.shards import NEVER, Entry, Shard
from holdfast_node.store import keys
from holdfast_node.store.rocks import Store

_SCAN_STEP = 2_000  # after so many rows the event loop does other work
_MOVE_BYTES = 1 << 20
_MOVES_PATIENCE = 100  # looks, 20 ms apart


@dataclass(slots=True)
class _Delayed:
    """The delayed notifications of a shard. Times are Unix time in ms."""

    due_ms: int = NEVER
    count: int = 0
    changes: int = 0
    """Grows when a notification is sent, and again when it is committed."""
    senders: tuple[int, set[Target]] = field(default_factory=lambda: (-1, set()))
    """`changes` at the last scan, and the senders that had delayed notifications then."""


class DelayedNotifications:
    """The delayed notifications of the shards that a node owns. Implements `ShardService`: moves
    due notifications to the outbox."""

    def __init__(
        self, store: Store, writes: ShardWrites, notifications: Notifications, shard_max: int
    ) -> None:
        """`shard_max`: the most delayed notifications of one shard."""
        self._store = store
        self._writes = writes
        self._notifications = notifications
        self._shard_max = shard_max
        self._shards: dict[Shard, _Delayed] = {}
        self._moving: set[bytes] = set()
        self._forgotten: set[bytes] = set()

    @property
    def count(self) -> int:
        """The number of delayed notifications."""
        return sum(known.count for known in self._shards.values())

    def next_due_ms(self) -> int:
        """Return when the first notification is due, Unix time in ms."""
        return min((known.due_ms for known in self._shards.values()), default=NEVER)

    def room(self, shard: Shard) -> str | None:
        """Return why the shard takes no more delayed notifications; None if it takes one."""
        if self._known(shard).count >= self._shard_max:
            return f"{self._shard_max} delayed notifications wait in shard {shard.number}"
        return None

    def stage(self, entry: Entry, row: Notification, raw: bytes, delay_ms: int) -> None:
        """Put a notification into the entry of the turn that sends it."""
        shard = entry.shard
        due_ms = row.created_ms + delay_ms
        entry.rows.append(
            (
                keys.due_key(shard.number, keys.DELAYED, due_ms, self._writes.next_sequence(shard)),
                raw,
            )
        )
        known = self._shards[shard]
        known.count += 1
        known.changes += 1
        entry.waiters.append(_Due(known, due_ms))

    # -- deletion of what an object has sent

    async def of(self, shard: Shard, sender: Target) -> list[bytes]:
        """Return the keys of the delayed notifications that an object has sent. Raises Unavailable
        if notifications of the shard move to the outbox all the time, for two seconds."""
        for _ in range(_MOVES_PATIENCE):
            # Until its entry is committed, a notification that moves can be read neither here nor
            # in the outbox.
            if not self._moves(shard):
                found = await self._scan(shard, sender)
                if not self._moves(shard):
                    return [key for key in found if self._store.get("state", key) is not None]
            await asyncio.sleep(0.02)
        raise Unavailable(
            "delayed notifications of its shard are moving to the outbox",
            definite=True,
            retryable=True,
            retry_after_s=0.5,
        )

    async def _scan(self, shard: Shard, sender: Target) -> list[bytes]:
        """Return the keys of the sender's rows. The senders of all rows are remembered until the
        next notification is sent, so that one scan serves the deletion of many objects."""
        known = self._known(shard)
        as_of, senders = known.senders
        if not known.count or (as_of == known.changes and sender not in senders):
            return []
        self._writes.flush_visible()
        as_of, senders, found = known.changes, set(), []
        prefix = keys.index_prefix(shard.number, keys.DELAYED)
        for looked, (key, value) in enumerate(
            self._store.scan("state", prefix, keys.after(prefix)), 1
        ):
            row = decode_notification(value)
            whose = row.sender_kind, row.sender_key
            senders.add(whose)
            if whose == sender:
                found.append(key)
            if looked % _SCAN_STEP == 0:
                await asyncio.sleep(0)
        known.senders = as_of, senders
        return found

    def _moves(self, shard: Shard) -> bool:
        prefix = keys.index_prefix(shard.number, keys.DELAYED)
        return any(key.startswith(prefix) for key in self._moving)

    def forget(self, entry: Entry, rows: list[bytes]) -> None:
        """Note that these rows are deleted with this entry, so that no tick moves them before."""
        self._shards[entry.shard].count -= len(rows)
        self._forgotten.update(rows)
        self._writes.when_shown(entry, lambda: self._forgotten.difference_update(rows))

    # -- holdfast_node.log.shard_service.ShardService

    def _known(self, shard: Shard) -> _Delayed:
        self.opened(shard)
        return self._shards[shard]

    def opened(self, shard: Shard) -> None:
        if shard in self._shards:
            return
        shard.check_owned()
        known = _Delayed()
        prefix = keys.index_prefix(shard.number, keys.DELAYED)
        for key, _ in self._store.scan("state", prefix, keys.after(prefix)):
            known.count += 1
            known.due_ms = min(known.due_ms, keys.read_due_key(key)[0])
        self._shards[shard] = known

    def closed(self, shard: Shard) -> None:
        self._shards.pop(shard, None)

    def tick(self, shard: Shard, now_ms: int, budget: ScanBudget) -> None:
        known = self._shards[shard]
        if known.due_ms > now_ms:
            return
        prefix = keys.index_prefix(shard.number, keys.DELAYED)
        rows: list[Row] = []
        moved: list[PendingNotification] = []
        size = 0
        for key, value in self._store.scan("state", prefix, keys.after(prefix)):
            due, _ = keys.read_due_key(key)
            if due > now_ms or size > _MOVE_BYTES or not budget.left:
                known.due_ms = due
                break
            budget.left -= 1
            if key in self._moving or key in self._forgotten:
                continue
            self._moving.add(key)
            pending = PendingNotification(
                shard, self._writes.next_sequence(shard), decode_notification(value)
            )
            rows += [
                (key, None),
                (keys.index_prefix(shard.number, keys.OUTBOX) + pending.sequence, value),
            ]
            moved.append(pending)
            size += len(value)
        else:
            known.due_ms = NEVER
        if moved:
            known.count -= len(moved)
            gone = [key for key, value in rows if value is None]
            entry = self._writes.write(shard, rows)
            self._notifications.leave_with(entry, moved)
            self._writes.when_shown(entry, lambda: self._moving.difference_update(gone))


@dataclass(slots=True)
class _Due:
    """A sent notification, which is due only from its commit on. Implements
    `holdfast_node.log.shards.Waiter`."""

    known: _Delayed
    due_ms: int

    def settled(self, entry: Entry) -> None:
        if entry.committed:
            self.known.changes += 1  # a scan could not see the staged row before
            self.known.due_ms = min(self.known.due_ms, self.due_ms)
