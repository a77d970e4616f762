"""The rows of one object, as its turns see and write them.

A read looks first at the running turn's own writes (`_writes`, and `_cleared` once it has deleted
everything). Then it looks at the layers below (`RowLayers`). All layers hold encoded bytes. If a
handler changes a value in place, the rows do not change until the handler puts it. Outside of a
turn `Rows` refuses every access, so a task that outlives its turn cannot write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import partial
from typing import Any, Protocol

import msgspec
from holdfast.deadlines import checked_timedelta
from holdfast.errors import TooLarge
from holdfast.storage import TTL_MAX, reads_only

from holdfast_node.effects.effect import TurnEffect
from holdfast_node.effects.row_layers import Applied, Reader, RowLayers
from holdfast_node.effects.transactions import Blocks
from holdfast_node.store.values import OPTIONS_BYTE, expiry_option, read_expiry, read_value

_MISSING: Any = object()
_EXPIRED: Any = object()
_KEY_SHORT = 256  # ASCII keys up to this length need no further check

Write = tuple[bytes, bytes | None]
"""One change of a row: (key, value) puts, (key, None) deletes. Keys are user keys as UTF-8."""
Writes = list[Write]
"""The changes of a turn to its object's rows, in order."""


class StorageLimits(msgspec.Struct, frozen=True):
    """Bounds of one object's storage."""

    key_bytes: int = 1024
    value_bytes: int = 2 << 20
    turn_bytes: int = 16 << 20
    """The bytes of all keys and values that one turn may write, or that one `list` may return."""
    cache_bytes: int = 256 << 10
    """The size of one object's hot cache, with Python's own overhead."""


class Expiring(Protocol):
    """The judge of whether values have expired: the object's shard."""

    def expiry_ms(self, ttl_ms: int) -> int:
        """Return the Unix time in ms that is `ttl_ms` from now.

        Raises Unavailable while no value may expire.
        """

    def expired(self, expiry_ms: int) -> bool:
        """Return whether this time has come."""


