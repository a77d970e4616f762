"""The node's RocksDB. No other file uses rocksdict; docs/decisions/0003-rocksdict.md lists its
traps.

Reads, iterators and writes without sync run on the event loop: rocksdict holds the GIL in them, so
a thread gains nothing and costs much. Only `sync` belongs on a thread. A write is readable at once,
and durable after the next `sync`.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rocksdict import (
    BlockBasedOptions,
    Cache,
    DBRecoveryMode,
    IngestExternalFileOptions,
    Options,
    Rdict,
    ReadOptions,
    SstFileWriter,
    WriteBatch,
    WriteOptions,
)

log = logging.getLogger(__name__)

FAMILIES = ("state", "replies", "log", "meta")
_WAL_BYTES_MAX = 128 << 20  # the most that a start has to replay
_BLOCK_CACHE_BYTES = 64 << 20
_WRITE_BUFFER_BYTES = 32 << 20


_SUMMED = {
    "files_bytes": "rocksdb.total-sst-files-size",
    "memtable_bytes": "rocksdb.cur-size-all-mem-tables",
    "compaction_pending_bytes": "rocksdb.estimate-pending-compaction-bytes",
    "keys": "rocksdb.estimate-num-keys",
}
_WHOLE = {
    "block_cache_bytes": "rocksdb.block-cache-usage",  # one cache for all families
    "compactions_running": "rocksdb.num-running-compactions",
    "writes_stopped": "rocksdb.is-write-stopped",
    "write_rate_limit": "rocksdb.actual-delayed-write-rate",
}


@dataclass(frozen=True)
class StoreProperties:
    """Properties of RocksDB and its disk, in bytes unless the name says otherwise.
    `write_rate_limit`: bytes a second to which writes are slowed; 0 if they are not slowed."""

    files_bytes: int
    memtable_bytes: int
    compaction_pending_bytes: int
    keys: int
    block_cache_bytes: int
    compactions_running: int
    writes_stopped: int
    write_rate_limit: int
    level0_files: int
    disk_free_bytes: int
    disk_size_bytes: int


class StoreError(Exception):
    """The store cannot be opened or has failed. The message names the file if RocksDB told it."""


class DiskFull(StoreError):
    """There was no room to open the store. The message names the file."""


_NO_SPACE = ("No space left on device", "Disk quota exceeded")


def is_no_space(error: BaseException | None) -> bool:
    """Return whether an exception of the store, or of the file system, says that the disk is
    full."""
    return isinstance(error, DiskFull) or (
        error is not None and any(text in str(error) for text in _NO_SPACE)
    )


class Batch:
    """Writes that become visible together."""

    __slots__ = ("_handles", "raw")

    def __init__(self, handles: dict[str, object]) -> None:
        self.raw = WriteBatch(raw_mode=True)
        self._handles = handles

    def put(self, family: str, key: bytes, value: bytes) -> None:
        self.raw.put(key, value, self._handles[family])

    def put_all(self, family: str, rows: list[tuple[bytes, bytes]]) -> None:
        put, handle = self.raw.put, self._handles[family]
        for key, value in rows:
            put(key, value, handle)

    def delete(self, family: str, key: bytes) -> None:
        self.raw.delete(key, self._handles[family])

    def delete_range(self, family: str, start: bytes, end: bytes) -> None:
        """Delete every key in `[start, end)`."""
        self.raw.delete_range(start, end, self._handles[family])


class Cursor:
    """Finds the first key at or after a given one."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def seek(self, key: bytes) -> bytes | None:
        rows = self._rows
        rows.seek(key)
        return rows.key() if rows.valid() else None


