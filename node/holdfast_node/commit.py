"""The commit pipeline: from turns that ended to entries that are durable.

The writes of all turns of a shard that ended since the last flush are one entry, and the entries of all shards are one batch:
written on the loop, then one fsync on a thread, while the next entries gather. When the fsync has returned the entries are
committed and their turns' replies leave together. One copy per shard: the batch holds the state itself, and nobody asks for the
shard's position while its epoch lasts, so only the epoch's beginning is on disk.

If an fsync fails nobody can know what is on disk: the process ends (rule 5), and starts from what the disk says.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING

from holdfast_node.shards import Shard
from holdfast_node.store import Store

if TYPE_CHECKING:
    from holdfast_node.turn import Turn

log = logging.getLogger(__name__)

EXIT_STORE_FAILED = 70


@dataclass(frozen=True, slots=True)
class Until:
    """In place of a value: the deletion of every key from the row's own up to `end`."""

    end: bytes


class Entry:
    """One record of a shard's log: `(epoch, seq, writes)`.

    `rows` hold the changes of state in order: (key, value) puts, (key, None) deletes, (start, Until(end)) deletes the range.
    `turns` get their replies when the entry is committed: those that wrote it, and those that read what it wrote.
    """

    __slots__ = ("abandoned", "applied", "committed", "deletes", "replies", "rows", "shard", "turns", "waiters")

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.rows: list[tuple[bytes, bytes | Until | None]] = []
        self.deletes = False  # whether `rows` hold anything but puts
        self.replies: list[tuple[bytes, bytes]] = []
        self.turns: list[Turn] = []
        self.waiters: list[asyncio.Future[None]] | None = None
        self.applied = False
        self.committed = False
        self.abandoned = False

    async def settled(self) -> None:
        """Return when the entry is committed or abandoned."""
        if not (self.committed or self.abandoned):
            waiter = asyncio.get_running_loop().create_future()
            if self.waiters is None:
                self.waiters = []
            self.waiters.append(waiter)
            await waiter


class Committer:
    """Gathers entries, flushes them, and hands back those that are committed, in the order of their gathering."""

    def __init__(self, store: Store, committed: Callable[[list[Entry]], None]) -> None:
        self._store = store
        self._committed = committed
        self._loop = asyncio.get_running_loop()
        # A bare thread and queue: an executor's two futures a flush would be a tenth of what a small flush costs.
        self._to_sync: SimpleQueue[list[Entry] | None] = SimpleQueue()
        self._thread = Thread(target=self._sync, name="fsync", daemon=True)
        self._thread.start()
        self._gathering: list[Entry] = []
        self._busy = False  # a flush is under way or about to start
        self._idle = asyncio.Event()
        self._idle.set()
        self.entries = 0

    def entry(self, shard: Shard) -> Entry:
        """The entry that a turn of this shard that ends now belongs to."""
        entry = shard.gathering
        if entry is None:
            entry = shard.gathering = Entry(shard)
            self._gathering.append(entry)
            if not self._busy:
                self._busy = True
                self._idle.clear()
                self._loop.call_soon(self._flush)
        return entry

    async def drain(self) -> None:
        """Wait until nothing gathers and no flush is under way."""
        await self._idle.wait()

    async def close(self) -> None:
        """Flush what is there and stop the thread."""
        await self.drain()
        self._to_sync.put(None)
        self._thread.join()

    def _flush(self) -> None:
        gathered, self._gathering = self._gathering, []
        entries = [entry for entry in gathered if not entry.abandoned]
        if not entries:
            self._rest()
            return
        batch = self._store.batch()
        for entry in entries:
            shard = entry.shard
            shard.gathering = None
            shard.seq += 1
            if not entry.deletes:
                batch.put_all("state", entry.rows)  # type: ignore[arg-type]
            else:
                for key, value in entry.rows:
                    if isinstance(value, bytes):
                        batch.put("state", key, value)
                    elif value is None:
                        batch.delete("state", key)
                    else:
                        batch.delete_range("state", key, value.end)
            batch.put_all("replies", entry.replies)
        try:
            self._store.write(batch)
        except Exception:
            self._die("a write to the store failed")
        for entry in entries:
            entry.applied = True
        self.entries += len(entries)
        self._to_sync.put(entries)

    def _sync(self) -> None:
        """The thread: one fsync for each list of entries."""
        while (entries := self._to_sync.get()) is not None:
            try:
                self._store.sync()
            except Exception:
                self._die("fsync failed")
            self._loop.call_soon_threadsafe(self._flushed, entries)

    def _flushed(self, entries: list[Entry]) -> None:
        for entry in entries:
            entry.committed = True
        self._committed(entries)
        if self._gathering:
            self._flush()
        else:
            self._rest()

    def _rest(self) -> None:
        self._busy = False
        self._idle.set()

    @staticmethod
    def _die(why: str) -> None:
        log.critical("%s; the node stops, so that nothing is acknowledged that is not on disk", why, exc_info=True)
        logging.shutdown()
        os._exit(EXIT_STORE_FAILED)
