"""The whole path on real processes: one call, one owner, one durable turn."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest


async def test_1000_concurrent_calls_to_one_object_run_one_after_the_other_in_order(processes: Any) -> None:
    processes.start_all()
    async with processes.connect() as client:
        hot: Any = client.get("Counter", "hot")
        assert await asyncio.gather(*(hot.increment() for _ in range(1000))) == list(range(1, 1001))


@pytest.mark.timeout(600)
async def test_what_was_acknowledged_survives_kill_9_of_the_node_right_after_the_reply(processes: Any) -> None:
    """The fsync happens before the reply: 200 rounds of a reply, a kill -9, and a look at what is there."""
    processes.start_all("--lease-ttl", "2")
    async with processes.connect(timeout=60) as client:
        counter: Any = client.get("Counter", "a")
        for round_ in range(1, 201):
            assert await counter.increment() == round_
            processes.kill("n1")
            processes.node("n1", "--lease-ttl", "2")
        assert await counter.value() == 200
