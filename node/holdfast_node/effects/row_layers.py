"""The layers below a turn's own writes, through which the rows of one object are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from heapq import merge
from typing import Any, Protocol

_MISSING: Any = object()
# Python's own bytes for a cached row, beside its key and value; measured on CPython 3.11
_ROW_OVERHEAD_BYTES = 150
_RECENT_ROWS_SWEEP = 256


class Reader(Protocol):
    """The store as one object sees it. Keys are user keys as UTF-8 bytes."""

    def get(self, key: bytes) -> bytes | None:
        """Return the value under a key; None if there is none."""

    def scan(self, start: bytes, end: bytes | None, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        """Yield the rows of `[start, end)` in the order of their keys, or reversed."""


class Applied(Protocol):
    """The entry with a turn's writes. It is `applied` once the store shows them."""

    applied: bool


class RowLayers:
    """The rows of one object, as ended turns have left them. Its layers are, newest first:

    1. writes that the store does not show yet, because their entry is not applied (`_recent`),
    2. the hot cache: values equal to the store's, least recently used first, within
       `cache_bytes_max`,
    3. the store, through a `Reader`.
    """

    __slots__ = (
        "_cache",
        "_cache_bytes_max",
        "_newest",
        "_reader",
        "_recent",
        "_recent_cleared",
        "cached_bytes",
    )

    def __init__(self, reader: Reader, cache_bytes_max: int) -> None:
        self._reader = reader
        self._cache_bytes_max = cache_bytes_max
        self._recent: dict[str, tuple[Applied, bytes | None]] | None = None
        self._newest: Applied | None = None
        self._recent_cleared: Applied | None = None
        self._cache: dict[str, bytes | None] = {}
        self.cached_bytes = 0

    # -- reading

    def get(self, key: str) -> bytes | None:
        """Return the row under a key; None if there is none."""
        if self._recent:
            row = self._recent.get(key)
            if row is not None:
                return row[1]
        raw = self._cache.get(key, _MISSING)
        if raw is not _MISSING:
            # only a filling cache needs the order of use
            if self.cached_bytes * 2 > self._cache_bytes_max:
                self._cache[key] = self._cache.pop(key)
            return raw  # type: ignore[no-any-return]
        if self._recent_cleared is not None:
            if not self._recent_cleared.applied:
                return None
            self._recent_cleared = None
        raw = self._reader.get(key.encode())
        self._remember(key, raw)
        return raw

    def range(
        self,
        prefix: str,
        start: str | None,
        end: str | None,
        reverse: bool,
        own: Mapping[str, bytes | None],
        cleared: bool,
    ) -> Iterator[tuple[str, bytes]]:
        """Yield the rows of a range in the order of their keys.

        `own`: the running turn's writes. `cleared`: whether it deleted all rows before them.
        """
        lower = max(prefix, start or "")
        overlay: dict[str, bytes | None] = {}
        if not cleared and self._recent:
            overlay = {key: raw for key, (_, raw) in self._recent.items()}
        overlay.update(own)
        newer = sorted(
            (
                (k, r)
                for k, r in overlay.items()
                if k.startswith(prefix) and k >= lower and (end is None or k < end)
            ),
            reverse=reverse,
            key=_first,
        )
        if cleared or (self._recent_cleared is not None and not self._recent_cleared.applied):
            stored: Iterator[tuple[str, bytes]] = iter(())
        else:
            upper = _after_prefix(prefix)
            stop = None if end is None else end.encode()
            if upper is not None and (stop is None or upper < stop):
                stop = upper
            stored = ((k.decode(), r) for k, r in self._reader.scan(lower.encode(), stop, reverse))
        stored = ((k, r) for k, r in stored if k not in overlay)
        for key, raw in merge(newer, stored, key=_first, reverse=reverse):
            if raw is not None:
                yield key, raw

    def settled(self) -> bool:
        """Return whether the store shows all writes of ended turns."""
        return self._newest is None or self._newest.applied

    # -- writes of ended turns

    def add(self, entry: Applied, writes: Mapping[str, bytes | None], cleared: bool) -> None:
        """Add the writes of an ended turn. They are in `entry`.

        `cleared`: the turn deleted all rows before them.
        """
        self._newest = entry
        if cleared:
            self._recent_cleared = entry
            self._recent = {}
            self._cache.clear()
            self.cached_bytes = 0
        recent = self._recent
        if recent is None:
            recent = self._recent = {}
        for key, raw in writes.items():
            recent[key] = (entry, raw)

    def settle(self) -> None:
        """Move writes that the store shows by now into the cache.

        Call it when entries were applied.
        """
        recent = self._recent
        if recent is None:
            return
        assert self._newest is not None
        if self._newest.applied:
            self._recent = self._recent_cleared = self._newest = None
            for key, (_, raw) in recent.items():
                self._remember(key, raw)
        elif len(recent) > _RECENT_ROWS_SWEEP:
            for key in [key for key, (entry, _) in recent.items() if entry.applied]:
                self._remember(key, recent.pop(key)[1])

    def _remember(self, key: str, raw: bytes | None) -> None:
        cache = self._cache
        old = cache.get(key, _MISSING)
        if (
            old
            and raw
            and old is not _MISSING
            and len(old) == len(raw)
            and self.cached_bytes * 2 < self._cache_bytes_max
        ):
            # the usual rewrite: nothing to count, and the order does not matter yet
            cache[key] = raw
            return
        cache.pop(key, None)
        if old is not _MISSING:
            self.cached_bytes -= _ROW_OVERHEAD_BYTES + len(key) + (len(old) if old else 0)
        size = _ROW_OVERHEAD_BYTES + len(key) + (len(raw) if raw else 0)
        if size > self._cache_bytes_max:
            return
        cache[key] = raw
        self.cached_bytes += size
        while self.cached_bytes > self._cache_bytes_max:
            oldest = next(iter(cache))
            gone = cache.pop(oldest)
            self.cached_bytes -= _ROW_OVERHEAD_BYTES + len(oldest) + (len(gone) if gone else 0)


def _first(row: tuple[str, Any]) -> str:
    return row[0]


def _after_prefix(prefix: str) -> bytes | None:
    """Return the smallest bytes after all keys that begin with `prefix`; None without a bound."""
    raw = prefix.encode()
    # UTF-8 has no 0xff, so the last byte can be raised
    return raw[:-1] + bytes([raw[-1] + 1]) if raw else None
