"""One timer for many deadlines: what one of them raises is not the others' end."""

from __future__ import annotations

import asyncio

import pytest
from holdfast.deadlines import Deadlines


class Entry:
    def __init__(self, deadline: float) -> None:
        self.deadline = deadline


async def test_an_entry_that_cannot_be_told_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
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
    assert caplog.text.count("a deadline passed, and that could not be told") == 1
    deadlines.close()
