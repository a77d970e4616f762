"""What objects and clients send: the effects by which a notification enters the outbox, or by which
what was sent is forgotten."""

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

_KEY_BYTES = 60  # about what the key of its row takes


class Sent:
    """All that the shards of a node have sent and that is not delivered: at once, or with
    a delay."""

    def __init__(
        self, notifications: Notifications, delays: DelayedNotifications, writes: ShardWrites
    ) -> None:
        self.notifications = notifications
        self.delays = delays
        self._writes = writes

    def check_room(self, shard: Shard, sender: Target, more: int, delay_ms: int) -> None:
        """Raises Overloaded when `sender` may not send once more, after `more` of this turn, and
        what is wrong with the shard's rows: staging afterwards cannot fail.
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
        """Put a notification, for which there was room, into an entry."""
        if delay_ms > 0:
            self.delays.stage(entry, row, raw, delay_ms)
        else:
            self.notifications.stage(entry, row, raw)

    def forget(self, entry: Entry, sender: Target, delayed: list[bytes]) -> None:
        """Put into an entry that nothing which `sender` has sent is to be delivered; `delayed` are
        its delayed ones' rows."""
        prefix = keys.index_prefix(entry.shard.number, keys.OUTBOX)
        forgotten = self.notifications.outbox.forget(entry.shard, sender)
        gone = [prefix + pending.sequence for pending in forgotten] + delayed
        self._writes.forget(entry.shard, gone)
        for key in gone:
            entry.rows.append((key, None))
            entry.deletes = True
        self.delays.forget(entry, delayed)


class SendNotification:
    """A turn, or a client, sends a notification. A `TurnEffect`. `raw`: the row as it is stored."""

    __slots__ = ("_sent", "delay_ms", "raw", "row")

    def __init__(self, sent: Sent, row: Notification, delay_ms: int) -> None:
        self._sent = sent
        self.row = row
        self.raw = encode(row)  # what cannot be stored is found out here
        self.delay_ms = delay_ms

    @property
    def size(self) -> int:
        return len(self.raw) + _KEY_BYTES

    def stage(self, entry: Entry) -> None:
        self._sent.stage(entry, self.row, self.raw, self.delay_ms)


@dataclass(frozen=True, slots=True)
class ForgetSent:
    """A turn deletes its object: nothing that it has sent, and that is not delivered, is to be
    delivered. A `TurnEffect`.

    `delayed`: the rows of those that are delayed.
    """

    sent: Sent
    sender: Target
    delayed: list[bytes]

    @property
    def size(self) -> int:
        return 0

    def stage(self, entry: Entry) -> None:
        self.sent.forget(entry, self.sender, self.delayed)
