"""The storage of one object: an ordered mapping from text keys to values, with transactions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

import msgspec

from holdfast import codec

if TYPE_CHECKING:
    from holdfast.alarms import Alarms

T = TypeVar("T")

OPTIONS = b"\xc1"
"""The first byte of a stored value with options. No msgpack value begins with it."""
TTL_MAX = timedelta(days=36_525)
"""The longest `ttl` of a value or of an object."""


class RowAccess(Protocol):
    """The rows of one object, encoded, as a node gives them to `Storage`.

    Each function raises the errors that `Storage` names, before it changes any row.
    """

    def get(self, key: str) -> bytes | None:
        """Return the value under a key; None if there is none."""

    def scan(
        self, prefix: str, start: str | None, end: str | None, reverse: bool
    ) -> Iterator[tuple[str, bytes]]:
        """Yield the rows of a range in the order of their keys, or reversed."""

    def expiring(self, ttl: timedelta) -> bytes:
        """Return the bytes that stand before a value which expires after `ttl` from now."""

    def put(self, key: str, raw: bytes) -> None:
        """Write a row."""

    def put_many(self, rows: Mapping[str, bytes]) -> None:
        """Write all of these rows, or none."""

    def delete(self, keys: Iterable[str]) -> int:
        """Delete all of these rows, or none. Return how many of them existed."""

    def delete_all(self) -> None:
        """Delete every row."""

    def transaction(self, what: str) -> AbstractContextManager[None]:
        """Open a part of the turn that can fail alone. `what`: the operation, for errors."""


class Storage:
    """The storage of an object, as `self.storage`.

    Keys are text of 1 to 1,024 bytes. Values are of the types that `holdfast.codec` encodes. An
    operation that raises an error changes nothing. Operations raise:

    - TypeError if a key is no text, or a value cannot be stored,
    - ValueError if a key is empty, or is no valid UTF-8,
    - TooLarge if a key, a value or the turn's writes pass their limit,
    - msgspec.ValidationError if a stored value is not of the requested type,
    - RuntimeError outside of a turn.
    """

    __slots__ = ("_alarms", "_rows")

    def __init__(self, rows: RowAccess, alarms: Callable[[], Alarms]) -> None:
        """Wrap `rows`. `alarms` returns the object's alarms, for `delete_all(alarms=True)`."""
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
        """Return the value under `key`, decoded as `type`; `default` if there is none."""
        raw = self._rows.get(key)
        return default if raw is None else _decode(key, raw, type)

    @overload
    def get_many(self, keys: Iterable[str]) -> dict[str, Any]: ...
    @overload
    def get_many(self, keys: Iterable[str], type: type[T]) -> dict[str, T]: ...
    def get_many(self, keys: Iterable[str], type: Any = Any) -> dict[str, Any]:
        """Return the values under `keys`. The result lacks keys that have no value."""
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
        """Return the rows whose key begins with `prefix` and lies in `[start, end)`.

        The rows are in key order, or reversed, and at most `limit`. With `start_after`, in place of
        `start`, they begin behind that key. To get the next page in either order, pass the last key
        of a page as `start_after`. The rows are returned all at once. Raises TooLarge if they have
        more bytes than a turn may write; then use `limit` and pages.
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
        """Store `value` under `key`. It is durable when the turn has committed.

        After `ttl` from now the value counts as deleted; `ttl` is at most 100 years. Another `put`
        of the key sets a new time, or, without a `ttl`, keeps the value for good. With a `ttl`,
        raises Unavailable while a node of the cluster is too old to support it.
        """
        raw = _encode(key, value)
        self._rows.put(key, raw if ttl is None else self._rows.expiring(ttl) + raw)

    def put_many(self, values: Mapping[str, Any], *, ttl: timedelta | None = None) -> None:
        """Store all values of a mapping under their keys, or none. `ttl` applies to each value."""
        expiry = b"" if ttl is None else self._rows.expiring(ttl)
        self._rows.put_many({key: expiry + _encode(key, value) for key, value in values.items()})

    def delete(self, *keys: str) -> int:
        """Remove the values under these keys. Return how many of the keys had a value."""
        return self._rows.delete(keys)

    def delete_all(self, *, alarms: bool = False) -> None:
        """Remove all keys of this object in one step.

        With `alarms`, remove its alarms too. Otherwise they stay.
        """
        if not alarms:
            self._rows.delete_all()
            return
        with self._rows.transaction("storage.delete_all()"):
            own = self._alarms()
            self._rows.delete_all()
            for alarm in own.list():
                own.delete(alarm.name)

    def transaction(self) -> AbstractContextManager[None]:
        """Open a block: a part of the turn that can fail alone.

        An exception that leaves the block undoes its writes, its notifications and its changes of
        alarms. Changes by other tasks of the turn stay. Changes by tasks that the block began
        belong to the block. Blocks may be nested. Raises RuntimeError if another task's block is
        open.
        """
        return self._rows.transaction("storage.transaction()")


def reads_only(what: str) -> RuntimeError:
    """Return the error for a read that tries to write."""
    return RuntimeError(
        f"{what} in a handler with @holdfast.reads, which cannot write: it runs beside the object's"
        " turns"
    )


def _encode(key: str, value: Any) -> bytes:
    try:
        return codec.encode(value)
    except Exception as error:  # an unknown type, too deep, too large a number, half a character
        raise TypeError(
            f"the value of {key!r:.100} cannot be stored: {error or type(error).__name__}"
        ) from None


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
