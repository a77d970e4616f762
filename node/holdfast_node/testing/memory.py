"""A store in memory in place of RocksDB. Like a machine that is switched off, it can lose writes
that were not made durable."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from pathlib import Path

from holdfast_node.store.rocks import FAMILIES

_Undo = list[tuple[str, bytes, bytes | None]]


class MemoryBatch:
    """See `holdfast_node.store.rocks.Batch`."""

    def __init__(self) -> None:
        self.writes: list[tuple[str, bytes, bytes | None, bytes | None]] = []

    def put(self, family: str, key: bytes, value: bytes) -> None:
        self.writes.append((family, key, value, None))

    def put_all(self, family: str, rows: list[tuple[bytes, bytes]]) -> None:
        self.writes += [(family, key, value, None) for key, value in rows]

    def delete(self, family: str, key: bytes) -> None:
        self.writes.append((family, key, None, None))

    def delete_range(self, family: str, start: bytes, end: bytes) -> None:
        self.writes.append((family, start, None, end))


class MemoryCursor:
    """See `holdfast_node.store.rocks.Cursor`."""

    def __init__(self, keys: list[bytes]) -> None:
        self._keys = keys

    def seek(self, key: bytes) -> bytes | None:
        at = bisect_left(self._keys, key)
        return self._keys[at] if at < len(self._keys) else None


class MemoryStore:
    """A store with the methods of `holdfast_node.store.rocks.Store` that an engine uses."""

    def __init__(self) -> None:
        self.path = Path("memory")
        self._rows: dict[str, dict[bytes, bytes]] = {name: {} for name in FAMILIES}
        self._keys: dict[str, list[bytes]] = {name: [] for name in FAMILIES}
        self._unsynced: _Undo = []
        self.syncs = 0

    def get(self, family: str, key: bytes) -> bytes | None:
        return self._rows[family].get(key)

    def scan(
        self, family: str, start: bytes, end: bytes | None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        keys, rows = self._keys[family], self._rows[family]
        last = len(keys) if end is None else bisect_left(keys, end)
        found = [(key, rows[key]) for key in keys[bisect_left(keys, start) : last]]
        return iter(reversed(found) if reverse else found)

    scan_now = scan

    def any(self, family: str, start: bytes, end: bytes | None) -> bool:
        return next(self.scan(family, start, end), None) is not None

    def cursor(self, family: str) -> MemoryCursor:
        return MemoryCursor(list(self._keys[family]))

    def batch(self) -> MemoryBatch:
        return MemoryBatch()

    def write(self, batch: MemoryBatch) -> None:
        for family, key, value, end in batch.writes:
            if end is None:
                self._change(family, key, value)
            else:
                for gone, _ in list(self.scan(family, key, end)):
                    self._change(family, gone, None)

    def sync(self) -> None:
        self._unsynced.clear()
        self.syncs += 1

    def lose_unsynced(self) -> None:
        """Undo all writes since the last `sync`."""
        undo, self._unsynced = self._unsynced, []
        for family, key, before in reversed(undo):
            self._change(family, key, before)
        self._unsynced.clear()

    def close(self) -> None:
        pass

    def _change(self, family: str, key: bytes, value: bytes | None) -> None:
        rows, keys = self._rows[family], self._keys[family]
        before = rows.get(key)
        self._unsynced.append((family, key, before))
        if value is None:
            if before is not None:
                del rows[key]
                del keys[bisect_left(keys, key)]
            return
        if before is None:
            insort(keys, key)
        rows[key] = value
