"""Alarms as users see them, and when a repeated one is due next. Pure.

Times are Unix time in ms. A repetition is counted from when the alarm was due, not from when it
fired, so it does not drift.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from holdfast import codec

T = TypeVar("T")

DEFAULT = "default"
"""The name of an alarm that is given none."""

NAME_BYTES_MAX = 256
PAYLOAD_BYTES_MAX = 64 << 10
EVERY_MIN = timedelta(milliseconds=100)
EVERY_MAX = timedelta(days=36_525)

Misfire = Literal["once", "all", "skip"]


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """What `on_alarm` gets, and what `get_alarm` and `list_alarms` show."""

    name: str
    scheduled: datetime
    """When it was to fire, whatever became of that; UTC."""
    attempt: int = 0
    """How often the handler has failed at this firing."""
    times: int | None = None
    """How often it fires yet, this firing counted; None when that is not limited."""
    until: datetime | None = None
    """The latest time for which it may be repeated; UTC."""
    raw: bytes = b"\xc0"

    @property
    def payload(self) -> Any:
        """What was given to `set_alarm`, in plain types."""
        return codec.decode(self.raw)

    def payload_as(self, type: type[T]) -> T:
        """What was given to `set_alarm`, as this type."""
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
    """Raises ValueError for a name that no time zone has."""
    try:
        if not isinstance(timezone, str):
            raise ValueError(timezone)
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            f"no time zone {timezone!r}; it is named by a text such as 'Europe/Berlin'"
        ) from None


def check_times(times: int) -> int:
    """How often an alarm fires. Raises TypeError or ValueError for what is no such number."""
    if not isinstance(times, int) or isinstance(times, bool):
        raise TypeError(f"times is a number, not {times!r}")
    if not 1 <= times < 1 << 31:
        raise ValueError(f"times is at least 1 and below 2^31, not {times}")
    return times


def check_every(every: timedelta | str) -> int | str:
    """A repetition as it is stored: ms, or a cron expression. Raises ValueError for one that makes
    no sense."""
    if not isinstance(every, timedelta | str):
        raise TypeError(f"`every` is a timedelta, or a cron expression as text, not {every!r:.100}")
    if isinstance(every, timedelta):
        if not EVERY_MIN <= every <= EVERY_MAX:
            how = "often" if every < EVERY_MIN else "rare"
            raise ValueError(
                f"every {every} is too {how}: at least {EVERY_MIN}, and at most {EVERY_MAX.days}"
                " days"
            )
        return round(every.total_seconds() * 1000)
    from cronsim import CronSim, CronSimError  # which only servers need

    try:
        next(CronSim(every, datetime(2000, 1, 1, tzinfo=UTC)))
    except CronSimError as error:
        raise ValueError(f"not a cron expression: {every!r}: {error}") from None
    except StopIteration:
        raise ValueError(f"{every!r} never comes") from None
    return every


def next_after(every: int | str, timezone: str, scheduled_ms: int, after_ms: int) -> int | None:
    """The first repetition of an alarm that was due at `scheduled_ms` which comes after `after_ms`;
    None when there is none."""
    if isinstance(every, int):
        missed = max(0, after_ms - scheduled_ms) // every
        return scheduled_ms + every * (missed + 1)
    from cronsim import CronSim

    start = datetime.fromtimestamp(max(scheduled_ms, after_ms) / 1000, ZoneInfo(timezone))
    try:
        return round(next(CronSim(every, start)).timestamp() * 1000)
    except StopIteration:
        return None
