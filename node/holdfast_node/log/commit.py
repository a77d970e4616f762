"""The commit pipeline: from ended turns to durable entries.

`Flusher` makes staged writes visible, and then durable. It writes a batch on the event loop. Then a
thread makes one fsync for all writes since the last one, while the next batch gathers. All writes
of a node go through it: its own entries, and those of shards of which it is a replica.

`Committer` gathers entries. An entry has the writes of all turns of a shard that ended since the
last flush. When a flush begins, the committer appends each entry to its shard's log. The log
settles the entry when it is committed.

If a write or an fsync fails, the process cannot know what is on disk. It ends, and its next start
reads the disk. If the disk was full, the process ends with a status of its own, and its next start
waits for room.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from time import perf_counter

from holdfast.metrics import Histogram
from holdfast_cluster.clocks.boottime import boottime

from holdfast_node.log.shards import Entry, Shard, ShardLog
from holdfast_node.store.disk_space import EXIT_DISK_FULL
from holdfast_node.store.rocks import Batch, Store, is_no_space

log = logging.getLogger(__name__)

EXIT_STORE_FAILED = 70
ENTRY_BYTES = 8 << 20
"""When an entry has more than this, the next turn begins another entry. With its last turn the
entry still fits into a frame to a replica."""
_ROUNDS_MAX = 8
_PATIENCE_S = 0.005


class Flusher:
    """Stages writes, and calls back when they are on disk. It runs on the event loop.

    A flush calls the gatherers (`before_flush`), writes the batch, and has it fsynced. It begins
    soon after a request, or when the flush under way has ended. Like a frame (holdfast.frames) it
    first lets the loop go round while more requests come. Writes that are staged without a request
    go with the next flush, or with `write`.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._loop = asyncio.get_running_loop()
        # A bare thread and queue: with an executor, two futures for each flush would be a tenth of
        # the cost of a small flush.
        self._to_sync: SimpleQueue[list[Callable[[], None]] | None] = SimpleQueue()
        self.sync_seconds = Histogram()  # observed on that thread only
        self._start()
        self._batch: Batch | None = None
        self._gatherers: list[Callable[[], None]] = []
        self._visible: list[Entry] = []
        self._waiting: list[Callable[[], None]] = []
        self._requests = 0
        self._scheduled = False
        self._syncing = False
        self._sync_began = 0.0
        self._idle = asyncio.Event()
        self._idle.set()

    def _start(self) -> None:
        """Begin the thread that makes fsyncs."""
        self._thread = Thread(target=self._sync, name="fsync", daemon=True)
        self._thread.start()

    def _hand_over(self, waiting: list[Callable[[], None]]) -> None:
        """Give the callbacks to the thread, which makes an fsync for them."""
        self._to_sync.put(waiting)

    @property
    def batch(self) -> Batch:
        """The batch in which to stage writes."""
        if self._batch is None:
            self._batch = self.store.batch()
        return self._batch

    @property
    def busy_s(self) -> float:
        """How many seconds the fsync under way has taken so far; 0 if there is none."""
        return boottime() - self._sync_began if self._syncing else 0.0

    def before_flush(self, gather: Callable[[], None]) -> None:
        """Call `gather` once, when the next flush begins. Requests a flush."""
        self._gatherers.append(gather)
        self.request()

    def when_visible(self, entries: list[Entry]) -> None:
        """Call `mark_applied` of these entries when all writes staged by now can be read."""
        self._visible += entries

    def when_durable(self, done: Callable[[], None]) -> None:
        """Call `done` when all writes staged by now are on disk. Requests a flush."""
        self._waiting.append(done)
        self.request()

    def request(self) -> None:
        """Request a flush."""
        self._requests += 1
        if not self._scheduled and not self._syncing:
            self._scheduled = True
            self._idle.clear()
            self._loop.call_soon(self._soon, 0, _ROUNDS_MAX)

    def write(self) -> None:
        """Make staged writes visible now."""
        batch, self._batch = self._batch, None
        if batch is not None:
            try:
                self.store.write(batch)
            except Exception:
                self.die("a write to the store failed")
        if self._visible:
            visible, self._visible = self._visible, []
            try:
                for entry in visible:
                    entry.mark_applied()
            except Exception:
                self.die("a bug in the commit pipeline")

    async def drain(self) -> None:
        """Wait until no flush is requested or under way."""
        await self._idle.wait()

    async def close(self) -> None:
        """Flush all that is staged, and stop the thread."""
        await self.drain()
        self._to_sync.put(None)
        self._thread.join()

    def _soon(self, before: int, rounds: int) -> None:
        if rounds and self._requests > before:
            self._loop.call_soon(self._soon, self._requests, rounds - 1)
        else:
            self._flush()

    def _flush(self) -> None:
        self._requests = 0
        gatherers, self._gatherers = self._gatherers, []
        try:
            for gather in gatherers:
                gather()
        except Exception:
            self.die("a bug in the commit pipeline")
        self.write()
        self._scheduled = False
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            self._syncing = True
            self._sync_began = boottime()
            self._hand_over(waiting)
        else:
            self._idle.set()

    def _sync(self) -> None:
        """Run the thread: make one fsync for each list of callbacks."""
        while (waiting := self._to_sync.get()) is not None:
            try:
                began = perf_counter()
                self.store.sync()
                self.sync_seconds.observe(perf_counter() - began)
            except Exception:
                self.die("fsync failed")
            self._loop.call_soon_threadsafe(self._synced, waiting)

    def _synced(self, waiting: list[Callable[[], None]]) -> None:
        self._syncing = False
        self._scheduled = True  # writes of the callbacks go with the flush that begins below
        try:
            for done in waiting:
                done()
        except Exception:
            self.die("a bug in the commit pipeline")
        if self._requests:
            self._soon(0, _ROUNDS_MAX)
        else:
            self._scheduled = False
            self._idle.set()

    @staticmethod
    def die(why: str) -> None:
        """End the process because of the exception that is being handled. Memory and disk may not
        agree any more."""
        error = sys.exc_info()[1]
        full = is_no_space(error)
        if full:
            log.critical("%s: %s; the node stops, and starts again when there is room", why, error)
        else:
            log.critical(
                "%s; the node stops, so that nothing is acknowledged that is not on disk",
                why,
                exc_info=True,
            )
        logging.shutdown()
        os._exit(EXIT_DISK_FULL if full else EXIT_STORE_FAILED)