class Rows:
    """The encoded rows of one object, for the code that runs its turns. It checks keys, once."""

    __slots__ = (
        "_blocks",
        "_cleared",
        "_effect_bytes",
        "_expiring",
        "_limits",
        "_write_bytes",
        "_writes",
        "effects",
        "emptied",
        "layers",
        "some_expire",
    )

    def __init__(self, reader: Reader, limits: StorageLimits, expiring: Expiring) -> None:
        self._limits = limits
        self._expiring = expiring
        self._writes: dict[str, bytes | None] | None = None
        # a mark of the last deletion of all rows in this turn
        self._cleared: object = None
        self._blocks: Blocks | None = None  # of turns that use transaction()
        self._write_bytes = 0
        self._effect_bytes = 0
        self.layers = RowLayers(reader, limits.cache_bytes)
        """The rows as ended turns have left them."""
        self.effects: list[TurnEffect] = []
        """Other effects of the open turn, in order. They commit and are undone with its rows."""
        self.some_expire = False
        """Whether the open turn has written a value that expires. The write may be undone since."""
        self.emptied = False
        """Whether the open turn found its object expired. It then sees no rows. If it writes, its
        commit deletes all old rows."""

    # -- for `holdfast.storage.Storage`

    def scan(
        self, prefix: str, start: str | None, end: str | None, reverse: bool, ended: bool = False
    ) -> Iterator[tuple[str, bytes]]:
        """Yield the values of a range, as the running turn sees them.

        With `ended`, yield them as ended turns have left them. Raises TooLarge if they have more
        bytes than a turn may write.
        """
        size = 0
        for key, raw in self._range(prefix, start, end, reverse, ended):
            size += len(key) + len(raw)
            if size > self._limits.turn_bytes:
                raise TooLarge(
                    f"list() passes {self._limits.turn_bytes} bytes; use limit and start_after",
                    definite=True,
                )
            if raw[0] != OPTIONS_BYTE:
                yield key, raw
            elif (bare := self._bare(raw)) is not None:
                yield key, bare

    def expiring(self, ttl: timedelta) -> bytes:
        """Return the bytes that stand before a value which expires after `ttl` from now."""
        if not timedelta() < checked_timedelta("a ttl", ttl) <= TTL_MAX:
            raise ValueError(
                f"a ttl is more than nothing and at most {TTL_MAX.days} days, not {ttl}"
            )
        due = self._expiring.expiry_ms(max(1, round(ttl.total_seconds() * 1000)))
        self.some_expire = True
        return expiry_option(due)

    def _bare(self, raw: bytes) -> bytes | None:
        """Return the value of a row with options; None if it has expired."""
        expiry = read_expiry(raw)
        if expiry is None:
            return raw  # of a later version: decoding it raises the error
        return None if self._expiring.expired(expiry) else read_value(raw)

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
        if self._blocks is not None:
            self._note_undo(self._blocks, writes, key)
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
        if self._blocks is not None:
            self._blocks.own()  # refuses code of a block that has failed
        for key, raw in rows.items():
            if self._blocks is not None:
                self._note_undo(self._blocks, writes, key)
            writes[key] = raw
        self._write_bytes += size

    def delete(self, keys: Iterable[str]) -> int:
        """Delete all of these rows, or none. Return how many of them existed."""
        writes = self._writes
        if writes is None:
            raise _outside()
        own: dict[str, None] = {}
        size = 0
        for key in keys:
            key_bytes = self._key_bytes(key)  # refuses keys that are no text
            if key not in own:
                own[key] = None
                size += key_bytes - self._counted(writes, key)
        if self._write_bytes + size > self._limits.turn_bytes:
            raise self._turn_too_large()
        if self._blocks is not None:
            self._blocks.own()
        there = 0
        for key in own:
            there += self.get(key) is not None
            if self._blocks is not None:
                self._note_undo(self._blocks, writes, key)
            writes[key] = None
        self._write_bytes += size
        return there

    def delete_all(self) -> None:
        """Delete every row."""
        writes = self._writes
        if writes is None:
            raise _outside()
        cleared = object()
        if self._blocks is not None:
            if (block := self._blocks.own()) is not None:
                block.undo.append(
                    partial(
                        self._undo_clearing,
                        self._blocks,
                        cleared,
                        dict(writes),
                        dict(self._blocks.touched),
                        self._cleared,
                    )
                )
            self._blocks.touched.clear()
        writes.clear()
        self._write_bytes = self._effect_bytes
        self._cleared = cleared

    def transaction(self, what: str) -> AbstractContextManager[None]:
        """Open a part of the turn that can fail alone."""
        if self._writes is None:
            raise _outside()
        if self._blocks is None:
            self._blocks = Blocks()
        return self._blocks.block(self._is_running)

    def _is_running(self, blocks: Blocks) -> bool:
        return self._blocks is blocks and self._writes is not None

    def _note_undo(self, blocks: Blocks, writes: dict[str, bytes | None], key: str) -> None:
        """Record a write of this row. If a block writes it, record how to undo it."""
        touch = object()
        block = blocks.own()
        if block is not None:
            block.undo.append(
                partial(
                    self._undo_write,
                    blocks,
                    key,
                    touch,
                    writes.get(key, _MISSING),
                    blocks.touched.get(key),
                )
            )
        blocks.touched[key] = touch

    def _undo_write(
        self, blocks: Blocks, key: str, touch: object, before: Any, touched_before: object
    ) -> None:
        """Undo a block's write of a row, unless a later write has replaced it."""
        writes = self._writes
        assert writes is not None
        if blocks.touched.get(key) is not touch:
            return
        if touched_before is None:
            del blocks.touched[key]
        else:
            blocks.touched[key] = touched_before
        self._write_bytes -= self._counted(writes, key)
        if before is _MISSING:
            del writes[key]
        else:
            writes[key] = before
            self._write_bytes += self._counted(writes, key)

    def _undo_clearing(
        self,
        blocks: Blocks,
        cleared: object,
        before: dict[str, bytes | None],
        touched_before: dict[str, object],
        cleared_before: object,
    ) -> None:
        """Undo a block's deletion of all rows, unless a later deletion has replaced it.

        Rows that other tasks have written since stay.
        """
        if self._cleared is not cleared:
            return
        writes = self._writes
        assert writes is not None
        self._writes = before | writes
        blocks.touched = touched_before | blocks.touched
        self._cleared = cleared_before
        self._write_bytes = self._effect_bytes + sum(
            self._counted(self._writes, key) for key in self._writes
        )

    # -- what may be written

    def _key_bytes(self, key: str) -> int:
        """Return the size of a key. Raises TypeError, ValueError or TooLarge for an invalid one."""
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
        """Return the bytes that a row of the open turn counts for; 0 if the turn has not written
        it."""
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

    # -- for the code that runs turns

    def begin(self) -> None:
        """Open a turn."""
        assert self._writes is None, "a turn of this object is open"
        self._writes = {}
        self._blocks = None
        self.some_expire = self.emptied = False
        self._write_bytes = self._effect_bytes = 0
        self.layers.settle()

    def empty(self) -> None:
        """Take note that the object has expired. The open turn has just begun."""
        self.emptied = True
        self._cleared = _EXPIRED

    def rollback(self) -> None:
        """Close the turn and forget its writes."""
        self._writes = None
        self.effects.clear()
        self._cleared = None

    def changed(self) -> bool:
        """Return whether the open turn has written or has effects."""
        return (
            bool(self._writes)
            or bool(self.effects)
            or (self._cleared is not None and self._cleared is not _EXPIRED)
        )

    def is_open(self) -> bool:
        """Return whether a turn is open."""
        return self._writes is not None

    def add_effect(self, effect: TurnEffect) -> None:
        """Add an effect of the open turn that is no row."""
        if self._writes is None:
            raise _outside()
        size = effect.size
        if self._write_bytes + size > self._limits.turn_bytes:
            raise self._turn_too_large()
        if self._blocks is not None and (block := self._blocks.own()) is not None:
            block.undo.append(partial(self._undo_effect, effect, size))
        self._write_bytes += size
        self._effect_bytes += size
        self.effects.append(effect)

    def _undo_effect(self, effect: TurnEffect, size: int) -> None:
        self.effects[:] = [other for other in self.effects if other is not effect]
        self._write_bytes -= size
        self._effect_bytes -= size

    def take(self, prefix: bytes = b"") -> tuple[bool, Writes, bool]:
        """Return the open turn's writes. The turn stays open.

        The result is: whether the turn first deleted all rows; the writes, with `prefix` before
        their keys; whether any of the writes is a delete.
        """
        writes = self._writes
        assert writes is not None
        return (
            self._cleared is not None,
            [(prefix + key.encode(), raw) for key, raw in writes.items()],
            None in writes.values(),
        )

    def close(self, entry: Applied | None) -> None:
        """Close the turn. Its writes belong to `entry` (None if it wrote nothing)."""
        writes, self._writes = self._writes, None
        if self.effects:
            self.effects.clear()
        if entry is None:
            return
        assert writes is not None
        cleared, self._cleared = self._cleared is not None, None
        self.layers.add(entry, writes, cleared)

    # -- layers

    def get(self, key: str) -> bytes | None:
        """Return the value under a key, as the running turn sees it."""
        writes = self._writes
        if writes is None:
            raise _outside()
        if type(key) is not str or not 0 < len(key) <= _KEY_SHORT or not key.isascii():
            self._key_bytes(key)
        if writes or self._cleared is not None:
            raw = writes.get(key, _MISSING)
            if raw is _MISSING:
                raw = None if self._cleared is not None else self.layers.get(key)
        else:
            raw = self.layers.get(key)
        return self._bare(raw) if raw is not None and raw[0] == OPTIONS_BYTE else raw

    def get_ended(self, key: str) -> bytes | None:
        """Return the value under a key, as ended turns have left it."""
        self._key_bytes(key)
        raw = self.layers.get(key)
        return self._bare(raw) if raw is not None and raw[0] == OPTIONS_BYTE else raw

    def _range(
        self, prefix: str, start: str | None, end: str | None, reverse: bool, ended: bool
    ) -> Iterator[tuple[str, bytes]]:
        writes, cleared = ({}, None) if ended else (self._writes, self._cleared)
        if writes is None:
            raise _outside()
        return self.layers.range(prefix, start, end, reverse, writes, cleared is not None)

    @property
    def write_bytes(self) -> int:
        """The bytes that the open turn's writes and effects count for."""
        return self._write_bytes


class ReadRows:
    """The rows of one object for a read beside its turns, until the read is `closed`.

    The read sees the rows as ended turns have left them.
    """

    __slots__ = ("_rows", "closed", "gone")

    def __init__(self, rows: Rows, gone: Callable[[], bool]) -> None:
        """Wrap `rows`. If `gone` finds the object expired, the read sees no rows."""
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

    def transaction(self, what: str) -> AbstractContextManager[None]:
        raise reads_only(what)


def _outside() -> RuntimeError:
    return RuntimeError(
        "storage is only there while a turn runs; do not keep tasks that outlive their handler"
    )
