"""A simulated disk, with RocksDB on it: what `holdfast_node.store.rocks` imports of rocksdict, and
of pathlib.

What was written is readable at once. It is durable, in order, up to what a finished
`flush_wal(True)` covered. A process that ends loses nothing; a power loss loses any number of the
newest batches that were not synced. A start makes durable what it found, as RocksDB does, which
writes what it replays to files. Files that are ingested are durable at once, whatever the log has.
After an fsync that failed nothing behind it becomes durable until the next start.
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .loop import PROCESS, VirtualLoop

if TYPE_CHECKING:
    from .machine import Process

_HISTORY_MAX = 200
_Op = tuple[int, str, bytes, bytes]
_PUT, _DELETE, _DELETE_RANGE = range(3)
_Undo = list[tuple[str, bytes, bytes | None]]


class Family:
    """The rows of a column family. Iterators share them until the next write."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.order: list[bytes] = []
        self.shared = False

    def own(self) -> None:
        """Leave what iterators show to them."""
        if self.shared:
            self.rows, self.order, self.shared = dict(self.rows), list(self.order), False

    def put(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            if self.rows.pop(key, None) is not None:
                del self.order[bisect_left(self.order, key)]
            return
        if key not in self.rows:
            insort(self.order, key)
        self.rows[key] = value


class _Event:
    """A batch, or files that were ingested (`lasting`)."""

    __slots__ = ("lasting", "ops", "undo")

    def __init__(self, ops: list[_Op], lasting: bool) -> None:
        self.ops = ops
        self.lasting = lasting
        self.undo: _Undo = []


class Database:
    """What is in one directory. `sequence` is RocksDB's: it grows by one with every operation of a
    batch."""

    def __init__(self) -> None:
        self.families: dict[str, Family] = {}
        self.sequence = 0
        self.unsynced: list[_Event] = []
        self.synced: deque[_Event] = deque(maxlen=_HISTORY_MAX)
        """Of the newest log: what a cut of its tail would lose."""
        self.broken = False
        """An fsync failed: what is not durable by now will not be."""

    def do(self, event: _Event) -> None:
        undo = event.undo
        undo.clear()
        for op in event.ops:
            self.do_one(op, undo)
        self.sequence += len(event.ops)

    def do_one(self, op: _Op, undo: _Undo) -> None:
        what, name, key, value = op
        family = self.families[name]
        family.own()
        if what == _DELETE_RANGE:
            at = bisect_left(family.order, key)
            gone = family.order[at : max(at, bisect_left(family.order, value))]
            for each in gone:
                undo.append((name, each, family.rows.pop(each)))
            del family.order[at : at + len(gone)]
        else:
            undo.append((name, key, family.rows.get(key)))
            family.put(key, value if what == _PUT else None)

    def take_back(self, event: _Event) -> None:
        for name, key, value in reversed(event.undo):
            self.families[name].own()
            self.families[name].put(key, value)
        self.sequence -= len(event.ops)

    def synced_to(self, count: int) -> None:
        if not self.broken:
            self.synced.extend(self.unsynced[:count])
            del self.unsynced[:count]

    def lose(self, kept: int) -> None:
        """Keep only so many of the batches that are not synced."""
        for event in reversed(self.unsynced):
            self.take_back(event)
        batches = 0
        for event in self.unsynced:
            batches += not event.lasting
            if event.lasting or batches <= kept:
                self.do(event)
        self.unsynced.clear()

    def recovered(self) -> None:
        """What a start found is durable, and its log is empty."""
        self.unsynced.clear()
        self.synced.clear()
        self.broken = False

    def cut_tail(self, records: int) -> int:
        """Lose the newest records of the log, though they were synced; how many it were."""
        events = [*self.synced, *self.unsynced]
        self.unsynced.clear()
        lost = 0
        while events and lost < records and not events[-1].lasting:
            self.take_back(events.pop())
            lost += 1
        self.synced = deque(events, maxlen=_HISTORY_MAX)
        return lost

    def copy(self) -> Database:
        """The same as a power loss would leave it that loses all it can."""
        other = Database()
        for event in reversed(self.unsynced):
            self.take_back(event)
        other.sequence = self.sequence
        for name, family in self.families.items():
            made = other.families[name] = Family()
            made.rows, made.order = dict(family.rows), list(family.order)
        for event in self.unsynced:
            self.do(event)
        return other


class Disk:
    """One machine's disk, with its faults. Times are seconds."""

    def __init__(self, loop: VirtualLoop, chance: random.Random) -> None:
        self._loop = loop
        self._chance = chance
        self.databases: dict[str, Database] = {}
        self.files: dict[str, list[tuple[bytes, bytes]]] = {}
        self.open: dict[str, Process] = {}
        self.sync_s = chance.choice((0.001, 0.004, 0.02))
        self.slow_until = 0.0
        self.slow_s = 0.0
        self.failing: set[str] = set()
        """Of `sync` and `write`: those that fail with EIO, once."""
        self.full = False
        self.syncing: dict[str, int] = {}
        self.failed: set[Process] = set()
        """Who was told of a fault."""

    def delay(self) -> float:
        """What an fsync takes now."""
        if self._loop.now < self.slow_until:
            return self.slow_s * self._chance.random()
        return self.sync_s * (0.5 + self._chance.random())

    def check(self, what: str) -> None:
        """Raises what RocksDB raises when the disk does not do it."""
        process = _process()
        if what in self.failing:
            self.failing.discard(what)
            self.failed.add(process)
            raise Exception("IO error: While fsync: /data/000012.log: Input/output error")
        if self.full and what != "sync":
            self.failed.add(process)
            raise Exception(
                "IO error: No space left on device: While appending to file: /data/000012.log: No"
                " space left on device"
            )

    def released(self, process: Process) -> None:
        for path, holder in list(self.open.items()):
            if holder is process:
                del self.open[path]

    def lose_power(self, chance: random.Random) -> None:
        for database in self.databases.values():
            database.lose(0 if database.broken else chance.randint(0, len(database.unsynced)))
        self.syncing.clear()


def _process() -> Process:
    process = PROCESS.get()
    assert process is not None, "only processes have disks"
    return process


def _disk() -> Disk:
    return _process().machine.disk


# -- pathlib


class SimPath:
    """A path on the disk of the machine that asks."""

    def __init__(self, path: Any) -> None:
        self._path = str(path)

    def __truediv__(self, name: str) -> SimPath:
        return SimPath(f"{self._path}/{name}")

    def __str__(self) -> str:
        return self._path

    def mkdir(self, **_: Any) -> None:
        pass

    def exists(self) -> bool:
        return any(name.startswith(self._path) for name in _disk().files)

    def iterdir(self) -> list[SimPath]:
        return [
            SimPath(name) for name in sorted(_disk().files) if name.startswith(self._path + "/")
        ]

    def unlink(self, missing_ok: bool = False) -> None:
        if _disk().files.pop(self._path, None) is None and not missing_ok:
            raise FileNotFoundError(self._path)

    def read_text(self, **_: Any) -> str:
        raise FileNotFoundError(self._path)


# -- rocksdict


class WriteBatch:
    def __init__(self, raw_mode: bool) -> None:
        self.ops: list[_Op] = []

    def put(self, key: bytes, value: bytes, family: str) -> None:
        self.ops.append((_PUT, family, key, value))

    def delete(self, key: bytes, family: str) -> None:
        self.ops.append((_DELETE, family, key, b""))

    def delete_range(self, start: bytes, end: bytes, family: str) -> None:
        self.ops.append((_DELETE_RANGE, family, start, end))


class Rdict:
    """An open database. It may be used by the process that opened it, as long as that lives."""

    def __init__(self, path: str, options: Any, column_families: dict[str, Any]) -> None:
        disk = self._disk = _disk()
        self._process = _process()
        self._path = path
        if disk.open.setdefault(path, self._process) is not self._process:
            raise Exception(
                f"IO error: While lock file: {path}/LOCK: Resource temporarily unavailable"
            )
        disk.check("write")
        self.database = disk.databases.setdefault(path, Database())
        for name in column_families:
            self.database.families.setdefault(name, Family())
        self.database.recovered()

    def get_column_family(self, name: str) -> _ColumnFamily:
        return _ColumnFamily(self, name)

    def get_column_family_handle(self, name: str) -> str:
        return name

    def write(self, batch: WriteBatch, options: Any = None) -> None:
        if self._process.ended:
            return
        if batch.ops:
            self._disk.check("write")
            self.apply(batch.ops, lasting=False)

    def apply(self, ops: list[_Op], lasting: bool) -> None:
        event = _Event(ops, lasting)
        self.database.do(event)
        self.database.unsynced.append(event)

    def flush_wal(self, sync: bool) -> None:
        """On the thread it covers what was there when it began; elsewhere the process stands still
        for it."""
        if self._process.ended or not sync:
            return
        in_thread = SimThread.running is not None
        began = self._disk.syncing.pop(self._path, None) if in_thread else None
        try:
            self._disk.check("sync")
        except Exception:
            self.database.broken = True
            raise
        if began is None:
            began = len(self.database.unsynced)
            self._process.stop_for(self._disk.delay())
        self.database.synced_to(began)
        # the thread's goes on: what it was to cover is covered
        if self._path in self._disk.syncing:
            self._disk.syncing[self._path] = 0

    def latest_sequence_number(self) -> int:
        return self.database.sequence

    def property_value(self, name: str) -> str:
        return "0"

    def close(self) -> None:
        if not self._process.ended:
            self.database.synced_to(len(self.database.unsynced))
            self._disk.open.pop(self._path, None)


class _ColumnFamily:
    def __init__(self, db: Rdict, name: str) -> None:
        self._db = db
        self._name = name
        self._family = db.database.families[name]

    def get(self, key: bytes) -> bytes | None:
        return self._family.rows.get(key)

    def iter(self, options: Any) -> _Iterator:
        self._family.shared = True
        return _Iterator(self._family.rows, self._family.order)

    def property_value(self, name: str) -> str:
        return "0"

    def flush(self) -> None:
        """Written to a file, and with it all that came before."""
        if not self._db._process.ended:
            self._db._disk.check("write")
            self._db.database.synced_to(len(self._db.database.unsynced))

    def ingest_external_file(self, paths: list[str], options: Any) -> None:
        if self._db._process.ended:
            return
        disk = self._db._disk
        disk.check("write")
        for path in paths:
            rows = disk.files.pop(path)
            self._db.apply([(_PUT, self._name, key, value) for key, value in rows], lasting=True)


class _Iterator:
    """The rows as they were when it was made."""

    def __init__(self, rows: dict[bytes, bytes], order: list[bytes]) -> None:
        self._rows = rows
        self._order = order
        self._at = -1

    def seek(self, key: bytes) -> None:
        self._at = bisect_left(self._order, key)

    def seek_for_prev(self, key: bytes) -> None:
        self._at = bisect_right(self._order, key) - 1

    def seek_to_last(self) -> None:
        self._at = len(self._order) - 1

    def valid(self) -> bool:
        return 0 <= self._at < len(self._order)

    def key(self) -> bytes:
        return self._order[self._at]

    def value(self) -> bytes:
        return self._rows[self._order[self._at]]

    def next(self) -> None:
        self._at += 1

    def prev(self) -> None:
        self._at -= 1


class SstFileWriter:
    """A file of rows, durable when it is finished."""

    def __init__(self, options: Any) -> None:
        self._rows: list[tuple[bytes, bytes]] = []

    def open(self, path: str) -> None:
        self._path = path

    def __setitem__(self, key: bytes, value: bytes) -> None:
        assert not self._rows or self._rows[-1][0] < key, (
            "Keys must be added in strict ascending order"
        )
        self._rows.append((key, value))

    def finish(self) -> None:
        if not _process().ended:
            _disk().check("file")
            _disk().files[self._path] = self._rows


class Anything:
    """Options, which change nothing here."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., Anything]:
        return lambda *_: Anything()


# -- the fsync thread


class _Parked(BaseException):
    """A thread has nothing to do."""


class SimThread:
    """A thread that works on what comes by a queue. It is run from the beginning of its function
    each time, up to where it waits."""

    running: SimThread | None = None

    def __init__(self, target: Callable[[], None], name: str, daemon: bool) -> None:
        self._target = target

    def start(self) -> None:
        self.run()

    def run(self) -> None:
        SimThread.running = self
        try:
            self._target()
        except _Parked:
            pass
        finally:
            SimThread.running = None

    def join(self) -> None:
        pass


class SimQueue:
    """The queue of such a thread: what is put into it is worked on when the disk has done
    its part."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._reader: SimThread | None = None

    def get(self) -> Any:
        if self._items:
            return self._items.popleft()
        self._reader = SimThread.running
        raise _Parked

    def put(self, item: Any) -> None:
        self._items.append(item)
        process, reader = _process(), self._reader
        assert reader is not None
        if item is None:
            reader.run()
            return
        disk = process.machine.disk
        for path, holder in disk.open.items():
            if holder is process:
                disk.syncing[path] = len(disk.databases[path].unsynced)
        process.loop.world_later(disk.delay(), process.loop.post, process, reader.run)
