"""The part of an index by time that is in memory: when its next row is due in each shard. For
alarms, and for expiry."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast_node.log.shards import NEVER, Entry, Shard
from holdfast_node.store import keys
from holdfast_node.store.rocks import Store


@dataclass(slots=True)
class NextDue:
    """The next due row of one shard. `due_ms`: the Unix time in ms of the first row. `cursor`: the
    place where the next look at due rows goes on.

    `not_before`: the time of the loop's clock before which the owner does not look. `pause`: how
    long the last such wait was, in seconds. `unfinished`: whether the pass through the
    due rows had to leave some of them.
    """

    due_ms: int = NEVER
    cursor: bytes = b""
    not_before: float = 0.0
    pause: float = 0.0
    unfinished: bool = False


class DueIndex:
    """One index by time (`holdfast_node.store.keys`) of the shards that a node owns."""

    def __init__(self, store: Store, index: int) -> None:
        self.store = store
        self._index = index
        self._shards: dict[Shard, NextDue] = {}

    def of(self, shard: Shard) -> NextDue:
        """Return the next due row of a shard. The first call reads it from the store. Raises
        WrongOwner if this node does not own the shard any more."""
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
        """Forget a shard that this node does not own any more."""
        self._shards.pop(shard, None)

    def due_with(self, entry: Entry, due_ms: int) -> None:
        """Note that this entry adds a row that is due at `due_ms`, for when the entry is committed.
        Call `of` for the shard first."""
        entry.waiters.append(_Due(self._shards[entry.shard], due_ms))

    def next_due_ms(self) -> int:
        """Return when the first row of all shards is due, Unix time in ms."""
        return min((coming.due_ms for coming in self._shards.values()), default=NEVER)


@dataclass(slots=True)
class _Due:
    """An index row that waits for its entry's commit. Implements
    `holdfast_node.log.shards.Waiter`."""

    coming: NextDue
    due_ms: int

    def settled(self, entry: Entry) -> None:
        if entry.committed:
            self.coming.due_ms = min(self.coming.due_ms, self.due_ms)
