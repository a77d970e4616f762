"""`DurableObject`, the base class of users' kinds."""

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
        """The request's id: 16 bytes, the same in every attempt."""

    @property
    def attempt(self) -> int:
        """The number of earlier attempts whose outcome is unknown. It begins at 1 if the caller
        brought a request id or an idempotency key of its own.
        """

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata that the caller sent with the request."""

    @property
    def caller(self) -> str:
        """The caller of the request; see `DurableObject.caller`."""

    @property
    def remaining_s(self) -> float:
        """The seconds that are left until the owner cancels the turn and rolls it back."""


class Objects(Protocol):
    """Gives a turn access to other objects."""

    @overload
    def get(self, kind: type[T], key: str, *, timeout: float | None = None) -> T: ...
    @overload
    def get(self, kind: str, key: str, *, timeout: float | None = None) -> Any: ...
    def get(self, kind: Any, key: str, *, timeout: float | None = None) -> Any:
        """Return a stub of an object: `await stub.method(...)` calls the object and returns its
        reply.

        `timeout`: the deadline of each call in seconds; None: the time that is left of this turn.

        The id of the call is derived from the id of this turn. So a turn that runs again does not
        repeat the effect of its calls. If the called object waits for this one already, the call
        fails at once with Deadlock.
        """


class Context(Protocol):
    """All that the node gives to an object, except its storage."""

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

    Public methods, `def` or `async def`, are handlers. An object runs one turn at a time. All
    writes of a turn commit together, before its reply leaves. An exception rolls back all of them
    and drops this instance.

    Attributes of the instance are a cache. They can vanish at any time between turns: keep in
    `self.storage` all that must stay.
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
        """The object's key. It is unique within the kind."""
        return self._context.key

    @property
    def epoch(self) -> int:
        """The epoch of the object's shard. Pass it to outside systems as a fencing token."""
        return self._context.epoch

    @property
    def caller(self) -> str:
        """The caller of the running turn.

        - a client: the subject that the gateway took from its token or certificate; empty if the
          gateway authenticates no callers
        - another object that calls or notifies: `object:Kind/key`
        - an alarm: empty
        """
        return self._context.request.caller

    @property
    def objects(self) -> Objects:
        """Access to other objects: `await self.objects.get(Portfolio, "p-7").add(3)`."""
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
        """Notify another object: `self.notify(Portfolio, "p-7").property_changed(change)`.

        Do not await the call: it returns nothing. The notification leaves only if this turn
        commits. Then it arrives at the receiver once. Notifications from this object to one
        receiver arrive in the order of sending. With a `delay`, at most 366 days, a notification
        takes its place when its time has come.

        If the receiver fails, the owner tries the notification again. After `notify_attempts`
        failures or `notify_age`, options of this object's kind, the notification becomes a dead
        letter. `Rejected` makes it a dead letter at once.

        Raises Overloaded if too many notifications of this object wait for delivery. Raises
        TooLarge if the arguments are over their limit.
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
        """Set an alarm: `on_alarm` runs at `when`. It replaces an alarm of the same name.

        The alarm is set only if this turn commits.

        - `when`: a datetime with a time zone, or a timedelta from now.
        - `every`: repeat the alarm, after each such timedelta or by a cron expression of five
          fields in `timezone`. Without `when` the alarm fires first at the next such time.
        - `times`: the alarm ends after this number of firings.
        - `until`: the alarm ends with the last firing that is due at or before this time.
        - `misfire`: what happens to firings that are more than a minute late because no node served
          the object. "once" fires once for all missed firings, and counts as one of `times`. "all"
          fires them one after the other. "skip" fires none of them, and they do not count.

        Raises TypeError if the class has no `on_alarm`. Raises ValueError if a time is wrong.
        Raises TooLarge if the object has too many alarms (1,000), the name is too long (256 bytes)
        or the payload is too large (64 KiB).
        """
        self._context.alarms.set(when, name, payload, every, timezone, misfire, times, until)

    def get_alarm(self, name: str = DEFAULT) -> Alarm | None:
        """Return the pending alarm of this name, or None if there is none."""
        return self._context.alarms.get(name)

    def delete_alarm(self, name: str = DEFAULT) -> bool:
        """Delete an alarm if this turn commits. Return whether there was one."""
        return self._context.alarms.delete(name)

    def list_alarms(self) -> list[Alarm]:
        """Return all pending alarms of this object, the next one first."""
        return self._context.alarms.list()

    def deactivate(self) -> None:
        """Leave memory when this turn has ended well: `on_evict` runs, and the next call makes a
        new instance.

        A turn that fails drops its instance anyway. Raises RuntimeError in a `@holdfast.reads`
        handler.
        """
        self._context.deactivate()

    def on_alarm(self, alarm: Alarm) -> Awaitable[None] | None:
        """Handle an alarm that fires. Override this method.

        It runs as a turn. Its writes commit together with the end of the alarm, so its effect
        happens once. If it raises, the owner runs it again: first after 2 s, then after pauses of
        up to 60 s. After `alarm_attempts` failures the alarm becomes a dead letter. `Rejected`
        makes it a dead letter at once.
        """

    def on_activate(self) -> Awaitable[None] | None:
        """Prepare a new instance, for example load what you keep in attributes. Override this
        method.

        It runs at the start of the first turn after activation, as a part of that turn.
        """

    def on_evict(self) -> Awaitable[None] | None:
        """Clean up before the instance leaves memory. Override this method.

        It runs as a turn of its own when the object is idle, when the node needs memory, or after
        `deactivate`. It does not run when the node crashes or the object moves.
        """
