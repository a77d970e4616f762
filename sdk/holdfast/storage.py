"""The storage of one object: an ordered mapping from text keys to values, with transactions.

A read looks through four layers, newest first:

1. what the running turn wrote (`_writes`; `_cleared` once it deleted everything),
2. what earlier turns wrote that the store cannot show yet, because their entry is not applied (`_recent`),
3. the hot cache: values known to be what the store holds, least recently used first, within `cache_bytes`,
4. the store, through a `Reader`.

All layers hold encoded bytes: a value that a handler got and changed in place changes nothing here until it is put.
Outside of a turn there is no layer 1 and every access is refused, so a task that outlives its turn cannot write.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from heapq import merge
from typing import Any, Protocol, TypeVar, overload

import msgspec

from holdfast import codec
from holdfast.errors import TooLarge

T = TypeVar("T")
_MISSING: Any = object()
_ROW_OVERHEAD_BYTES = 150  # what a cached row costs in Python beside its key and value, measured on CPython 3.11
_RECENT_ROWS_SWEEP = 256

OPTIONS = b"\xc1"
"""What a stored value begins with that has options before it (an expiry, metadata): no msgpack does. This version writes none."""

# What a turn did to its object's rows, in order: (key, value) puts, (key, None) deletes; keys are user keys as UTF-8.
Write = tuple[bytes, bytes | None]
Writes = list[Write]


class Limits(msgspec.Struct, frozen=True):
    """Bounds of one object's storage."""

    key_bytes: int = 1024
    value_bytes: int = 2 << 20
    turn_bytes: int = 16 << 20
    """All keys and values that one turn may write; also what one `list` may return."""
    cache_bytes: int = 256 << 10
    """The hot cache of one object, with what Python itself needs for it."""


class Reader(Protocol):
    """The store as one object sees it. Keys are user keys as UTF-8 bytes; `scan` yields them in order."""

    def get(self, key: bytes) -> bytes | None: ...
    def scan(self, start: bytes, end: bytes | None, reverse: bool) -> Iterator[tuple[bytes, bytes]]: ...


class Applied(Protocol):
    """The entry that a turn's writes went into: `applied` once the store shows them."""

    applied: bool


