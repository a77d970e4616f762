"""The storage of one object: an ordered mapping from text keys to values, with transactions.

A read looks through four layers, newest first:

1. what the running turn wrote (`_writes`; `_cleared` once it deleted everything),
2. what earlier turns wrote that the store cannot show yet, because their entry is not applied
   (`_recent`),
3. the hot cache: values known to be what the store holds, least recently used first, within
   `cache_bytes`,
4. the store, through a `Reader`.

All layers hold encoded bytes: a value that a handler got and changed in place changes nothing here
until it is put. Outside of a turn there is no layer 1 and every access is refused, so a task that
outlives its turn cannot write.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from datetime import timedelta
from functools import partial
from heapq import merge
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

import msgspec

from holdfast import codec
from holdfast.deadlines import checked_timedelta
from holdfast.errors import TooLarge

if TYPE_CHECKING:
    from holdfast.alarms import Alarms

T = TypeVar("T")
_MISSING: Any = object()
_EXPIRED: Any = object()
# what a cached row costs in Python beside its key and value, measured on CPython 3.11
_ROW_OVERHEAD_BYTES = 150
_RECENT_ROWS_SWEEP = 256
_KEY_SHORT = 256  # ASCII up to here needs no closer look

OPTIONS = b"\xc1"
"""What a stored value begins with that has options before it: no msgpack does."""
EXPIRY = OPTIONS + b"\x01"
"""What a value begins with that expires: 8 bytes follow, the Unix time in ms, and then
the value."""
_EXPIRY_BYTES = len(EXPIRY) + 8
_OPTIONS_BYTE = OPTIONS[0]
TTL_MAX = timedelta(days=36_525)

# What a turn did to its object's rows, in order: (key, value) puts, (key, None) deletes; keys are
# user keys as UTF-8.
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
    """The store as one object sees it. Keys are user keys as UTF-8 bytes; `scan` yields them in
    order."""

    def get(self, key: bytes) -> bytes | None: ...
    def scan(
        self, start: bytes, end: bytes | None, reverse: bool
    ) -> Iterator[tuple[bytes, bytes]]: ...


class Expiring(Protocol):
    """What decides whether a value has expired: the shard of the object."""

    def expiry_ms(self, ttl_ms: int) -> int:
        """The Unix time in ms at which something expires that lives so long from now. Raises
        Unavailable while nothing may expire."""

    def expired(self, expiry_ms: int) -> bool:
        """Whether that time has come."""


class WallExpiry:
    """Expiry by this machine's clock, for tests. Implements `Expiring`."""

    def __init__(self, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        self._now_ms = now_ms

    def expiry_ms(self, ttl_ms: int) -> int:
        return self._now_ms() + ttl_ms

    def expired(self, expiry_ms: int) -> bool:
        return self._now_ms() >= expiry_ms


class Applied(Protocol):
    """The entry that a turn's writes went into: `applied` once the store shows them."""

    applied: bool


class Effect(Protocol):
    """What a turn does beside its object's rows. `size`: bytes that count as written by
    the turn."""

    @property
    def size(self) -> int: ...


class Storage:
    """`self.storage` of an object. Values are what `holdfast.codec` encodes; keys are text of 1 to
    1,024 bytes.

    Every operation is whole or not at all: what it raises, it raises before anything is changed.
    Raises TypeError for a key that is no text or a value that cannot be stored, ValueError for a
    key that is empty or no UTF-8, TooLarge when a key, a value or the turn's writes pass their
    limit, msgspec.ValidationError when a stored value is not of the type asked for, RuntimeError
    outside of a turn.
    """

    __slots__ = ("_alarms", "_rows")

    def __init__(self, rows: Rows | ReadRows, alarms: Callable[[], Alarms]) -> None:
        """`alarms`: the object's, for `delete_all(alarms=True)`."""
        self._rows = rows
        self._alarms = alarms

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
        raw = self._rows.get(key)
        return default if raw is None else _decode(key, raw, type)

    @overload
    def get_many(self, keys: Iterable[str]) -> dict[str, Any]: ...
    @overload
    def get_many(self, keys: Iterable[str], type: type[T]) -> dict[str, T]: ...
    def get_many(self, keys: Iterable[str], type: Any = Any) -> dict[str, Any]:
        """The values under those of `keys` that exist."""
        found = {}
        for key in keys:
            raw = self._rows.get(key)
            if raw is not None:
                found[key] = _decode(key, raw, type)
        return found

    def __contains__(self, key: str) -> bool:
        return self._rows.get(key) is not None

    @overload
    def list(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        start_after: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> dict[str, Any]: ...
    @overload
    def list(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        start_after: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
        type: type[T],
    ) -> dict[str, T]: ...
    def list(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        start_after: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
        type: Any = Any,
    ) -> dict[str, Any]:
        """The rows whose key begins with `prefix` and lies in `[start, end)`, in key order (or
        reversed), at most `limit`.

        `start_after`: behind this key, in place of `start`; the last key of a page gives the next
        one, in either order. It returns them all at once: TooLarge when they are more than the
        bytes that a turn may write; page with `limit`.
        """
        if limit is not None and limit < 0:
            raise ValueError(f"limit is {limit}")
        if start_after is not None:
            if start is not None:
                raise ValueError("a list has `start` or `start_after`, not both")
            if reverse:
                end = start_after if end is None else min(end, start_after)
            else:
                start = start_after + "\0"  # the smallest key behind it
        rows: dict[str, Any] = {}
        if limit == 0:
            return rows
        for key, raw in self._rows.scan(prefix, start, end, reverse):
            rows[key] = _decode(key, raw, type)
            if limit is not None and len(rows) >= limit:
                break
        return rows

    # -- writing

    def put(self, key: str, value: Any, *, ttl: timedelta | None = None) -> None:
        """Store `value` under `key`; durable when the turn has committed.

        `ttl`: so long from now it is as if it had been deleted; at most 100 years. Another `put` of
        the key sets the time anew, or, without a `ttl`, keeps the value for good. Raises
        Unavailable while a node of the cluster is too old for it.
        """
        raw = _encode(key, value)
        self._rows.put(key, raw if ttl is None else self._rows.expiring(ttl) + raw)

    def put_many(self, values: Mapping[str, Any], *, ttl: timedelta | None = None) -> None:
        """Store every value of a mapping under its key, or none. `ttl`: as in `put`, for each."""
        expiry = b"" if ttl is None else self._rows.expiring(ttl)
        self._rows.put_many({key: expiry + _encode(key, value) for key, value in values.items()})

    def delete(self, *keys: str) -> int:
        """Remove what is under these keys; how many of them had something."""
        return self._rows.delete(keys)

    def delete_all(self, *, alarms: bool = False) -> None:
        """Remove every key of this object, in one step however many there are; with `alarms` its
        alarms as well, which stay else."""
        if not alarms:
            self._rows.delete_all()
            return
        if isinstance(self._rows, ReadRows):
            raise reads_only("storage.delete_all()")
        own = self._alarms()
        with self._rows.transaction():
            self._rows.delete_all()
            for alarm in own.list():
                own.delete(alarm.name)

    def transaction(self) -> AbstractContextManager[None]:
        """A part of the turn that can fail alone: an exception that leaves the block undoes what
        the block did.

        That is what it wrote, its notifications, and its changes of alarms. What other tasks of the
        turn do meanwhile stays. What tasks do that the block began belongs to it. Blocks may be
        nested. Raises RuntimeError when another task's block is open.
        """
        return self._rows.transaction()


class _Block:
    """An open `transaction()`: what is to be done, last thing first, to undo it. `turn`: of which
    of the object's turns it is."""

    __slots__ = ("closed", "failed", "outer", "rows", "task", "turn", "undo")

    def __init__(self, rows: Rows, turn: int, outer: _Block | None, task: str) -> None:
        self.rows = rows
        self.turn = turn
        self.outer = outer
        self.task = task
        self.undo: list[Callable[[], None]] = []
        self.closed = False
        self.failed = False

    @property
    def innermost_open(self) -> _Block | None:
        """This block, or the nearest one around it that is open still."""
        block: _Block | None = self
        while block is not None and block.closed:
            block = block.outer
        return block


_IN_BLOCK: ContextVar[_Block | None] = ContextVar("holdfast transaction", default=None)
"""The block that the running code belongs to. Tasks that it begins inherit it, and so may turns of
other objects that it calls."""


class Rows:
    """The rows of one object for whoever runs its turns, encoded. Keys are checked here, once."""

    __slots__ = (
        "_block",
        "_cache",
        "_cleared",
        "_effect_bytes",
        "_expiring",
        "_limits",
        "_newest",
        "_reader",
        "_recent",
        "_recent_cleared",
        "_some_failed",
        "_touched",
        "_turn",
        "_write_bytes",
        "_writes",
        "cached_bytes",
        "effects",
        "emptied",
        "some_expire",
    )

    def __init__(self, reader: Reader, limits: Limits, expiring: Expiring | None = None) -> None:
        self._reader = reader
        self._limits = limits
        self._expiring = expiring or WallExpiry()
        self._writes: dict[str, bytes | None] | None = None
        self._turn = 0  # counts them
        self._cleared: object = None  # what cleared them last in this turn
        self._block: _Block | None = None  # the innermost one that is open
        self._some_failed = False  # of the blocks of this turn
        # while blocks are open: what has written each row last
        self._touched: dict[str, object] = {}
        self._write_bytes = 0
        self._effect_bytes = 0
        self._recent: dict[str, tuple[Applied, bytes | None]] | None = None
        self._newest: Applied | None = None
        self._recent_cleared: Applied | None = None
        self._cache: dict[str, bytes | None] = {}
        self.cached_bytes = 0
        self.effects: list[Effect] = []
        """What the open turn does beside its rows, in order: commits with them, and is undone with
        them."""
        self.some_expire = False
        """Whether the open turn has written a value that expires; perhaps undone since."""
        self.emptied = False
        """Whether the open turn found its object expired: there is nothing for it, and if it
        writes, all that is there is deleted."""

    # -- for `Storage`

    def scan(
        self, prefix: str, start: str | None, end: str | None, reverse: bool, ended: bool = False
    ) -> Iterator[tuple[str, bytes]]:
        """The values of a range, as the running turn sees them; with `ended` as turns that ended
        have left them.

        Raises TooLarge when they are more than a turn may write.
        """
        size = 0
        for key, raw in self._range(prefix, start, end, reverse, ended):
            size += len(key) + len(raw)
            if size > self._limits.turn_bytes:
                raise TooLarge(
                    f"list() passes {self._limits.turn_bytes} bytes; use limit and start_after",
                    definite=True,
                )
            if raw[0] != _OPTIONS_BYTE:
                yield key, raw
            elif (bare := self._bare(raw)) is not None:
                yield key, bare

    def expiring(self, ttl: timedelta) -> bytes:
        """What a value begins with that is written now and lives so long."""
        if not timedelta() < checked_timedelta("a ttl", ttl) <= TTL_MAX:
            raise ValueError(
                f"a ttl is more than nothing and at most {TTL_MAX.days} days, not {ttl}"
            )
        due = self._expiring.expiry_ms(max(1, round(ttl.total_seconds() * 1000)))
        self.some_expire = True
        return EXPIRY + due.to_bytes(8, "big")

    def _bare(self, raw: bytes) -> bytes | None:
        """The value of a row with options; None when it has expired."""
        expiry = read_expiry(raw)
        if expiry is None:
            return raw  # of a later version: who decodes it says so
        return None if self._expiring.expired(expiry) else raw[_EXPIRY_BYTES:]

    def put(self, key: str, raw: bytes) -> None:
        """Write a row."""
        writes = self._writes
        if writes is None:
            raise _outside()
        if len(raw) > self._limits.value_bytes:
            raise self._value_too_large(key, raw)
        size = self._key_bytes(key) + len(raw) - self._counted(writes, key)
        if self._write_bytes + size > self._limits.turn_bytes:
            raise self._turn_too_large()
        if self._block is not None or self._some_failed:
            self._note_undo(writes, key)
        self._write_bytes += size
        writes[key] = raw

    def put_many(self, rows: Mapping[str, bytes]) -> None:
        """Write all of these rows, or none."""
        writes = self._writes
        if writes is None:
            raise _outside()
        size = 0
        for key, raw in rows.items():
            if len(raw) > self._limits.value_bytes:
                raise self._value_too_large(key, raw)
            size += self._key_bytes(key) + len(raw) - self._counted(writes, key)
        if self._write_bytes + size > self._limits.turn_bytes:
            raise self._turn_too_large()
        if self._some_failed:
            self._own_block()
        for key, raw in rows.items():
            if self._block is not None:
                self._note_undo(writes, key)
            writes[key] = raw
        self._write_bytes += size

    def delete(self, keys: Iterable[str]) -> int:
        """Delete all of these rows, or none; how many there were."""
        writes = self._writes
        if writes is None:
            raise _outside()
        own: dict[str, None] = {}
        size = 0
        for key in keys:
            key_bytes = self._key_bytes(key)  # whatever is no text has no place in a dict
            if key not in own:
                own[key] = None
                size += key_bytes - self._counted(writes, key)
        if self._write_bytes + size > self._limits.turn_bytes:
            raise self._turn_too_large()
        if self._some_failed:
            self._own_block()
        there = 0
        for key in own:
            there += self.get(key) is not None
            if self._block is not None:
                self._note_undo(writes, key)
            writes[key] = None
        self._write_bytes += size
        return there

    def delete_all(self) -> None:
        """Delete every row."""
        writes = self._writes
        if writes is None:
            raise _outside()
        cleared = object()
        if self._some_failed:
            self._own_block()
        if self._block is not None:
            if (block := self._own_block()) is not None:
                block.undo.append(
                    partial(
                        self._undo_clearing,
                        cleared,
                        dict(writes),
                        dict(self._touched),
                        self._cleared,
                    )
                )
            self._touched.clear()
        writes.clear()
        self._write_bytes = self._effect_bytes
        self._cleared = cleared

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """A part of the turn that can fail alone."""
        if self._writes is None:
            raise _outside()
        around = _IN_BLOCK.get()
        outer = self._block
        if outer is not None and outer is not self._own_block():
            raise RuntimeError(
                f"{_task_name()} begins a transaction() while {outer.task} is in one: blocks of a"
                " turn are nested in each other, or follow each other"
            )
        if outer is None:
            self._touched.clear()
        block = self._block = _Block(self, self._turn, outer, _task_name())
        _IN_BLOCK.set(block)
        try:
            yield
            if self._turn == block.turn and self._block is not block:
                if self._block is None or block.closed:
                    raise RuntimeError("a transaction() ended after the one that it was begun in")
                raise RuntimeError(
                    f"a transaction() ended while {self._block.task} was still in one that it began"
                    " inside"
                )
        except BaseException:
            if self._turn == block.turn and self._writes is not None:
                self._undo(block)
            raise
        else:
            if outer is not None:
                outer.undo += block.undo
                # what a task that it began does from now on belongs to the outer one
                block.undo = outer.undo
        finally:
            block.closed = True
            _IN_BLOCK.set(around)
            if self._turn == block.turn:
                self._block = None if self._block is None else self._block.innermost_open

    def _undo(self, block: _Block) -> None:
        """Undo a block, and before it those that were begun inside and are open still: they have
        failed with it."""
        inner = self._block
        while inner is not None and inner is not block:
            if not inner.closed:
                inner.closed = True
                self._undo_all(inner)
            inner = inner.outer
        self._undo_all(block)

    def _undo_all(self, block: _Block) -> None:
        block.failed = self._some_failed = True
        undo, block.undo = block.undo, []
        for one in reversed(undo):
            one()

    def _own_block(self) -> _Block | None:
        """The open block of this object's running turn that the running code belongs to."""
        block = _IN_BLOCK.get()
        if block is None or block.rows is not self or block.turn != self._turn:
            return None
        around: _Block | None = block
        while around is not None:
            if around.failed:
                raise RuntimeError(
                    f"{_task_name()} was begun in a transaction() that has failed: it can change"
                    " nothing any more"
                )
            around = around.outer
        return block.innermost_open

    def _note_undo(self, writes: dict[str, bytes | None], key: str) -> None:
        """A block is open: note who writes this row, and, if it is the block, how to undo it."""
        touch = object()
        block = self._own_block()
        if block is not None:
            block.undo.append(
                partial(
                    self._undo_write, key, touch, writes.get(key, _MISSING), self._touched.get(key)
                )
            )
        self._touched[key] = touch

    def _undo_write(self, key: str, touch: object, before: Any, touched_before: object) -> None:
        """Unless somebody else has written there since."""
        writes = self._writes
        assert writes is not None
        if self._touched.get(key) is not touch:
            return
        if touched_before is None:
            del self._touched[key]
        else:
            self._touched[key] = touched_before
        self._write_bytes -= self._counted(writes, key)
        if before is _MISSING:
            del writes[key]
        else:
            writes[key] = before
            self._write_bytes += self._counted(writes, key)

    def _undo_clearing(
        self,
        cleared: object,
        before: dict[str, bytes | None],
        touched_before: dict[str, object],
        cleared_before: object,
    ) -> None:
        """What is there now, others have written since. If somebody else has cleared it too, that
        holds."""
        if self._cleared is not cleared:
            return
        writes = self._writes
        assert writes is not None
        self._writes = before | writes
        self._touched = touched_before | self._touched
        self._cleared = cleared_before
        self._write_bytes = self._effect_bytes + sum(
            self._counted(self._writes, key) for key in self._writes
        )

    # -- what may be written

    def _key_bytes(self, key: str) -> int:
        """The bytes of a key. Raises TypeError, ValueError or TooLarge for what is none."""
        if not isinstance(key, str):
            raise TypeError(f"a storage key is text, not {type(key).__name__}: {key!r:.100}")
        try:
            size = len(key) if key.isascii() else len(key.encode())
        except UnicodeEncodeError:
            raise ValueError(f"storage key {key!r:.100} is no text that UTF-8 can hold") from None
        if size > self._limits.key_bytes:
            raise TooLarge(
                f"storage key of {size} bytes; 1 to {self._limits.key_bytes}", definite=True
            )
        if not size:
            raise ValueError("a storage key is not empty")
        return size

    @staticmethod
    def _counted(writes: dict[str, bytes | None], key: str) -> int:
        """What a row of the open turn counts for: 0 when it has none."""
        raw = writes.get(key, _MISSING)
        if raw is _MISSING:
            return 0
        return (len(key) if key.isascii() else len(key.encode())) + (len(raw) if raw else 0)

    def _value_too_large(self, key: str, raw: bytes) -> TooLarge:
        return TooLarge(
            f"value of {key!r:.100}: {len(raw)} bytes, at most {self._limits.value_bytes}",
            definite=True,
        )

    def _turn_too_large(self) -> TooLarge:
        return TooLarge(f"the turn writes more than {self._limits.turn_bytes} bytes", definite=True)

    # -- for whoever runs turns

    def begin(self) -> None:
        """Open a turn."""
        assert self._writes is None, "a turn of this object is open"
        self._writes = {}
        self._turn += 1
        self._block = None
        self._some_failed = self.some_expire = self.emptied = False
        self._write_bytes = self._effect_bytes = 0
        if self._recent:
            self.settle()

    def empty(self) -> None:
        """The open turn has just begun, and its object has expired."""
        self.emptied = True
        self._cleared = _EXPIRED

    def rollback(self) -> None:
        """Close the turn and forget what it wrote."""
        self._writes = None
        self.effects.clear()
        self._cleared = None

    def changed(self) -> bool:
        """Whether the open turn wrote anything."""
        return (
            bool(self._writes)
            or bool(self.effects)
            or (self._cleared is not None and self._cleared is not _EXPIRED)
        )

    def is_open(self) -> bool:
        """Whether a turn is open."""
        return self._writes is not None

    def add_effect(self, effect: Effect) -> None:
        """Add what the open turn does beside its rows."""
        if self._writes is None:
            raise _outside()
        size = effect.size
        if self._write_bytes + size > self._limits.turn_bytes:
            raise self._turn_too_large()
        if (self._block is not None or self._some_failed) and (
            block := self._own_block()
        ) is not None:
            block.undo.append(partial(self._undo_effect, effect, size))
        self._write_bytes += size
        self._effect_bytes += size
        self.effects.append(effect)

    def _undo_effect(self, effect: Effect, size: int) -> None:
        self.effects[:] = [other for other in self.effects if other is not effect]
        self._write_bytes -= size
        self._effect_bytes -= size

    def take(self, prefix: bytes = b"") -> tuple[bool, Writes, bool]:
        """The open turn's writes: whether everything before them was deleted, the rows, `prefix`
        before their keys, and whether any of those is a delete. The turn stays open.
        """
        writes = self._writes
        assert writes is not None
        return (
            self._cleared is not None,
            [(prefix + key.encode(), raw) for key, raw in writes.items()],
            None in writes.values(),
        )

    def close(self, entry: Applied | None) -> None:
        """Close the turn; its writes belong to `entry` (None when it wrote nothing)."""
        writes, self._writes = self._writes, None
        if self.effects:
            self.effects.clear()
        if entry is None:
            return
        assert writes is not None
        self._newest = entry
        if self._cleared is not None:
            self._cleared = None
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

    def get(self, key: str) -> bytes | None:
        """The value under a key, as the running turn sees it."""
        writes = self._writes
        if writes is None:
            raise _outside()
        if type(key) is not str or not 0 < len(key) <= _KEY_SHORT or not key.isascii():
            self._key_bytes(key)
        if writes or self._cleared is not None:
            raw = writes.get(key, _MISSING)
            if raw is _MISSING:
                raw = None if self._cleared is not None else self.left(key)
        else:
            raw = self.left(key)
        return self._bare(raw) if raw is not None and raw[0] == _OPTIONS_BYTE else raw

    def get_ended(self, key: str) -> bytes | None:
        """The value under a key, as turns that ended have left it."""
        self._key_bytes(key)
        raw = self.left(key)
        return self._bare(raw) if raw is not None and raw[0] == _OPTIONS_BYTE else raw

    def left(self, key: str) -> bytes | None:
        """The row under a key, as turns that ended have left it."""
        if self._recent:
            row = self._recent.get(key)
            if row is not None:
                return row[1]
        raw = self._cache.get(key, _MISSING)
        if raw is not _MISSING:
            # only a filling cache needs the order of use
            if self.cached_bytes * 2 > self._limits.cache_bytes:
                self._cache[key] = self._cache.pop(key)
            return raw  # type: ignore[no-any-return]
        if self._recent_cleared is not None:
            if not self._recent_cleared.applied:
                return None
            self._recent_cleared = None
        raw = self._reader.get(key.encode())
        self._remember(key, raw)
        return raw

    def _range(
        self, prefix: str, start: str | None, end: str | None, reverse: bool, ended: bool
    ) -> Iterator[tuple[str, bytes]]:
        writes, cleared_now = ({}, None) if ended else (self._writes, self._cleared)
        if writes is None:
            raise _outside()
        lower = max(prefix, start or "")
        overlay: dict[str, bytes | None] = {}
        if cleared_now is None and self._recent:
            overlay = {key: raw for key, (_, raw) in self._recent.items()}
        overlay.update(writes)
        mine = sorted(
            (
                (k, r)
                for k, r in overlay.items()
                if k.startswith(prefix) and k >= lower and (end is None or k < end)
            ),
            reverse=reverse,
            key=_first,
        )
        cleared = self._recent_cleared is not None and not self._recent_cleared.applied
        if cleared_now is not None or cleared:
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

    def settle(self) -> None:
        """Move what the store shows by now from layer 2 to the cache; call it when entries were
        applied."""
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
        if (
            old
            and raw
            and old is not _MISSING
            and len(old) == len(raw)
            and self.cached_bytes * 2 < self._limits.cache_bytes
        ):
            # the usual rewrite: nothing to count, and the order does not matter yet
            cache[key] = raw
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


class ReadRows:
    """The rows of one object for a read beside its turns: as turns that ended have left them, until
    the read is `closed`."""

    __slots__ = ("_rows", "closed", "gone")

    def __init__(self, rows: Rows, gone: Callable[[], bool]) -> None:
        """`gone`: whether the object itself has expired, so that there is nothing."""
        self._rows = rows
        self.gone = gone
        self.closed = False

    def get(self, key: str) -> bytes | None:
        if self.closed:
            raise _outside()
        raw = self._rows.get_ended(key)
        return None if self.gone() else raw

    def scan(
        self, prefix: str, start: str | None, end: str | None, reverse: bool
    ) -> Iterator[tuple[str, bytes]]:
        if self.closed:
            raise _outside()
        return iter(()) if self.gone() else self._rows.scan(prefix, start, end, reverse, ended=True)

    def put(self, key: str, raw: bytes) -> None:
        raise reads_only("storage.put()")

    def put_many(self, rows: Mapping[str, bytes]) -> None:
        raise reads_only("storage.put_many()")

    def expiring(self, ttl: timedelta) -> bytes:
        raise reads_only("storage.put()")

    def delete(self, keys: Iterable[str]) -> int:
        raise reads_only("storage.delete()")

    def delete_all(self) -> None:
        raise reads_only("storage.delete_all()")

    def transaction(self) -> AbstractContextManager[None]:
        raise reads_only("storage.transaction()")


def reads_only(what: str) -> RuntimeError:
    """The error for a read that would write."""
    return RuntimeError(
        f"{what} in a handler with @holdfast.reads, which cannot write: it runs beside the object's"
        " turns"
    )


def read_expiry(raw: bytes) -> int | None:
    """The Unix time in ms at which a stored value expires; None for one that does not."""
    return (
        int.from_bytes(raw[len(EXPIRY) : _EXPIRY_BYTES], "big") if raw.startswith(EXPIRY) else None
    )


def read_value(raw: bytes) -> bytes:
    """A stored value without its expiry."""
    return raw[_EXPIRY_BYTES:] if raw.startswith(EXPIRY) else raw


class MemoryReader:
    """A store in memory, for tests and `holdfast.testing`."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        return self.rows.get(key)

    def scan(self, start: bytes, end: bytes | None, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        keys = sorted(
            (k for k in self.rows if k >= start and (end is None or k < end)), reverse=reverse
        )
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


def _encode(key: str, value: Any) -> bytes:
    try:
        return codec.encode(value)
    except (
        Exception
    ) as error:  # of a type that is no data, too deep, too large a number, half a character
        raise TypeError(
            f"the value of {key!r:.100} cannot be stored: {error or type(error).__name__}"
        ) from None


def _task_name() -> str:
    try:
        task = asyncio.current_task()
    except RuntimeError:  # there is no loop, as in tests
        task = None
    return "the handler" if task is None else task.get_name()


def _decode(key: str, raw: bytes, type: Any) -> Any:
    try:
        return codec.decode(raw, type)
    except msgspec.ValidationError as error:
        raise msgspec.ValidationError(f"what is stored under {key!r}: {error}") from None
    except Exception:
        if raw[:1] == OPTIONS:
            raise RuntimeError(
                f"what is stored under {key!r} has options, which this version does not know"
            ) from None
        raise


def _first(row: tuple[str, Any]) -> str:
    return row[0]


def _after_prefix(prefix: str) -> bytes | None:
    """The smallest byte string after every key that begins with `prefix`; None when there is no
    bound."""
    raw = prefix.encode()
    # UTF-8 has no 0xff, so the last byte can be raised
    return raw[:-1] + bytes([raw[-1] + 1]) if raw else None


def _outside() -> RuntimeError:
    return RuntimeError(
        "storage is only there while a turn runs; do not keep tasks that outlive their handler"
    )
