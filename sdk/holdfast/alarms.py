"""Alarms as users see them, and the next time of a repeated alarm. Pure.

Times are Unix time in ms. The next repetition is counted from the time at which the alarm was due.
The time at which it fired does not matter, so a repeated alarm does not drift.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from holdfast import codec

T = TypeVar("T")

DEFAULT = "default"
"""The name of an alarm that is set without a name."""

NAME_BYTES_MAX = 256
PAYLOAD_BYTES_MAX = 64 << 10
EVERY_MIN = timedelta(milliseconds=100)
EVERY_MAX = timedelta(days=36_525)

Misfire = Literal["once", "all", "skip"]


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """An alarm, as `on_alarm`, `get_alarm` and `list_alarms` give it."""

    name: str
    """The name given to `set_alarm`."""
    scheduled: datetime
    """The time for which the alarm was set, UTC. It stays the same when the alarm fires late."""
    attempt: int = 0
    """The number of times the handler has failed at this firing."""
    times: int | None = None
    """The number of firings that are left, this one included. None: no limit."""
    until: datetime | None = None
    """The latest time at which a repetition may be due, UTC. None: no limit."""
    raw: bytes = b"\xc0"

    @property
    def payload(self) -> Any:
        """Return the payload given to `set_alarm`, in plain types."""
        return codec.decode(self.raw)

    def payload_as(self, type: type[T]) -> T:
        """Return the payload given to `set_alarm`, as this type.

        Raises msgspec.ValidationError if the payload does not fit the type.
        """
        return codec.decode(self.raw, type)  # type: ignore[no-any-return]


class Alarms(Protocol):
    """The alarms of one object, as its running turn sees them."""

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
    ) -> None: ...
    def get(self, name: str) -> Alarm | None: ...
    def delete(self, name: str) -> bool: ...
    def list(self) -> list[Alarm]: ...


def check_timezone(timezone: str) -> None:
    """Raise ValueError if there is no time zone with this name."""
    try:
        if not isinstance(timezone, str):
            raise ValueError(timezone)
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            f"there is no time zone {timezone!r}: give a name such as 'Europe/Berlin'"
        ) from None


def check_times(times: int) -> int:
    """Return the number of firings unchanged. Raise TypeError or ValueError if it is not a whole
    number from 1 to 2^31 - 1.
    """
    if not isinstance(times, int) or isinstance(times, bool):
        raise TypeError(f"times must be a whole number, not {times!r}")
    if not 1 <= times < 1 << 31:
        raise ValueError(f"times must be at least 1 and below 2^31, not {times}")
    return times


def check_every(every: timedelta | str) -> int | str:
    """Return a repetition in its stored form: ms, or a cron expression.

    Raises TypeError for any other type. Raises ValueError for an interval that is too short or too
    long, and for a cron expression that is wrong or has no next time.
    """
    if not isinstance(every, timedelta | str):
        raise TypeError(
            f"every must be a timedelta, or a cron expression as text, not {every!r:.100}"
        )
    if isinstance(every, timedelta):
        if not EVERY_MIN <= every <= EVERY_MAX:
            how = "short" if every < EVERY_MIN else "long"
            raise ValueError(
                f"every={every} is too {how}: give at least {EVERY_MIN} and at most"
                f" {EVERY_MAX.days} days"
            )
        return round(every.total_seconds() * 1000)
    from cronsim import CronSim, CronSimError  # clients may lack this package

    try:
        next(CronSim(every, datetime(2000, 1, 1, tzinfo=UTC)))
    except CronSimError as error:
        raise ValueError(f"{every!r} is not a cron expression: {error}") from None
    except StopIteration:
        raise ValueError(f"the cron expression {every!r} has no next time") from None
    return every


def next_after(every: int | str, timezone: str, scheduled_ms: int, after_ms: int) -> int | None:
    """Return the first repetition that comes after `after_ms`, or None if there is none.

    `scheduled_ms`: the time at which the alarm was due.
    """
    if isinstance(every, int):
        missed = max(0, after_ms - scheduled_ms) // every
        return scheduled_ms + every * (missed + 1)
    from cronsim import CronSim

    start = datetime.fromtimestamp(max(scheduled_ms, after_ms) / 1000, ZoneInfo(timezone))
    try:
        return round(next(CronSim(every, start)).timestamp() * 1000)
    except StopIteration:
        return None
