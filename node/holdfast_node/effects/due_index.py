"""When the next thing of an index by time is due in each shard: what is in memory of alarms, and of
what expires."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast_node.log.shards import NEVER, Entry, Shard
from holdfast_node.store import keys
from holdfast_node.store.rocks import Store


@dataclass(slots=True)
class NextDue:
    """Of one shard. `due_ms`: Unix time in ms of the first row. `cursor`: where a look at the rows
    that are due goes on.

    `not_before` is a time of the loop's clock before which nothing is looked at, and `pause` how
    long the last such wait was. `left`: whether a look has left something that is due.
    """

    due_ms: int = NEVER
    cursor: bytes = b""
    not_before: float = 0.0
    pause: float = 0.0
    left: bool = False


class DueIndex:
    """One index by time (`holdfast_node.store.keys`) of the shards that a node owns."""

    def __init__(self, store: Store, index: int) -> None:
        self.store = store
        self._index = index
        self._shards: dict[Shard, NextDue] = {}

    def of(self, shard: Shard) -> NextDue:
        """What is due next in a shard, which is read when it was not yet. Raises WrongOwner when it
        is not owned any more."""
        coming = self._shards.get(shard)
        if coming is None:
            shard.check_owned()
            prefix = keys.index_prefix(shard.number, self._index)
            first = next(iter(self.store.scan("state", prefix, keys.after(prefix))), None)
            coming = self._shards[shard] = NextDue(
                NEVER if first is None else keys.read_due_key(first[0])[0]
            )
        return coming

    def all(self) -> list[NextDue]:
        return list(self._shards.values())

    def closed(self, shard: Shard) -> None:
        """The shard is not owned any more."""
        self._shards.pop(shard, None)

    def due_with(self, entry: Entry, due_ms: int) -> None:
        """A row of the index is due then, once this entry is committed. The shard was looked at
        before (`of`)."""
        entry.waiters.append(_Due(self._shards[entry.shard], due_ms))

    def next_due_ms(self) -> int:
        """When the first row of any shard is due, Unix time in ms."""
        return min((coming.due_ms for coming in self._shards.values()), default=NEVER)


@dataclass(slots=True)
class _Due:
    """A row of an index that is on its way. Implements `holdfast_node.log.shards.Waiter`."""

    coming: NextDue
    due_ms: int

    def settled(self, entry: Entry) -> None:
        if entry.committed:
            self.coming.due_ms = min(self.coming.due_ms, self.due_ms)