class Store:
    """An open RocksDB. The constructor raises StoreError when the directory is in use, corrupted or
    not readable, and DiskFull when there is no room."""

    def __init__(self, path: Path) -> None:
        self.path = path
        table = BlockBasedOptions()
        table.set_block_cache(Cache(_BLOCK_CACHE_BYTES))
        table.set_cache_index_and_filter_blocks(True)
        table.set_bloom_filter(10, False)

        def options() -> Options:
            options = Options(raw_mode=True)
            options.create_if_missing(True)
            options.create_missing_column_families(True)
            options.set_block_based_table_factory(table)
            options.set_write_buffer_size(_WRITE_BUFFER_BYTES)
            options.set_max_total_wal_size(_WAL_BYTES_MAX)
            # RocksDB cuts a torn tail, which a crash has left. If anything else in the log is
            # wrong, RocksDB refuses to open.
            options.set_wal_recovery_mode(DBRecoveryMode.tolerate_corrupted_tail_records())
            options.set_allow_concurrent_memtable_write(False)  # one thread writes
            options.set_max_open_files(1000)
            options.set_keep_log_file_num(5)
            options.set_max_log_file_size(4 << 20)
            return options

        try:
            path.mkdir(parents=True, exist_ok=True)
            self._db = Rdict(
                str(path), options(), column_families={name: options() for name in FAMILIES}
            )
        except Exception as error:
            raise (DiskFull if is_no_space(error) else StoreError)(_explain(path, error)) from None
        # Each family is fetched once and kept: dropping such an object would flush its memtable.
        self._families = {name: self._db.get_column_family(name) for name in FAMILIES}
        self._handles: dict[str, object] = {
            name: self._db.get_column_family_handle(name) for name in FAMILIES
        }
        self._unsynced = WriteOptions()
        self._gets = {name: family.get for name, family in self._families.items()}
        self.syncs = 0

    def get(self, family: str, key: bytes) -> bytes | None:
        return self._gets[family](key)  # type: ignore[no-any-return]

    def scan(
        self, family: str, start: bytes, end: bytes | None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield the rows of `[start, end)` in order, as they are when the first one is read."""
        # No bounds in ReadOptions: rocksdict keeps a dangling pointer to them. Comparing here costs
        # next to nothing.
        rows = self._families[family].iter(ReadOptions())
        if reverse:
            if end is None:
                rows.seek_to_last()
            else:
                rows.seek_for_prev(end)
                if rows.valid() and rows.key() == end:
                    rows.prev()
            while rows.valid() and rows.key() >= start:
                yield rows.key(), rows.value()
                rows.prev()
        else:
            rows.seek(start)
            while rows.valid() and (end is None or rows.key() < end):
                yield rows.key(), rows.value()
                rows.next()

    def any(self, family: str, start: bytes, end: bytes | None) -> bool:
        """Return whether there is a row in `[start, end)`."""
        return next(self.scan(family, start, end), None) is not None

    def scan_now(
        self, family: str, start: bytes, end: bytes | None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Return the rows of `[start, end)` as they are now, not as they are when the first one is
        read. Read them soon: the iterator keeps old data in the store."""
        rows = self._families[family].iter(ReadOptions())
        rows.seek(start)

        def read() -> Iterator[tuple[bytes, bytes]]:
            while rows.valid() and (end is None or rows.key() < end):
                yield rows.key(), rows.value()
                rows.next()

        return read()

    def cursor(self, family: str) -> Cursor:
        """Return a cursor over the keys as they are now. Use it soon: it keeps old data in the
        store."""
        return Cursor(self._families[family].iter(ReadOptions()))

    def batch(self) -> Batch:
        return Batch(self._handles)

    def write(self, batch: Batch) -> None:
        """Make a batch visible. It is not durable before the next `sync`."""
        self._db.write(batch.raw, self._unsynced)

    def sync(self) -> None:
        """Make all that was written durable (fsync). May run on another thread; only one call at a
        time."""
        self._db.flush_wal(True)
        self.syncs += 1

    @property
    def written(self) -> int:
        """RocksDB's sequence number of the newest write. It grows with each write."""
        return int(self._db.latest_sequence_number())

    def approximate_bytes(self) -> int:
        """Return about how many bytes the live data of objects and their kept replies take."""
        size = 0
        for name in ("state", "replies"):
            for what in ("rocksdb.estimate-live-data-size", "rocksdb.cur-size-all-mem-tables"):
                size += int(self._families[name].property_value(what) or 0)
        return size

    def properties(self) -> StoreProperties:
        """Return RocksDB's properties, for all families together."""
        total = {
            name: sum(int(family.property_value(what) or 0) for family in self._families.values())
            for name, what in _SUMMED.items()
        }
        level0 = max(
            int(family.property_value("rocksdb.num-files-at-level0") or 0)
            for family in self._families.values()
        )
        whole = {name: int(self._db.property_value(what) or 0) for name, what in _WHOLE.items()}
        disk = shutil.disk_usage(self.path)
        return StoreProperties(
            level0_files=level0,
            disk_free_bytes=disk.free,
            disk_size_bytes=disk.total,
            **total,
            **whole,
        )

    def ingest(self, family: str, files: list[Path]) -> None:
        """Take in files that `RowFiles` wrote. The files are moved into the store, and their rows
        are durable when this returns."""
        options = IngestExternalFileOptions()
        options.set_move_files(True)
        self._families[family].ingest_external_file([str(file) for file in files], options)

    def flush(self, family: str) -> None:
        """Write a family's memtable to a file, so that an `ingest` need not do it. Belongs on a
        thread."""
        self._families[family].flush()

    def close(self) -> None:
        """Close the store. No read, write or sync may be under way."""
        self._gets.clear()
        self._handles.clear()
        self._families.clear()
        try:
            self._db.close()
        except Exception as error:
            # RocksDB could not write its memtables to files. All durable rows are in its log, and
            # the next start reads them there.
            log.warning("the store was closed without writing its memory to files: %s", error)


class RowFiles:
    """A writer of rows to files that `Store.ingest` takes. Rows come in key order. Each file is
    fsynced when it is full."""

    # Rows in one file: to finish a file holds the interpreter while the file is written and
    # fsynced.
    _ROW_BYTES_MAX = 8 << 20

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._writer: SstFileWriter | None = None
        self._bytes = 0
        self.files: list[Path] = []

    def put(self, key: bytes, value: bytes) -> None:
        if self._writer is None:
            self._folder.mkdir(exist_ok=True)
            self.files.append(self._folder / f"{self._name}-{len(self.files)}.sst")
            self._writer = SstFileWriter(Options(raw_mode=True))
            self._writer.open(str(self.files[-1]))
            self._bytes = 0
        self._writer[key] = value
        self._bytes += len(key) + len(value)
        if self._bytes >= self._ROW_BYTES_MAX:
            self.finish()

    def finish(self) -> None:
        """Finish the last file: no more rows come."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.finish()

    def remove(self) -> None:
        """Remove the files that were not ingested. Raises nothing: it is called after an error."""
        self._writer = None  # not finished: that would write more, and may be the error itself
        remove_files(self.files)


def remove_files(files: Iterable[Path]) -> None:
    """Remove files if they exist. A file that cannot be removed does not stop the others; the next
    start tries it again."""
    for file in files:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be removed: %s", file, error)


def _explain(path: Path, error: Exception) -> str:
    text = str(error)
    if "lock" in text.lower() and (
        "unavailable" in text.lower() or "no locks" in text.lower() or "lock hold" in text.lower()
    ):
        return f"data directory {path} is in use by another process"
    if "corrupt" in text.lower():
        # RocksDB names a corrupted write-ahead log only in its own log file.
        dropped = re.findall(r"(\S+\.log): dropping \d+ bytes; Corruption", _own_log(path))
        if dropped and "/" not in text:
            text += f" in {dropped[-1]}"
        return (
            f"data directory {path} is corrupted: {text}. It is not opened, so that nothing is"
            " silently lost: restore this node from its replicas or a backup, or look at the named"
            " file"
        )
    return f"data directory {path} cannot be opened: {text}"


def _own_log(path: Path) -> str:
    try:
        return (path / "LOG").read_text(errors="replace")
    except OSError:
        return ""
