"""Reads beside turns: what a handler with `@holdfast.reads` has in place of its object's activation.

A read sees what turns that ended have stored, through the layers of its object's activation, so it needs no copy of them. Its reply
waits for the object's newest entry, as that of a turn does: what it tells is committed.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from holdfast.alarms import Alarm, Misfire
from holdfast.object import DurableObject, Objects
from holdfast.storage import ReadRows, Storage, reads_only

from holdfast_node.effects.alarms import shown
from holdfast_node.outgoing import ObjectCalls, Outgoing
from holdfast_node.shards import Entry
from holdfast_node.turn import Turn

if TYPE_CHECKING:
    from holdfast_node.activation import Activation


class ReadContext:
    """Implements `holdfast.object.Context` for one read, which `turn` stands for; and `holdfast_node.outgoing.Calling`."""

    __slots__ = ("_activation", "_outgoing", "rows", "turn")

    def __init__(self, activation: Activation, outgoing: Outgoing, turn: Turn) -> None:
        self._activation = activation
        self._outgoing = outgoing
        self.turn: Turn | None = turn
        self.rows = ReadRows(activation.storage, activation.is_gone)

    def make_instance(self) -> DurableObject:
        """A new instance of the user's class, for this read alone."""
        cls = self._activation.kind.cls
        instance = cls.__new__(cls)
        instance._context = self
        instance.storage = Storage(self.rows, lambda: self.alarms)
        instance.__init__()  # type: ignore[misc]
        return instance

    def close(self) -> None:
        """The read has ended: nothing can be read any more."""
        self.turn = None
        self.rows.closed = True

    # -- holdfast_node.outgoing.Calling

    @property
    def name(self) -> str:
        return self._activation.name

    @property
    def in_chain(self) -> str:
        """Calls that come back to the object do not wait for a read."""
        return f"(read) {self._activation.name}"

    @property
    def uncommitted(self) -> Entry | None:
        return self._activation.uncommitted

    # -- holdfast.object.Context

    @property
    def kind_name(self) -> str:
        return self._activation.kind.name

    @property
    def key(self) -> str:
        return self._activation.key

    @property
    def epoch(self) -> int:
        return self._activation.shard.epoch

    @property
    def objects(self) -> Objects:
        return ObjectCalls(self, self._outgoing)

    @property
    def alarms(self) -> ReadAlarms:
        return ReadAlarms(self._activation, self.rows)

    def notify(self, kind: type | str, key: str, delay: timedelta | None) -> Any:
        raise reads_only("notify()")

    def deactivate(self) -> None:
        raise reads_only("deactivate()")

    @property
    def request(self) -> Turn:
        if self.turn is None:
            raise RuntimeError("there is a request only while the read runs")
        return self.turn

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        return self._activation.log_for(self.turn)


class ReadAlarms:
    """The alarms of an object as turns that ended have left them. Implements `holdfast.alarms.Alarms`."""

    __slots__ = ("_activation", "_rows")

    def __init__(self, activation: Activation, rows: ReadRows) -> None:
        self._activation = activation
        self._rows = rows

    def set(
        self,
        when: datetime | timedelta | None,
        name: str,
        payload: Any,
        every: timedelta | str | None,
        timezone: str,
        misfire: Misfire,
        times: int | None = None,
        until: datetime | timedelta | None = None,
    ) -> None:
        raise reads_only("set_alarm()")

    def delete(self, name: str) -> bool:
        raise reads_only("delete_alarm()")

    def get(self, name: str) -> Alarm | None:
        return next((alarm for alarm in self.list() if alarm.name == name), None)

    def list(self) -> list[Alarm]:
        if self._rows.closed:
            raise RuntimeError("alarms can be read only while the read runs")
        rows = {} if self._rows.gone() else self._activation.alarms.rows
        return [shown(name, record) for name, record in sorted(rows.items(), key=lambda item: (item[1].due_ms, item[0]))]
