"""One timer for many deadlines: what one of them raises is not the others' end."""

from __future__ import annotations

import asyncio

import pytest
from holdfast import connect, connect_blocking
from holdfast.deadlines import TIMEOUT_MAX_S, Deadlines, checked_timeout


class Entry:
    def __init__(self, deadline: float) -> None:
        self.deadline = deadline


async def test_an_entry_that_cannot_be_told_does_not_stop_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop = asyncio.get_running_loop()
    now = loop.time()
    pending = {i: Entry(now + 0.02 * i) for i in range(1, 5)}
    told: list[int] = []

    def expire(entry: Entry) -> None:
        number = next(i for i, other in pending.items() if other is entry)
        if number == 2:
            raise RuntimeError("a bug")
        told.append(number)
        del pending[number]

    deadlines = Deadlines(pending, expire)
    for entry in pending.values():
        deadlines.watch(entry.deadline)
    async with asyncio.timeout(5):
        while len(told) < 3:
            await asyncio.sleep(0.01)
    assert told == [1, 3, 4]
    assert caplog.text.count("a call could not be ended at its deadline") == 1
    deadlines.close()


@pytest.mark.parametrize("given", [float("inf"), 1e12, 10**400, 301])
def test_who_asks_for_more_time_than_there_is_gets_what_there_is(given: float) -> None:
    assert checked_timeout(given) == TIMEOUT_MAX_S
    assert checked_timeout(0.5) == 0.5


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (float("nan"), ValueError),
        (0, ValueError),
        (-1, ValueError),
        ("5", TypeError),
        (True, TypeError),
    ],
)
def test_what_is_no_time_is_told_before_it_travels(given: object, error: type[Exception]) -> None:
    for use in (
        checked_timeout,
        lambda t: connect("gw:1", timeout=t),
        lambda t: connect_blocking("gw:1", timeout=t),
    ):
        with pytest.raises(error, match="a timeout must be"):
            use(given)
