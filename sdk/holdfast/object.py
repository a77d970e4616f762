"""What users derive their kinds from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from holdfast.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Awaitable

T = TypeVar("T")


class Request(Protocol):
    """The request that the running turn executes."""

    @property
    def id(self) -> bytes:
        """16 bytes, the same in every attempt."""

    @property
    def attempt(self) -> int:
        """0 for the first sending."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the caller sent along."""

    @property
    def remaining_s(self) -> float:
        """Seconds until the turn is cancelled and rolled back."""


class Objects(Protocol):
    """Reaches other objects from inside a turn."""

    def get(self, kind: type[T] | str, key: str, *, timeout: float | None = None) -> Any:
        """A stub: `await stub.method(...)` calls that object and returns its reply.

        The call carries an id derived from this turn's, so a turn that is run again does not repeat its effect. A call
        that would come back to an object that waits for it fails at once with Deadlock.
        """


class Context(Protocol):
    """What the node gives to an object: everything but its storage."""

    @property
    def kind_name(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def epoch(self) -> int: ...
    @property
    def objects(self) -> Objects: ...
    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]: ...
    @property
    def request(self) -> Request: ...


class DurableObject:
    """One object of a kind, while it is active on its owner.

    Public methods, `def` or `async def`, are handlers. An object runs one turn at a time; what a turn wrote commits
    together before its reply leaves, and an exception rolls all of it back and drops this instance. Attributes of the
    instance are a cache: they vanish at any time between turns, so what must stay belongs into `self.storage`.
    """

    __slots__ = ("_context", "storage")

    _context: Context
    storage: Storage
    """The object's durable state."""

    @property
    def kind(self) -> str:
        """The name under which the class is registered."""
        return self._context.kind_name

    @property
    def key(self) -> str:
        """The object's name among its kind."""
        return self._context.key

    @property
    def epoch(self) -> int:
        """The epoch of the shard: pass it to outside systems as a fencing token."""
        return self._context.epoch

    @property
    def objects(self) -> Objects:
        """Other objects: `await self.objects.get(Portfolio, "p-7").add(3)`."""
        return self._context.objects

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that adds kind, key, epoch and request id to every line."""
        return self._context.log

    @property
    def request(self) -> Request:
        """The request of the running turn."""
        return self._context.request

    def on_activate(self) -> Awaitable[None] | None:
        """Runs at the start of the first turn after activation, as a part of it: load what you want to keep at hand."""

    def on_evict(self) -> Awaitable[None] | None:
        """Runs as a turn of its own before the instance is dropped for idleness or memory; not on a crash or a move."""
