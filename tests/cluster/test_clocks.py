"""Wall clocks that are wrong for a while, on real processes: what is remembered does not follow them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import holdfast
import pytest
from conftest import Processes
from holdfast.verify import inside

pytestmark = pytest.mark.slow

APP = str(Path(__file__).parent / "faulty_app.py")
AHEAD_S = 2 * 86_400
KEYS = [f"k{i}" for i in range(12)]
FORGETTING_S = 64
"""Within this every node has forgotten what it means to forget: it looks once a minute."""
BEYOND_THE_LOG = 215
"""So many entries push an older one out of a replica's log into its state."""


async def test_a_clock_that_was_two_days_ahead_makes_nobody_forget_what_was_done(processes: Processes, tmp_path: Path) -> None:
    processes.replication = 3
    options = ("--members-min", "3", "--repair-after", "600", "--shards", "24")
    processes.start_etcd()
    processes.node("n1", *options)
    for name in ("n2", "n3"):
        processes.environment[name] = {inside.FOLDER: str(tmp_path / "faults")}
        processes.node(name, *options, app=APP)
    processes.front()
    processes.wait_ready(processes.gateway)
    owners = {key: str((await asyncio.to_thread(processes.ask, "where", "Counter", key))[1]["shard"]["owner"])[:2] for key in KEYS}
    assert set(owners.values()) >= {"n1", "n2"}  # the clocks of only the copies, and of the owner, will be wrong
    request_ids = {key: holdfast.new_request_id() for key in KEYS}

    async with processes.connect() as client:

        async def again(key: str) -> list[int]:
            """What two calls say that bring the same key, or the same id, every time."""
            named: Any = client.get("Counter", key, idempotency_key="order")
            numbered: Any = client.get("Counter", key, request_id=request_ids[key])
            return [await named.increment(), await numbered.increment()]

        for key in KEYS:
            assert await again(key) == [1, 2]
        for key in KEYS:
            await asyncio.gather(*(client.get("Counter", key).increment() for _ in range(BEYOND_THE_LOG)))
        inside.set_fault(tmp_path / "faults", inside.CLOCK_S, AHEAD_S)
        await asyncio.sleep(FORGETTING_S)
        assert {key: await again(key) for key in KEYS} == {key: [1, 2] for key in KEYS}
        inside.set_fault(tmp_path / "faults", inside.CLOCK_S, 0)
        await asyncio.sleep(1)
        assert {key: await again(key) for key in KEYS} == {key: [1, 2] for key in KEYS}
        processes.kill("n1")
        assert {key: await again(key) for key in KEYS} == {key: [1, 2] for key in KEYS}
        assert {key: await client.get("Counter", key).value() for key in KEYS} == dict.fromkeys(KEYS, 2 + BEYOND_THE_LOG)
