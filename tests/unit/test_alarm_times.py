"""What an alarm shows of the time that it was set for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from holdfast_node.effects.alarms import following, to_alarm
from holdfast_node.effects.records import AlarmRecord, decode_alarm, encode

WHEN_MS = 1_893_456_000_123


@pytest.mark.parametrize("beyond_us", [0, 1, 456, 999])
def test_it_is_what_was_set_to_the_microsecond(beyond_us: int) -> None:
    record = AlarmRecord(
        WHEN_MS + 1, WHEN_MS, b"\xc0", options={"us": beyond_us} if beyond_us else None
    )
    scheduled = to_alarm("a", decode_alarm(encode(record))).scheduled
    assert scheduled == datetime(2030, 1, 1, 0, 0, 0, 123_000 + beyond_us, UTC)
    assert scheduled == scheduled.astimezone(timezone(timedelta(hours=5)))


def test_a_repetition_keeps_its_distance_and_a_cron_expression_its_seconds() -> None:
    record = AlarmRecord(WHEN_MS + 1, WHEN_MS, b"\xc0", every=1_000, options={"us": 456})
    again = following(record, WHEN_MS + 10)
    assert again is not None
    assert to_alarm("a", again).scheduled == to_alarm("a", record).scheduled + timedelta(seconds=1)
    cron = following(msgspec.structs.replace(record, every="* * * * *"), WHEN_MS + 10)
    assert cron is not None
    assert to_alarm("a", cron).scheduled == datetime(2030, 1, 1, 0, 1, tzinfo=UTC)
