"""What users derive their kinds from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from holdfast.alarms import DEFAULT, Alarm, Alarms, Misfire
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
    def caller(self) -> str:
        """Who made it; see `DurableObject.caller`."""

    @property
    def remaining_s(self) -> float:
        """Seconds until the turn is cancelled and rolled back."""


class Objects(Protocol):
    """Reaches other objects from inside a turn."""

    @overload
    def get(self, kind: type[T], key: str, *, timeout: float | None = None) -> T: ...
    @overload
    def get(self, kind: str, key: str, *, timeout: float | None = None) -> Any: ...
    def get(self, kind: Any, key: str, *, timeout: float | None = None) -> Any:
        """A stub: `await stub.method(...)` calls that object and returns its reply.

        The call carries an id derived from this turn's, so a turn that is run again does not repeat
        its effect. A call that would come back to an object that waits for it fails at once with
        Deadlock.
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
    def alarms(self) -> Alarms: ...
    def notify(self, kind: type | str, key: str, delay: timedelta | None) -> Any: ...
    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]: ...
    @property
    def request(self) -> Request: ...
    def deactivate(self) -> None: ...


class DurableObject:
    """One object of a kind, while it is active on its owner.

    Public methods, `def` or `async def`, are handlers. An object runs one turn at a time; what a
    turn wrote commits together before its reply leaves, and an exception rolls all of it back and
    drops this instance. Attributes of the instance are a cache: they vanish at any time between
    turns, so what must stay belongs into `self.storage`.
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
    def caller(self) -> str:
        """Who made the request of the running turn: the subject that the gateway has found out (a
        token's, a certificate's), empty where gateways ask nobody who they are; `object:Kind/key`
        when another object calls or notifies; empty for an alarm.
        """
        return self._context.request.caller

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

    @overload
    def notify(self, kind: type[T], key: str, *, delay: timedelta | None = None) -> Any: ...
    @overload
    def notify(self, kind: str, key: str, *, delay: timedelta | None = None) -> Any: ...
    def notify(self, kind: Any, key: str, *, delay: timedelta | None = None) -> Any:
        """Tell another object something: `self.notify(Portfolio, "p-7").property_changed(change)`.

        It leaves only if this turn commits, and then it certainly arrives: once, in the order in
        which this object notified that one (a delayed one when its time has come), retried for as
        long as the receiver fails, at last as a dead letter. Nothing comes back. Raises Overloaded
        when too much of this object's waits to be delivered, TooLarge for arguments over their
        limit.
        """
        return self._context.notify(kind, key, delay)

    def set_alarm(
        self,
        when: datetime | timedelta | None = None,
        name: str = DEFAULT,
        payload: Any = None,
        *,
        every: timedelta | str | None = None,
        timezone: str = "UTC",
        misfire: Misfire = "once",
        times: int | None = None,
        until: datetime | timedelta | None = None,
    ) -> None:
        """Have `on_alarm` run at `when` (a datetime with a time zone, or from now); an alarm of
        that name is replaced.

        It is set only if this turn commits. `every`: repeat it, at a fixed distance or by a cron
        expression (five fields, in `timezone`); without `when` it fires first when that comes next.
        It ends after `times` firings, or with the last one that is due no later than `until`.
        `misfire`, when it is later than a minute because the cluster was down: fire "once" for all
        that was missed (which is one of `times`), "all" of them one after the other, or "skip" them
        (which count for none). Raises TypeError when the class has no `on_alarm`, ValueError for a
        time that makes no sense, TooLarge for more alarms, a longer name or a larger payload than
        is allowed.
        """
        self._context.alarms.set(when, name, payload, every, timezone, misfire, times, until)

    def get_alarm(self, name: str = DEFAULT) -> Alarm | None:
        """The alarm of this name that is to fire; None when there is none."""
        return self._context.alarms.get(name)

    def delete_alarm(self, name: str = DEFAULT) -> bool:
        """Take back an alarm; whether there was one."""
        return self._context.alarms.delete(name)

    def list_alarms(self) -> list[Alarm]:
        """All alarms of this object that are to fire, the next one first."""
        return self._context.alarms.list()

    def deactivate(self) -> None:
        """Leave memory when this turn has ended well: `on_evict` runs, and the next call makes a
        new instance.

        A turn that fails drops its instance anyway. Raises RuntimeError in a read beside turns.
        """
        self._context.deactivate()

    def on_alarm(self, alarm: Alarm) -> Awaitable[None] | None:
        """An alarm fires, as a turn: what this writes commits together with the alarm's being done,
        so its effect happens once.

        A handler that fails is run again, first after 2 s, at last the alarm is a dead letter;
        `Rejected` makes it one at once.
        """

    def on_activate(self) -> Awaitable[None] | None:
        """Runs at the start of the first turn after activation, as a part of it: load what you want
        to keep at hand."""

    def on_evict(self) -> Awaitable[None] | None:
        """Runs as a turn of its own before the instance is dropped for idleness or memory; not on a
        crash or a move."""
