"""Turns of Holdfast's own, and what stands in for a handler in them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from holdfast.alarms import Alarm
from holdfast.signature import Around, invoke_around
from holdfast.v1 import objects_pb2 as pb

if TYPE_CHECKING:
    from holdfast_node.activation import Activation


class InternalTurns(Protocol):
    """What runs turns of Holdfast's own: the engine."""

    def run_internal(
        self,
        kind: str,
        key: str,
        request_id: bytes,
        handler: Callable[[Activation], Firing | InternalHandler],
        done: Callable[[pb.Error | None], None],
        timeout_s: float = 0.0,
        metadata: dict[str, str] | None = None,
    ) -> None:
        """Run a turn of Holdfast's own on an object; `done` gets its error, or None, when it is committed."""

    def find(self, kind: str, key: str) -> Activation | None:
        """The activation of an object, if it is in memory."""


class InternalHandler:
    """Stands in for a handler: a turn of Holdfast's own, which needs no instance of the user's class."""

    __slots__ = ("deletes", "is_async", "name", "what")
    reads = False

    def __init__(self, name: str, what: Callable[[], Any], is_async: bool = False, deletes: bool = False) -> None:
        """`what` is called in the turn; with `is_async` it gives a coroutine. `deletes`: it leaves nothing of the object."""
        self.name = name
        self.what = what
        self.is_async = is_async
        self.deletes = deletes

    def invoke(self, instance: Any, payload: bytes, is_json: bool = False) -> Any:
        return self.what()


class Firing:
    """Stands in for a handler: `on_alarm` of an object, for one alarm."""

    __slots__ = ("_arounds", "_begin", "is_async", "name", "ran")
    reads = False

    def __init__(self, begin: Callable[[], Alarm | None], arounds: tuple[Around, ...] = ()) -> None:
        """`begin` is called in the turn: what the handler gets, or None when there is nothing to be done."""
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
            await invoke_around(self._arounds, instance, self.name, {"alarm": alarm}, partial(instance.on_alarm, alarm))
            return
        waits = instance.on_alarm(alarm)
        if waits is not None:
            await waits
