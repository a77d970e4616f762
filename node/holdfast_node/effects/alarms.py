"""The alarms of one object: turns set and delete them, and a firing changes them."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from holdfast import codec
from holdfast.alarms import (
    NAME_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    Alarm,
    Misfire,
    check_every,
    check_times,
    check_timezone,
    next_after,
)
from holdfast.app import Kind
from holdfast.errors import TooLarge
from holdfast.ids import effect_id
from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.placement.model import ALARM_LIMITS

from holdfast_node.effects.due_index import DueIndex
from holdfast_node.effects.records import AlarmRecord, carried, decode_alarm, encode
from holdfast_node.effects.rows import Rows
from holdfast_node.log.shards import Entry, Shard
from holdfast_node.store import keys

ALARMS_MAX = 1_000
"""The most alarms of one object."""

MISFIRE_GRACE_MS = 60_000
"""An alarm that is later than this counts as missed."""

RETRY_MS = (2_000, 60_000)
"""The pause before an alarm is fired again after its first failure, and the longest pause."""

_KEY_BYTES = 40  # about the bytes of its rows' keys
_FAR_MS = 253_370_764_800_000  # the year 9999
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US, _TIMES, _UNTIL = "us", "times", "until"  # keys of a record's options


class AlarmChange:
    """A turn's change of one alarm of its object: a new record, or None to delete it. A
    `TurnEffect`. `raw`: the record as it is stored."""

    __slots__ = ("_alarms", "name", "raw", "record")

    def __init__(self, alarms: ObjectAlarms, name: str, record: AlarmRecord | None) -> None:
        self._alarms = alarms
        self.name = name
        self.record = record
        # A record that cannot be stored fails here, not when the effect is staged.
        self.raw = b"" if record is None else encode(record)
        if record is not None:
            decode_alarm(self.raw)

    @property
    def size(self) -> int:
        return len(self.name) + len(self.raw) + _KEY_BYTES

    def stage(self, entry: Entry) -> None:
        self._alarms.stage(entry, self)


class ObjectAlarms:
    """The alarms of one object. Implements `holdfast.alarms.Alarms`. `rows` holds the alarms as the
    ended turns have left them."""

    __slots__ = ("_call", "_index", "_key", "_kind", "_prefix", "_shard", "_storage", "rows")

    def __init__(
        self,
        shard: Shard,
        kind: Kind,
        key: str,
        storage: Rows,
        index: DueIndex,
        call: Callable[[], pb.Call],
    ) -> None:
        """`storage`: that of the object. `index`: the index of due alarms. `call`: returns the call
        of the running turn."""
        self._shard = shard
        self._kind = kind
        self._key = key
        self._storage = storage
        self._index = index
        self._call = call
        prefix = self._prefix = keys.alarm_prefix(shard.number, kind.name, key)
        self.rows: dict[str, AlarmRecord] = {
            key[len(prefix) :].decode(): decode_alarm(value)
            for key, value in index.store.scan("state", prefix, keys.after(prefix))
        }

    def current(self) -> dict[str, AlarmRecord]:
        """Return the alarms as the running turn sees them. Raises RuntimeError if no turn runs."""
        storage = self._storage
        if not storage.is_open():
            raise RuntimeError("alarms can be used only while a turn of the object runs")
        rows = {} if storage.emptied else dict(self.rows)
        for change in storage.effects:
            if isinstance(change, AlarmChange):
                if change.record is None:
                    rows.pop(change.name, None)
                else:
                    rows[change.name] = change.record
        return rows

    def change(self, name: str, record: AlarmRecord | None) -> None:
        """Change an alarm in the running turn. If the shard's index cannot be read, this raises, so
        that staging cannot fail."""
        self._index.of(self._shard)
        self._storage.add_effect(AlarmChange(self, name, record))

    def stage_all_gone(self, entry: Entry) -> None:
        """Put the deletion of all alarms into an entry: the object has expired."""
        for name in list(self.rows):
            self.stage(entry, AlarmChange(self, name, None))

    def stage(self, entry: Entry, change: AlarmChange) -> None:
        """Take over the change of a turn that has ended well, and put its rows into the entry."""
        shard = self._shard.number
        rest = keys.ident(self._kind.name, self._key) + change.name.encode()
        rows = entry.rows
        entry.deletes = True
        old = self.rows.pop(change.name, None)
        if old is not None:
            rows.append((keys.due_key(shard, keys.ALARMS, old.due_ms, rest), None))
        new = change.record
        own = self._prefix + change.name.encode()
        if new is None:
            rows.append((own, None))
        else:
            self.rows[change.name] = new
            rows.append((keys.due_key(shard, keys.ALARMS, new.due_ms, rest), b""))
            rows.append((own, change.raw))
            self._index.due_with(entry, new.due_ms)

    # -- holdfast.alarms.Alarms

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
        if self._kind.on_alarm is None:
            raise TypeError(
                f"{self._kind.cls.__name__} has no on_alarm(self, alarm), so its alarms would have"
                " no effect"
            )
        size = len(name.encode())
        if not 0 < size <= NAME_BYTES_MAX:
            raise TooLarge(
                f"an alarm's name of {size} bytes; it must have 1 to {NAME_BYTES_MAX}",
                definite=True,
            )
        if misfire not in ("once", "all", "skip"):
            raise ValueError(f"misfire is {misfire!r}; it must be once, all or skip")
        raw = codec.encode(payload)
        if len(raw) > PAYLOAD_BYTES_MAX:
            raise TooLarge(
                f"an alarm's payload of {len(raw)} bytes, at most {PAYLOAD_BYTES_MAX}",
                definite=True,
            )
        now = self._shard.clock.now_ms()
        check_timezone(timezone)
        repeat = None if every is None else check_every(every)
        options = carried(self._call()) or {}
        if repeat is None and (times is not None or until is not None):
            raise ValueError("`times` and `until` are for alarms that are repeated: give `every`")
        if times is not None or until is not None:
            self._shard.check_feature(ALARM_LIMITS, "alarms cannot end by themselves")
        if times is not None:
            options[_TIMES] = check_times(times)
        beyond_us = 0
        if when is None:
            if repeat is None:
                raise ValueError("set_alarm needs `when`, `every`, or both")
            due = next_after(repeat, timezone, now, now)
        elif not isinstance(when, timedelta | datetime):
            raise TypeError(
                f"`when` must be a datetime with a time zone, or a timedelta, not {when!r:.100}"
            )
        elif isinstance(when, timedelta):
            due = now + max(0, round(when.total_seconds() * 1000))
        else:
            due, beyond_us = _absolute(when)
        if until is not None:
            if not isinstance(until, timedelta | datetime):
                raise TypeError(
                    "`until` must be a datetime with a time zone, or a timedelta, not"
                    f" {until!r:.100}"
                )
            options[_UNTIL] = (
                now + until // timedelta(milliseconds=1)
                if isinstance(until, timedelta)
                else _absolute(until)[0]
            )
            if options[_UNTIL] >= _FAR_MS:
                raise ValueError(f"`until` must be before the year 9999, not {until}")
            if due is not None and due > options[_UNTIL]:
                raise ValueError("the alarm would never fire: it is due after `until`")
        if due is None or due >= _FAR_MS:
            raise ValueError("the alarm would never fire")
        current = self.current()
        if name not in current and len(current) >= ALARMS_MAX:
            raise TooLarge(
                f"{self._kind.name}/{self._key} has {ALARMS_MAX} alarms, as many as an object may"
                " have",
                definite=True,
            )
        if beyond_us:
            options[_US] = beyond_us
        nonce = os.urandom(8)
        self.change(
            name,
            AlarmRecord(
                due + bool(beyond_us),
                due,
                raw,
                repeat,
                timezone,
                misfire,
                0,
                nonce,
                options or None,
            ),
        )

    def get(self, name: str) -> Alarm | None:
        record = self.current().get(name)
        return None if record is None else to_alarm(name, record)

    def delete(self, name: str) -> bool:
        if name not in self.current():
            return False
        self.change(name, None)
        return True

    def list(self) -> list[Alarm]:
        return [
            to_alarm(name, record)
            for name, record in sorted(
                self.current().items(), key=lambda item: (item[1].due_ms, item[0])
            )
        ]

    # -- firing

    def begin(self, name: str, due_ms: int) -> Alarm | None:
        """Delete the alarm that the running turn fires, or set it to its next time.

        Return the alarm for the handler. Return None if the alarm was changed meanwhile, or is
        skipped because it is too late.
        """
        record = self.current().get(name)
        if record is None or record.due_ms != due_ms:
            return None
        now = self._shard.clock.now_ms()
        skipped = (
            not record.attempt
            and now - record.scheduled_ms > MISFIRE_GRACE_MS
            and record.misfire == "skip"
        )
        self.change(name, following(record, now, fired=not skipped))
        return None if skipped else to_alarm(name, record)

    def fail(self, name: str, due_ms: int, attempts_max: int, final: bool) -> AlarmRecord | None:
        """Set an alarm to fire again later, after a failed firing. Called in a turn of its own.

        If the failure is `final`, or after `attempts_max` attempts, give this firing up: set the
        alarm to its next time, and return its record. Return None otherwise.
        """
        record = self.current().get(name)
        if record is None or record.due_ms != due_ms:
            return None
        now = self._shard.clock.now_ms()
        attempt = record.attempt + 1
        if final or attempt >= attempts_max:
            self.change(name, following(record, now))
            return record
        pause = min(RETRY_MS[1], RETRY_MS[0] * 2 ** min(attempt - 1, 20))
        self.change(name, msgspec.structs.replace(record, due_ms=now + pause, attempt=attempt))
        return None


def following(record: AlarmRecord, now_ms: int, fired: bool = True) -> AlarmRecord | None:
    """Return the record of an alarm's next repetition, after it has `fired` or was skipped; None if
    there is no next one. Pure."""
    if record.every is None:
        return None
    options = dict(record.options or {})
    if _TIMES in options and fired:
        options[_TIMES] -= 1
        if options[_TIMES] < 1:
            return None
    after = record.scheduled_ms if record.misfire == "all" else max(record.scheduled_ms, now_ms)
    due = next_after(record.every, record.timezone, record.scheduled_ms, after)
    if due is None or due >= _FAR_MS or due > options.get(_UNTIL, due):
        return None
    if not isinstance(record.every, int):
        options.pop(_US, None)  # a cron expression names whole seconds
    return msgspec.structs.replace(
        record, due_ms=due, scheduled_ms=due, attempt=0, options=options or None
    )


def _absolute(when: datetime) -> tuple[int, int]:
    """Return a time as Unix time in ms, and the microseconds beyond. Raises ValueError if `when`
    has no time zone."""
    if when.tzinfo is None:
        raise ValueError(f"{when!r} has no time zone; use datetime.now(UTC) + ..., which has one")
    return divmod(max(timedelta(), when - _EPOCH) // timedelta(microseconds=1), 1000)


def to_alarm(name: str, record: AlarmRecord) -> Alarm:
    """Return an alarm as users see it."""
    options = record.options or {}
    scheduled = _EPOCH + timedelta(
        milliseconds=record.scheduled_ms, microseconds=options.get(_US, 0)
    )
    until = options.get(_UNTIL)
    return Alarm(
        name=name,
        scheduled=scheduled,
        attempt=record.attempt,
        times=options.get(_TIMES),
        until=None if until is None else _EPOCH + timedelta(milliseconds=until),
        raw=record.payload,
    )


def firing_id(kind: str, key: str, name: str, record: AlarmRecord) -> bytes:
    """Return the request id of a firing. It is the same in every attempt."""
    return effect_id(
        b"alarm",
        kind.encode(),
        key.encode(),
        name.encode(),
        record.scheduled_ms.to_bytes(8, "big"),
        record.nonce,
    )
