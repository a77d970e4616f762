"""The registration of kinds."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, TypeVar, overload

from holdfast.deadlines import checked_timedelta
from holdfast.errors import NotFound
from holdfast.object import DurableObject
from holdfast.signature import Around, Handler
from holdfast.storage import TTL_MAX

C = TypeVar("C", bound=type[DurableObject])
_KIND_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,127}")
_OWN = frozenset(dir(DurableObject))
_HOOKS = frozenset(("on_activate", "on_evict", "on_alarm"))
_TAKEN = frozenset(name for name in _OWN if not name.startswith("__")) - _HOOKS


A = TypeVar("A", bound=Around)


@dataclass(frozen=True, slots=True)
class KindOptions:
    """The options of a kind.

    They say how long Holdfast tries the notifications and alarms of its objects before these become
    dead letters. They also say how long its objects stay on disk and in memory.
    """

    notify_attempts: int = 20
    """How often the receiver's handler may fail before a notification becomes a dead letter."""
    notify_age: timedelta = timedelta(days=1)
    """How long a notification is tried, counted from the first attempt; at most 3 days."""
    alarm_attempts: int = 10
    """How often `on_alarm` may fail at one firing before the alarm becomes a dead letter."""
    ttl: timedelta | None = None
    """An object that has stored nothing for this long is deleted with its alarms. The deletion may
    come up to a sixteenth of this time later. At least one second. None: never.
    """
    idle: timedelta | None = None
    """An object that had no call for this long leaves memory. None: the node's setting."""

    def __post_init__(self) -> None:
        for name in ("notify_attempts", "alarm_attempts"):
            if not isinstance(value := getattr(self, name), int) or isinstance(value, bool):
                raise TypeError(f"{name} must be a whole number, not {value!r:.100}")
        for name in ("notify_age", "ttl", "idle"):
            if (value := getattr(self, name)) is not None:
                checked_timedelta(name, value)
        if self.ttl is not None and not TTL_MIN <= self.ttl <= TTL_MAX:
            raise ValueError(
                f"a kind's ttl must be at least {TTL_MIN} and at most {TTL_MAX}, not {self.ttl}"
            )
        if self.idle is not None and self.idle <= timedelta():
            raise ValueError(f"idle must be more than 0, not {self.idle}")
        if self.notify_attempts < 1 or self.alarm_attempts < 1:
            raise ValueError("notify_attempts and alarm_attempts must be at least 1")
        if not timedelta() < self.notify_age <= NOTIFY_AGE_MAX:
            raise ValueError(f"notify_age must be more than 0 and at most {NOTIFY_AGE_MAX}")


NOTIFY_AGE_MAX = timedelta(days=3)
"""Receivers remember notifications for longer than this. So a notification that is sent again still
happens once.
"""
TTL_MIN = timedelta(seconds=1)


class Kind:
    """A registered class: its `name`, `cls`, `options`, and its `handlers` by method name.

    `arounds` are the functions that are called around the handlers.
    """

    def __init__(
        self, name: str, cls: type[DurableObject], options: KindOptions | None = None
    ) -> None:
        self.name = name
        self.cls = cls
        self.options = options or KindOptions()
        self.arounds: tuple[Around, ...] = ()
        _check_names(cls)
        self.handlers = {
            method: Handler(method, function, cls.__name__)
            for method, function in inspect.getmembers(cls, inspect.isfunction)
            if not method.startswith("_") and method not in _OWN
        }
        self.on_activate = _overridden(cls, "on_activate")
        self.on_evict = _overridden(cls, "on_evict")
        self.on_alarm = _overridden(cls, "on_alarm")

    def surround(self, arounds: tuple[Around, ...]) -> None:
        """Call these functions around each handler, and around `on_alarm`."""
        self.arounds = arounds
        for handler in self.handlers.values():
            handler.surround(arounds)

    def handler(self, method: str) -> Handler:
        """Return the handler of a method. Raise NotFound, with the nearest names, if there is
        none.
        """
        found = self.handlers.get(method)
        if found is None:
            raise NotFound(
                f"{self.name} has no method {method!r}{_nearest(method, self.handlers)}",
                definite=True,
            )
        return found


