"""The context of an instance of a user's class (`holdfast.object.Context`), in turns and in
reads."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Any

from holdfast.alarms import Alarm, Misfire
from holdfast.object import DurableObject, Objects
from holdfast.storage import Storage, reads_only

from holdfast_node.effects.alarms import ObjectAlarms, to_alarm
from holdfast_node.effects.rows import ReadRows, Rows
from holdfast_node.objects.activation import Activation, Turn
from holdfast_node.objects.calls import ObjectCalls
from holdfast_node.objects.environment import Environment, Outgoing
from holdfast_node.objects.notifier import Notifier


def make_instance(context: TurnContext | ReadContext) -> DurableObject:
    """Return a new instance of the user's class. It has its context before its `__init__` runs."""
    cls = context.activation.kind.cls
    instance = cls.__new__(cls)
    instance._context = context
    instance.storage = Storage(context.rows, lambda: context.alarms)
    instance.__init__()  # type: ignore[misc]
    return instance


class TurnContext:
    """The context of the turns of an object. Implements `holdfast.object.Context` and
    `holdfast_node.objects.calls.Calling`."""

    __slots__ = ("_environment", "activation")

    def __init__(self, activation: Activation, environment: Environment) -> None:
        self.activation = activation
        self._environment = environment

    @property
    def rows(self) -> Rows:
        return self.activation.storage

    # -- holdfast_node.objects.calls.Calling

    @property
    def turn(self) -> Turn | None:
        return self.activation.turn

    @property
    def in_chain(self) -> str:
        return self.activation.name

    # -- holdfast.object.Context

    @property
    def kind_name(self) -> str:
        return self.activation.kind.name

    @property
    def key(self) -> str:
        return self.activation.key

    @property
    def epoch(self) -> int:
        return self.activation.shard.epoch

    @property
    def objects(self) -> Objects:
        return ObjectCalls(self, self._environment.outgoing)

    @property
    def alarms(self) -> ObjectAlarms:
        return self.activation.alarms

    def notify(self, kind: type | str, key: str, delay: timedelta | None) -> Notifier:
        return Notifier(self.activation, self._environment.sent, kind, key, delay)

    @property
    def request(self) -> Turn:
        return self.activation.running()

    def deactivate(self) -> None:
        if self.activation.turn is None:
            raise RuntimeError("an object can be deactivated only while a turn of it runs")
        self.activation.deactivating = True

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        return self.activation.log_for(self.activation.turn)


class ReadContext:
    """The context of one read. Implements `holdfast.object.Context` and
    `holdfast_node.objects.calls.Calling`. `turn` is the read itself.

    A read sees the writes of ended turns through the storage layers of its object's activation, so
    it needs no copy. Like the reply of a turn, its reply waits for the object's newest entry. So it
    tells only committed state.
    """

    __slots__ = ("_outgoing", "_turn", "activation", "rows")

    def __init__(self, activation: Activation, outgoing: Outgoing, turn: Turn) -> None:
        self.activation = activation
        self._outgoing = outgoing
        self._turn = turn
        self.rows = turn.read_rows = ReadRows(activation.storage, activation.is_gone)

    # -- holdfast_node.objects.calls.Calling

    @property
    def turn(self) -> Turn | None:
        """The read; None after its end."""
        return None if self.rows.closed else self._turn

    @property
    def in_chain(self) -> str:
        """The name of the read in chains of calls. It is not the object's name: calls that come
        back to the object do not wait for a read."""
        return f"(read) {self.activation.name}"

    # -- holdfast.object.Context

    @property
    def kind_name(self) -> str:
        return self.activation.kind.name

    @property
    def key(self) -> str:
        return self.activation.key

    @property
    def epoch(self) -> int:
        return self.activation.shard.epoch

    @property
    def objects(self) -> Objects:
        return ObjectCalls(self, self._outgoing)

    @property
    def alarms(self) -> ReadAlarms:
        return ReadAlarms(self.activation, self.rows)

    def notify(self, kind: type | str, key: str, delay: timedelta | None) -> Any:
        raise reads_only("notify()")

    def deactivate(self) -> None:
        raise reads_only("deactivate()")

    @property
    def request(self) -> Turn:
        if self.rows.closed:
            raise RuntimeError("there is a request only while the read runs")
        return self._turn

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        return self.activation.log_for(self.turn)


class ReadAlarms:
    """The alarms of an object as ended turns have left them. Implements
    `holdfast.alarms.Alarms`."""

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
        return [
            to_alarm(name, record)
            for name, record in sorted(rows.items(), key=lambda item: (item[1].due_ms, item[0]))
        ]
