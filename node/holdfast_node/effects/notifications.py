"""Notifications on their way into the outbox. `services/notifications.py` delivers them from
there."""

from __future__ import annotations

from collections.abc import Callable

from holdfast_node.effects.outbox import Outbox, PendingNotification
from holdfast_node.effects.records import Notification, decode_notification
from holdfast_node.effects.writes import ShardWrites
from holdfast_node.log.shard_service import ScanBudget
from holdfast_node.log.shards import Entry, Shard
from holdfast_node.store import keys
from holdfast_node.store.rocks import Store


class Notifications:
    """The outbox of the shards that a node owns, in memory and in the store. Implements
    `ShardService`.

    The `listeners` are called when the outbox has new notifications.
    """

    def __init__(self, store: Store, writes: ShardWrites, outbox: Outbox) -> None:
        self._store = store
        self._writes = writes
        self.outbox = outbox
        self.listeners: list[Callable[[], None]] = []
        self._opened: set[Shard] = set()

    def stage(self, entry: Entry, row: Notification, raw: bytes) -> None:
        """Put a notification into the entry of the turn that sends it. The shard must be opened."""
        pending = PendingNotification(entry.shard, self._writes.next_sequence(entry.shard), row)
        entry.rows.append(
            (keys.index_prefix(entry.shard.number, keys.OUTBOX) + pending.sequence, raw)
        )
        self.outbox.stage(pending)
        self.leave_with(entry, [pending])

    def leave_with(self, entry: Entry, pending: list[PendingNotification]) -> None:
        """Have these notifications enter the outbox when this entry, which has their rows, is
        committed."""
        entry.waiters.append(_Leaves(self, pending))

    def add(self, pending: list[PendingNotification]) -> None:
        """Add committed notifications to the outbox."""
        self.outbox.add(pending)
        for listener in self.listeners:
            listener()

    # -- holdfast_node.log.shard_service.ShardService

    def opened(self, shard: Shard) -> None:
        if shard in self._opened:
            return
        shard.check_owned()
        prefix = keys.index_prefix(shard.number, keys.OUTBOX)
        stored = [
            PendingNotification(
                shard, key[keys.INDEX_PREFIX_BYTES :], decode_notification(value), backlog=True
            )
            for key, value in self._store.scan("state", prefix, keys.after(prefix))
        ]
        self._opened.add(shard)
        if stored:
            self.add(stored)

    def closed(self, shard: Shard) -> None:
        self._opened.discard(shard)
        self.outbox.drop([shard])

    def tick(self, shard: Shard, now_ms: int, budget: ScanBudget) -> None:
        pass


class _Leaves:
    """Notifications that enter the outbox when their entry is committed. Implements
    `holdfast_node.log.shards.Waiter`."""

    __slots__ = ("_notifications", "_pending")

    def __init__(self, notifications: Notifications, pending: list[PendingNotification]) -> None:
        self._notifications = notifications
        self._pending = pending

    def settled(self, entry: Entry) -> None:
        if entry.committed and entry.shard.owned:
            self._notifications.add(self._pending)
