"""Stand-ins for a handler, in turns of Holdfast's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from holdfast.alarms import Alarm
from holdfast.signature import Around, invoke_around


class InternalHandler:
    """A stand-in for a handler, for a turn of Holdfast's own that needs no instance of the user's
    class."""

    __slots__ = ("deletes", "is_async", "name", "what")
    reads = False

    def __init__(
        self, name: str, what: Callable[[], Any], is_async: bool = False, deletes: bool = False
    ) -> None:
        """`what` is called in the turn; with `is_async` it returns a coroutine. `deletes`: whether
        it deletes the whole object."""
        self.name = name
        self.what = what
        self.is_async = is_async
        self.deletes = deletes

    def invoke(self, instance: Any, payload: bytes, is_json: bool = False) -> Any:
        return self.what()


class Firing:
    """A stand-in for a handler, which calls `on_alarm` of an object for one alarm."""

    __slots__ = ("_arounds", "_begin", "is_async", "name", "ran")
    reads = False

    def __init__(self, begin: Callable[[], Alarm | None], arounds: tuple[Around, ...] = ()) -> None:
        """`begin` is called in the turn. It returns the alarm for the handler, or None if there is
        nothing to do."""
        self._begin = begin
        self._arounds = arounds
        self.ran = False
        self.name = "on_alarm"
        self.is_async = True

    async def invoke(self, instance: Any, payload: bytes, is_json: bool = False) -> None:
        self.ran = True
        alarm = self._begin()
        if alarm is None:
            return
        if self._arounds:
            await invoke_around(
                self._arounds,
                instance,
                self.name,
                {"alarm": alarm},
                partial(instance.on_alarm, alarm),
            )
            return
        waits = instance.on_alarm(alarm)
        if waits is not None:
            await waits
