"""The effects with which objects and clients send notifications, and with which sent ones are
forgotten."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.errors import Overloaded

from holdfast_node.effects.delayed import DelayedNotifications
from holdfast_node.effects.notifications import Notifications
from holdfast_node.effects.outbox import Target
from holdfast_node.effects.records import Notification, encode
from holdfast_node.effects.writes import ShardWrites
from holdfast_node.log.shards import Entry, Shard
from holdfast_node.store import keys

_KEY_BYTES = 60  # about the bytes of its row's key


class Sent:
    """All notifications of a node's shards that are not delivered yet, with or without a delay."""

    def __init__(
        self, notifications: Notifications, delays: DelayedNotifications, writes: ShardWrites
    ) -> None:
        self.notifications = notifications
        self.delays = delays
        self._writes = writes

    def check_room(self, shard: Shard, sender: Target, more: int, delay_ms: int) -> None:
        """Raise Overloaded if `sender` may not send one more notification. `more`: how many this
        turn sends already.

        Also raises if the shard's rows cannot be read, so that staging afterwards cannot fail.
        """
        self.notifications.opened(shard)
        full = (
            self.delays.room(shard)
            if delay_ms
            else self.notifications.outbox.room(shard, sender, more)
        )
        if full is not None:
            raise Overloaded(full, definite=True, retryable=True, retry_after_s=1.0)

    def stage(self, entry: Entry, row: Notification, raw: bytes, delay_ms: int) -> None:
        """Put a notification into an entry. Call `check_room` first."""
        if delay_ms > 0:
            self.delays.stage(entry, row, raw, delay_ms)
        else:
            self.notifications.stage(entry, row, raw)

    def forget(self, entry: Entry, sender: Target, delayed: list[bytes]) -> None:
        """Put the deletion of all undelivered notifications of `sender` into an entry. `delayed`:
        the keys of its delayed ones."""
        prefix = keys.index_prefix(entry.shard.number, keys.OUTBOX)
        forgotten = self.notifications.outbox.forget(entry.shard, sender)
        gone = [prefix + pending.sequence for pending in forgotten] + delayed
        self._writes.forget(entry.shard, gone)
        for key in gone:
            entry.rows.append((key, None))
            entry.deletes = True
        self.delays.forget(entry, delayed)


class SendNotification:
    """A notification that a turn or a client sends. A `TurnEffect`. `raw`: the row as it is
    stored."""

    __slots__ = ("_sent", "delay_ms", "raw", "row")

    def __init__(self, sent: Sent, row: Notification, delay_ms: int) -> None:
        self._sent = sent
        self.row = row
        self.raw = encode(row)  # a row that cannot be stored fails here
        self.delay_ms = delay_ms

    @property
    def size(self) -> int:
        return len(self.raw) + _KEY_BYTES

    def stage(self, entry: Entry) -> None:
        self._sent.stage(entry, self.row, self.raw, self.delay_ms)


@dataclass(frozen=True, slots=True)
class ForgetSent:
    """The deletion of all undelivered notifications of an object that a turn deletes. A
    `TurnEffect`.

    `delayed`: the keys of the delayed ones.
    """

    sent: Sent
    sender: Target
    delayed: list[bytes]

    @property
    def size(self) -> int:
        return 0

    def stage(self, entry: Entry) -> None:
        self.sent.forget(entry, self.sender, self.delayed)
