"""One shard's copy on this node."""

from __future__ import annotations

from collections import deque

from holdfast_node.log.shards import Entry, Shard
from holdfast_node.replication.core.events import LogEntry
from holdfast_node.replication.core.replica import Replica


class Copy:
    """One shard's copy on this node. `shard` is there while this node owns it; `waiting` are its
    entries that are not committed.

    `behind`: committed entries that are in the log only. Nobody reads the state of a copy that is
    not owned. `order` and `raw`: of the assignment that the replica was told last. Replicas get the
    order in place of etcd's revision.
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