class App:
    """The kinds that a node serves. An app file has one App at module level."""

    def __init__(self) -> None:
        self.kinds: dict[str, Kind] = {}
        self._arounds: tuple[Around, ...] = ()

    def around(self, function: A) -> A:
        """Register a function that runs around all handlers of the app, and around `on_alarm`.

        Use it as `@app.around`, on an `async def` with one argument. The function runs in the turn
        and gets the `Invocation`. It calls `await invocation.proceed()` to go on, and returns the
        result of the call. An exception from the function fails the turn.

        If there are several such functions, the one that was registered first is the outermost.
        Raises TypeError for anything but an `async def` with one argument.
        """
        plain: Any = function
        if not inspect.iscoroutinefunction(plain) or len(inspect.signature(plain).parameters) != 1:
            raise TypeError(
                "@app.around needs an `async def` with one argument, the invocation, not"
                f" {function!r}"
            )
        self._arounds = (*self._arounds, function)
        for kind in self.kinds.values():
            kind.surround(self._arounds)
        return function

    @overload
    def kind(self, arg: C, /) -> C: ...
    @overload
    def kind(
        self,
        arg: str | None = None,
        /,
        *,
        notify_attempts: int = ...,
        notify_age: timedelta = ...,
        alarm_attempts: int = ...,
        ttl: timedelta | None = ...,
        idle: timedelta | None = ...,
    ) -> Callable[[C], C]: ...
    def kind(self, arg: Any = None, /, **options: Any) -> Any:
        """Register a class: `@app.kind` under its own name, `@app.kind("counter")` under another.

        `options` are the fields of `KindOptions`: `@app.kind(notify_attempts=5,
        ttl=timedelta(days=30))`.

        A name has 1 to 128 characters: letters, digits and `_.-`, a letter first. Raises TypeError
        or ValueError if the class cannot be served:

        - the class is no DurableObject
        - the name is malformed, or another class has it
        - a handler has type hints whose values cannot be sent
        - an option is unknown or out of range
        """
        if isinstance(arg, type):
            return self._register(arg.__name__, arg, KindOptions())
        known = [field.name for field in fields(KindOptions)]
        if unknown := sorted(set(options) - set(known)):
            raise TypeError(f"@app.kind has no option {unknown[0]!r}; there are {', '.join(known)}")
        checked = KindOptions(**options)

        def decorate(cls: Any) -> Any:
            return self._register(arg or cls.__name__, cls, checked)

        return decorate

    def _register(
        self, name: str, cls: type[DurableObject], options: KindOptions
    ) -> type[DurableObject]:
        if not (isinstance(cls, type) and issubclass(cls, DurableObject)):
            raise TypeError(f"{cls!r} is not a DurableObject")
        if not _KIND_NAME.fullmatch(name):
            raise ValueError(
                f"kind name {name!r}: use 1 to 128 letters, digits and _.-, a letter first"
            )
        if name in self.kinds:
            raise ValueError(
                f"kind {name!r} is registered twice: {self.kinds[name].cls!r} and {cls!r}"
            )
        kind = self.kinds[name] = Kind(name, cls, options)
        if self._arounds:
            kind.surround(self._arounds)
        cls.__holdfast_kind__ = name  # type: ignore[attr-defined]
        return cls

    def get(self, name: str) -> Kind:
        """Return the kind with this name. Raise NotFound, with the nearest names, if there is
        none.
        """
        found = self.kinds.get(name)
        if found is None:
            raise no_kind(name, self.kinds)
        return found


def no_kind(name: str, known: Iterable[str]) -> NotFound:
    """Return the error for a kind that is not among the known kinds."""
    return NotFound(f"no kind {name!r}{_nearest(name, known)}", definite=True)


@functools.lru_cache(maxsize=4096)
def kind_name(kind: type | str) -> str:
    """Return the name of a kind that is given as its class or as text. Raise TypeError for a class
    that is not registered with an App.
    """
    if isinstance(kind, str):
        return kind
    name = kind.__dict__.get("__holdfast_kind__")
    if name is None:
        raise TypeError(f"{kind!r} is not registered: decorate it with @app.kind")
    return str(name)


def _check_names(cls: type[DurableObject]) -> None:
    """Raise TypeError if a public name of the class cannot be called, or would hide a name of
    `DurableObject`.
    """
    for owner in cls.__mro__:
        if owner in DurableObject.__mro__:
            continue
        for name, value in vars(owner).items():
            where = f"{cls.__name__}.{name}"
            if name in _TAKEN:
                raise TypeError(f"{where} would hide DurableObject.{name}: give it another name")
            if name in _HOOKS and not inspect.isfunction(value):
                raise TypeError(
                    f"Holdfast calls {where}, so it must be a method: `def {name}(self, ...)`"
                )
            if not name.startswith("_") and isinstance(value, staticmethod | classmethod):
                raise TypeError(
                    f"{where} is a {type(value).__name__}, which has no object to run on: make it"
                    f" a method with `self`, or a helper (a function of the module, or `_{name}`)"
                )


def _overridden(cls: type[DurableObject], method: str) -> Callable[[Any], Any] | None:
    function = getattr(cls, method)
    return None if function is getattr(DurableObject, method) else function


def _nearest(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; there are {', '.join(known[:20])}" if known else "; there are none"
