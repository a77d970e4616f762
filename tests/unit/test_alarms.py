"""When a repeated alarm is due next."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from holdfast.alarms import check_every, check_timezone, next_after
from holdfast_node.effects.alarms import following
from holdfast_node.effects.records import AlarmRecord


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).astimezone(UTC).timestamp() * 1000)


def test_a_fixed_distance_is_counted_from_when_it_was_due() -> None:
    assert next_after(1000, "UTC", 5000, 5000) == 6000
    assert next_after(1000, "UTC", 5000, 5999) == 6000
    assert next_after(1000, "UTC", 5000, 6000) == 7000
    assert next_after(1000, "UTC", 5000, 0) == 6000


def test_a_cron_expression_is_in_its_time_zone_over_the_change_of_the_clocks() -> None:
    # 9 o'clock in Berlin; the next night the clocks go forward
    before = ms("2026-03-28T08:00:00+00:00")
    assert next_after("0 9 * * *", "Europe/Berlin", before, before) == ms(
        "2026-03-29T07:00:00+00:00"
    )
    assert next_after("0 9 * * *", "UTC", before, before) == ms("2026-03-28T09:00:00+00:00")


@pytest.mark.parametrize(
    ("every", "what"),
    [
        (timedelta(milliseconds=99), "is too short"),
        (timedelta(), "is too short"),
        ("every day", "is not a cron expression"),
        ("99 * * * *", "is not a cron expression"),
    ],
)
def test_what_makes_no_sense_is_refused(every: timedelta | str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        check_every(every)


@pytest.mark.parametrize("timezone", ["Atlantis/Capital", None, UTC, "", "../etc/passwd"])
def test_a_time_zone_that_is_none_is_refused(timezone: Any) -> None:
    with pytest.raises(ValueError, match="no time zone"):
        check_timezone(timezone)


@pytest.mark.parametrize(("misfire", "due"), [("once", 11_000), ("skip", 11_000), ("all", 2_000)])
def test_what_was_missed_is_made_up_for_as_asked(misfire: str, due: int) -> None:
    record = AlarmRecord(1_000, 1_000, b"\xc0", every=1_000, misfire=misfire, attempt=2)  # type: ignore[arg-type]
    after = following(record, now_ms=10_500)
    assert after == AlarmRecord(due, due, b"\xc0", every=1_000, misfire=misfire)  # type: ignore[arg-type]


def test_one_that_is_not_repeated_is_done() -> None:
    assert following(AlarmRecord(1, 1, b"\xc0"), 5) is None
