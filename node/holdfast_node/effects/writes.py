"""Holdfast's own writes into shards. They go into the same entries as turns, so that all commit in
one order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from holdfast_node.log.commit import Committer
from holdfast_node.log.shard_service import ScanBudget
from holdfast_node.log.shards import Entry, Shard
from holdfast_node.store import keys

Row = tuple[bytes, bytes | None]
"""A row to put, or to delete (None)."""


class ShardWrites:
    """The node's own writes into its shards. Implements `ShardService`: deferred rows are written
    when their shard may write again."""

    def __init__(self, committer: Committer) -> None:
        self._committer = committer
        self._loop = asyncio.get_running_loop()
        self._deferred: dict[Shard, dict[bytes, bytes | None]] = {}
        self._number = 0

    def next_sequence(self, shard: Shard) -> bytes:
        """Return a sequence above all earlier ones of the shard. Epochs grow with each owner, and
        the number grows within a process."""
        self._number += 1
        return keys.sequence(shard.epoch, self._number)

    def flush_visible(self) -> None:
        """Make all committed rows visible in the store."""
        self._committer.flush_visible()

    def write(self, shard: Shard, rows: list[Row]) -> Entry:
        """Put rows into the shard's entry. Call it only while the shard may write."""
        entry = self._committer.entry(shard)
        entry.rows += rows
        entry.deletes = True
        entry.bytes += sum([len(key) + len(value or b"") for key, value in rows])
        return entry

    def write_or_defer(self, shard: Shard, rows: list[Row]) -> None:
        """Put rows into the shard's entry, now or when the shard may write again. The node must own
        the shard."""
        if shard.may_write():
            self.write(shard, rows)
        else:
            self._deferred.setdefault(shard, {}).update(rows)

    def forget(self, shard: Shard, keys_gone: Iterable[bytes]) -> None:
        """Drop the deferred rows with these keys: another write deletes them."""
        deferred = self._deferred.get(shard)
        if deferred:
            for key in keys_gone:
                deferred.pop(key, None)

    def when_shown(self, entry: Entry, done: Callable[[], None]) -> None:
        """Call `done` soon after the entry is settled. If the entry is committed, its rows are then
        visible in the store."""

        def settled() -> None:
            self.flush_visible()
            done()

        entry.waiters.append(_Soon(self._loop, settled))

    # -- holdfast_node.log.shard_service.ShardService

    def opened(self, shard: Shard) -> None:
        pass

    def closed(self, shard: Shard) -> None:
        self._deferred.pop(shard, None)

    def tick(self, shard: Shard, now_ms: int, budget: ScanBudget) -> None:
        # One by one, because `write` begins another entry when one is full.
        for row in self._deferred.pop(shard, {}).items():
            self.write(shard, [row])


class _Soon:
    """A function that is called soon after an entry is settled. Implements
    `holdfast_node.log.shards.Waiter`."""

    __slots__ = ("_done", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, done: Callable[[], None]) -> None:
        self._loop = loop
        self._done = done

    def settled(self, entry: Entry) -> None:
        self._loop.call_soon(self._done)