class Committer:
    """Gathers entries, and appends them to the logs of their shards. Implements `Waiter`.

    The next entries gather until the earlier ones are settled, or until `_PATIENCE_S` seconds have
    passed. With replicas this batches more: a frame to every replica for a few calls would cost
    more than the calls. A slow replica delays the other entries by no more than `_PATIENCE_S`.
    """

    def __init__(self, flusher: Flusher) -> None:
        self._flusher = flusher
        self._gathering: list[Entry] = []
        self._loop = asyncio.get_running_loop()
        self._outstanding = 0
        self._patient = False  # a timer for `_impatient` is set
        self._waits_for_flush = False
        self.entries = 0
        self.entry_bytes = 0
        self.commit_seconds = Histogram()
        """From the first write of an entry to its commit."""

    @property
    def store(self) -> Store:
        return self._flusher.store

    def flush_visible(self) -> None:
        """Make all committed rows visible in the store: some may only be staged yet."""
        self._flusher.write()

    async def drain(self) -> None:
        """Wait until no flush is requested or under way."""
        await self._flusher.drain()

    def entry(self, shard: Shard) -> Entry:
        """Return the shard's entry for a turn that ends now. Begin an entry if none gathers, or if
        it is full."""
        entry = shard.gathering
        if entry is None or entry.bytes > ENTRY_BYTES:
            entry = shard.gathering = Entry(shard)
            self._gathering.append(entry)
            self._flush_soon()
        return entry

    def _flush_soon(self) -> None:
        if self._waits_for_flush:
            self._flusher.request()
        else:
            self._waits_for_flush = True
            self._flusher.before_flush(self._gather)

    def settled(self, entry: Entry) -> None:
        """Count an appended entry that is committed or abandoned."""
        if entry.committed:
            self.commit_seconds.observe(perf_counter() - entry.began)
        self._outstanding -= 1
        if not self._outstanding and self._gathering:
            self._flush_soon()

    def _impatient(self) -> None:
        self._patient = False
        if self._gathering:
            try:
                self._append_gathered()
            except Exception:
                self._flusher.die("a bug in the commit pipeline")
            self._flusher.request()

    def _gather(self) -> None:
        self._waits_for_flush = False
        if not self._gathering:
            return
        if not self._outstanding:
            self._append_gathered()
        elif not self._patient:
            self._patient = True
            self._loop.call_later(_PATIENCE_S, self._impatient)

    def _append_gathered(self) -> None:
        gathered, self._gathering = self._gathering, []
        lost = [entry for entry in gathered if not entry.abandoned and not entry.shard.owned]
        for entry in lost:
            entry.abandoned = True
            entry.settle()
        entries = [entry for entry in gathered if not entry.abandoned]
        if not entries:
            return
        self.entries += len(entries)
        for entry in entries:
            entry.shard.gathering = None
            entry.waiters.append(self)
            self.entry_bytes += entry.bytes
        self._outstanding += len(entries)
        by_log: dict[ShardLog, list[Entry]] = {}
        for entry in entries:
            by_log.setdefault(entry.shard.log, []).append(entry)
        for log_of_some, its_entries in by_log.items():
            log_of_some.append(its_entries)
