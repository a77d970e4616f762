"""One shard's copy on this node."""

from __future__ import annotations

from collections import deque

from holdfast_node.log.shards import Entry, Shard
from holdfast_node.replication.core.events import LogEntry
from holdfast_node.replication.core.replica import Replica


class Copy:
    """One shard's copy on this node.

    `shard`: the owned shard, from the owner's first entry until it gives the shard up; else None.
    `waiting`: the shard's entries that are not committed yet. `behind`: committed entries that are
    in the log, but not in the state. The node applies them when the log is shortened, or when it
    becomes the owner. `order` and `raw`: the order and the bytes of the newest assignment that the
    replica has got. The replica takes the order for etcd's revision.
    """

    __slots__ = ("behind", "number", "order", "raw", "replica", "shard", "waiting")

    def __init__(self, number: int, replica: Replica) -> None:
        self.number = number
        self.replica = replica
        self.shard: Shard | None = None
        self.waiting: deque[Entry] = deque()
        self.behind: list[LogEntry] = []
        self.order = 0
        self.raw = b""