class Storage:
    """`self.storage` of an object. Values are what `holdfast.codec` encodes; keys are text of 1 to 1,024 bytes.

    Raises TooLarge when a key, a value or the turn's writes pass their limit, msgspec.ValidationError when a stored
    value is not of the type asked for, RuntimeError outside of a turn.
    """

    __slots__ = (
        "_beside_bytes",
        "_cache",
        "_cleared",
        "_limits",
        "_newest",
        "_reader",
        "_recent",
        "_recent_cleared",
        "_write_bytes",
        "_writes",
        "beside",
        "cached_bytes",
    )

    def __init__(self, reader: Reader, limits: Limits) -> None:
        self._reader = reader
        self._limits = limits
        self._writes: dict[str, bytes | None] | None = None
        self._cleared = False
        self._write_bytes = 0
        self._beside_bytes = 0
        self._recent: dict[str, tuple[Applied, bytes | None]] | None = None
        self._newest: Applied | None = None
        self._recent_cleared: Applied | None = None
        self._cache: dict[str, bytes | None] = {}
        self.cached_bytes = 0
        self.beside: list[Any] = []
        """What the open turn does beside its rows, in order: commits with them, and is undone with them."""

    # -- reading

    @overload
    def get(self, key: str) -> Any: ...
    @overload
    def get(self, key: str, type: type[T]) -> T | None: ...
    @overload
    def get(self, key: str, type: type[T], default: T) -> T: ...
    @overload
    def get(self, key: str, *, default: Any) -> Any: ...
    def get(self, key: str, type: Any = Any, default: Any = None) -> Any:
        """The value under `key`, decoded as `type`; `default` when there is none."""
        raw = self._raw(key)
        return default if raw is None else _decode(key, raw, type)

    def get_many(self, keys: Iterable[str], type: Any = Any) -> dict[str, Any]:
        """The values under those of `keys` that exist."""
        found = {}
        for key in keys:
            raw = self._raw(key)
            if raw is not None:
                found[key] = _decode(key, raw, type)
        return found

    def __contains__(self, key: str) -> bool:
        return self._raw(key) is not None

    def list(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
        type: Any = Any,
    ) -> dict[str, Any]:
        """The rows whose key begins with `prefix` and lies in `[start, end)`, in key order (or reversed), at most `limit`.

        It returns them all at once: TooLarge when they are more than the bytes that a turn may write; page with `limit`.
        """
        rows: dict[str, Any] = {}
        size = 0
        if limit is not None and limit <= 0:
            if limit < 0:
                raise ValueError(f"limit is {limit}")
            return rows
        for key, raw in self._rows(prefix, start, end, reverse):
            size += len(key) + len(raw)
            if size > self._limits.turn_bytes:
                raise TooLarge(f"list() passes {self._limits.turn_bytes} bytes; use limit and start", definite=True)
            rows[key] = _decode(key, raw, type)
            if limit is not None and len(rows) >= limit:
                break
        return rows

    # -- writing

    def put(self, key: str, value: Any) -> None:
        """Store `value` under `key`; durable when the turn has committed."""
        writes = self._writes
        if writes is None:
            raise _outside()
        try:
            raw = codec.encode(value)
        except (TypeError, OverflowError) as error:
            raise TypeError(f"the value of {key!r} cannot be stored: {error}") from None
        if len(raw) > self._limits.value_bytes:
            raise TooLarge(f"value of {key!r}: {len(raw)} bytes, at most {self._limits.value_bytes}", definite=True)
        self._charge(writes, key, len(raw))
        writes[key] = raw

    def put_many(self, values: Mapping[str, Any]) -> None:
        """Store every value of a mapping under its key."""
        for key, value in values.items():
            self.put(key, value)

    def delete(self, *keys: str) -> None:
        """Remove what is under these keys; a key that has nothing is no error."""
        if self._writes is None:
            raise _outside()
        for key in keys:
            self._charge(self._writes, key, 0)
            self._writes[key] = None

    def delete_all(self) -> None:
        """Remove every key of this object, in one step however many there are."""
        if self._writes is None:
            raise _outside()
        self._writes.clear()
        self._write_bytes = self._beside_bytes
        self._cleared = True

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """A part of the turn that can fail alone: an exception that leaves the block undoes what the block wrote."""
        if self._writes is None:
            raise _outside()
        before = dict(self._writes), self._cleared, self._write_bytes, self._beside_bytes
        beside = len(self.beside)
        try:
            yield
        except BaseException:
            if self._writes is not None:
                self._writes, self._cleared, self._write_bytes, self._beside_bytes = before
                del self.beside[beside:]
            raise

    # -- for whoever runs turns

    def begin(self) -> None:
        """Open a turn."""
        assert self._writes is None, "a turn of this object is open"
        self._writes = {}
        self._write_bytes = self._beside_bytes = 0
        if self._recent:
            self.settle()

    def rollback(self) -> None:
        """Close the turn and forget what it wrote."""
        self._writes = None
        self.beside.clear()
        self._cleared = False

    def changed(self) -> bool:
        """Whether the open turn wrote anything."""
        return bool(self._writes) or self._cleared or bool(self.beside)

    def is_open(self) -> bool:
        """Whether a turn is open."""
        return self._writes is not None

    def do_beside(self, what: Any, size: int) -> None:
        """Note what the open turn does beside its rows; `size` counts as written bytes."""
        if self._writes is None:
            raise _outside()
        if self._write_bytes + size > self._limits.turn_bytes:
            raise TooLarge(f"the turn writes more than {self._limits.turn_bytes} bytes", definite=True)
        self._write_bytes += size
        self._beside_bytes += size
        self.beside.append(what)

    def take(self, prefix: bytes = b"") -> tuple[bool, Writes, bool]:
        """The open turn's writes: whether everything before them was deleted, the rows, `prefix` before their keys, and
        whether any of those is a delete. The turn stays open.
        """
        writes = self._writes
        assert writes is not None
        return self._cleared, [(prefix + key.encode(), raw) for key, raw in writes.items()], None in writes.values()

    def close(self, entry: Applied | None) -> None:
        """Close the turn; its writes belong to `entry` (None when it wrote nothing)."""
        writes, self._writes = self._writes, None
        if self.beside:
            self.beside.clear()
        if entry is None:
            return
        assert writes is not None
        self._newest = entry
        if self._cleared:
            self._cleared = False
            self._recent_cleared = entry
            self._recent = {}
            self._cache.clear()
            self.cached_bytes = 0
        recent = self._recent
        if recent is None:
            recent = self._recent = {}
        for key, raw in writes.items():
            recent[key] = (entry, raw)

    # -- layers

    def _raw(self, key: str) -> bytes | None:
        writes = self._writes
        if writes is None:
            raise _outside()
        if writes or self._cleared:
            raw = writes.get(key, _MISSING)
            if raw is not _MISSING:
                return raw  # type: ignore[no-any-return]
            if self._cleared:
                return None
        if self._recent:
            row = self._recent.get(key)
            if row is not None:
                return row[1]
        raw = self._cache.get(key, _MISSING)
        if raw is not _MISSING:
            if self.cached_bytes * 2 > self._limits.cache_bytes:  # only a filling cache needs the order of use
                self._cache[key] = self._cache.pop(key)
            return raw  # type: ignore[no-any-return]
        if self._recent_cleared is not None:
            if not self._recent_cleared.applied:
                return None
            self._recent_cleared = None
        raw = self._reader.get(key.encode())
        self._remember(key, raw)
        return raw

    def _rows(self, prefix: str, start: str | None, end: str | None, reverse: bool) -> Iterator[tuple[str, bytes]]:
        writes = self._writes
        if writes is None:
            raise _outside()
        lower = max(prefix, start or "")
        overlay: dict[str, bytes | None] = {}
        if not self._cleared and self._recent:
            overlay = {key: raw for key, (_, raw) in self._recent.items()}
        overlay.update(writes)
        mine = sorted(
            ((k, r) for k, r in overlay.items() if k.startswith(prefix) and k >= lower and (end is None or k < end)),
            reverse=reverse,
            key=_first,
        )
        cleared = self._recent_cleared is not None and not self._recent_cleared.applied
        if self._cleared or cleared:
            stored: Iterator[tuple[str, bytes]] = iter(())
        else:
            upper = _after_prefix(prefix)
            stop = None if end is None else end.encode()
            if upper is not None and (stop is None or upper < stop):
                stop = upper
            stored = ((k.decode(), r) for k, r in self._reader.scan(lower.encode(), stop, reverse))
        stored = ((k, r) for k, r in stored if k not in overlay)
        for key, raw in merge(mine, stored, key=_first, reverse=reverse):
            if raw is not None:
                yield key, raw

    def _charge(self, writes: dict[str, bytes | None], key: str, value_bytes: int) -> None:
        size = len(key) if key.isascii() else len(key.encode())
        if not 0 < size <= self._limits.key_bytes:
            raise TooLarge(f"storage key of {size} bytes; 1 to {self._limits.key_bytes}", definite=True)
        if key in writes:
            self._write_bytes += value_bytes - len(writes[key] or b"")
        else:
            self._write_bytes += size + value_bytes
        if self._write_bytes > self._limits.turn_bytes:
            raise TooLarge(f"the turn writes more than {self._limits.turn_bytes} bytes", definite=True)

    def settle(self) -> None:
        """Move what the store shows by now from layer 2 to the cache; call it when entries were applied."""
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

    @property
    def write_bytes(self) -> int:
        """The keys and values that the open turn has written."""
        return self._write_bytes

    def settled(self) -> bool:
        """Whether the store shows everything that was written."""
        return self._newest is None or self._newest.applied

    def _remember(self, key: str, raw: bytes | None) -> None:
        cache = self._cache
        old = cache.get(key, _MISSING)
        if old and raw and old is not _MISSING and len(old) == len(raw) and self.cached_bytes * 2 < self._limits.cache_bytes:
            cache[key] = raw  # the usual rewrite: nothing to count, and the order does not matter yet
            return
        cache.pop(key, None)
        if old is not _MISSING:
            self.cached_bytes -= _ROW_OVERHEAD_BYTES + len(key) + (len(old) if old else 0)
        size = _ROW_OVERHEAD_BYTES + len(key) + (len(raw) if raw else 0)
        if size > self._limits.cache_bytes:
            return
        cache[key] = raw
        self.cached_bytes += size
        while self.cached_bytes > self._limits.cache_bytes:
            oldest = next(iter(cache))
            gone = cache.pop(oldest)
            self.cached_bytes -= _ROW_OVERHEAD_BYTES + len(oldest) + (len(gone) if gone else 0)


class MemoryReader:
    """A store in memory, for tests and `holdfast.testing`."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        return self.rows.get(key)

    def scan(self, start: bytes, end: bytes | None, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        keys = sorted((k for k in self.rows if k >= start and (end is None or k < end)), reverse=reverse)
        return ((k, self.rows[k]) for k in keys)

    def apply(self, cleared: bool, writes: Iterable[Write]) -> None:
        """Make a turn's writes visible."""
        if cleared:
            self.rows.clear()
        for key, raw in writes:
            if raw is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = raw


def _decode(key: str, raw: bytes, type: Any) -> Any:
    try:
        return codec.decode(raw, type)
    except msgspec.ValidationError as error:
        raise msgspec.ValidationError(f"what is stored under {key!r}: {error}") from None
    except msgspec.DecodeError:
        if raw[:1] == OPTIONS:
            raise RuntimeError(f"what is stored under {key!r} has options, which this version does not know") from None
        raise


def _first(row: tuple[str, Any]) -> str:
    return row[0]


def _after_prefix(prefix: str) -> bytes | None:
    """The smallest byte string after every key that begins with `prefix`; None when there is no bound."""
    raw = prefix.encode()
    return raw[:-1] + bytes([raw[-1] + 1]) if raw else None  # UTF-8 has no 0xff, so the last byte can be raised


def _outside() -> RuntimeError:
    return RuntimeError("storage is only there while a turn runs; do not keep tasks that outlive their handler")
