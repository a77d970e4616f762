"""The whole path on real processes: one call, one owner, one durable turn."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import holdfast
import pytest


async def test_calls_are_sequential_durable_and_typed(processes: Any) -> None:
    processes.start_etcd()
    processes.start_node("n1")
    processes.start_gateway()
    async with holdfast.connect(processes.gateway, timeout=30) as client:
        counter: Any = client.get("Counter", "a")
        assert await counter.increment(by=2) == 2
        with pytest.raises(holdfast.Rejected) as refused:
            await counter.increment(by=-1)
        assert refused.value.data == {"by": -1}
        with pytest.raises(holdfast.InvalidArgument) as wrong:
            await counter.increment(by="x")
        assert wrong.value.path == "$.by"
        with pytest.raises(holdfast.NotFound, match="did you mean Counter"):
            await client.get("Countr", "a").increment()  # type: ignore[attr-defined]
        hot: Any = client.get("Counter", "hot")
        assert await asyncio.gather(*(hot.increment() for _ in range(1000))) == list(range(1, 1001))


async def test_what_was_acknowledged_survives_kill_9_of_the_node(processes: Any) -> None:
    processes.start_etcd()
    processes.start_node("n1")
    processes.start_gateway()
    async with holdfast.connect(processes.gateway, timeout=40) as client:
        counter: Any = client.get("Counter", "a")
        for round_ in range(1, 4):
            assert await counter.increment() == round_ * 2 - 1
            processes.kill("n1")
            waiting = asyncio.create_task(counter.increment())  # held by the gateway until the node is back
            processes.start_node("n1")
            assert await waiting == round_ * 2


async def test_a_node_with_other_settings_is_refused_and_told_which(processes: Any) -> None:
    processes.start_etcd()
    processes.start_node("n1")
    processes.start_gateway()
    async with holdfast.connect(processes.gateway, timeout=30) as client:
        await client.get("Counter", "a").increment()  # type: ignore[attr-defined]
    processes.start_node("n2", "--shards", "128")
    assert processes.wait_for_exit("n2") == 1
    assert "shards: 128 here, 256 there" in processes.log("n2")


async def test_handlers_that_wait_roll_back_time_out_and_find_cycles(processes: Any) -> None:
    processes.start_etcd()
    processes.start_node("n1")
    processes.start_gateway()
    async with holdfast.connect(processes.gateway, timeout=30) as client:
        a: Any = client.get("Counter", "a")
        assert await a.wait_and_increment(0.05, 5.0) == 1
        with pytest.raises(holdfast.ApplicationError) as timed_out:
            await a.wait_and_increment(5.0, 0.05)
        assert timed_out.value.type == "TimeoutError"
        with pytest.raises(holdfast.ApplicationError, match="half-way"):
            await a.fail_half_way()
        assert await a.value() == 1
        with pytest.raises(holdfast.Deadlock) as cycle:
            await a.call_back("b")
        assert cycle.value.cycle == ("Counter/a", "Counter/b", "Counter/a")
        short: Any = client.get("Counter", "a", timeout=0.2)
        with pytest.raises(holdfast.DeadlineExceeded) as late:
            await short.wait_and_increment(5.0, 20.0)
        assert late.value.definite
        assert await a.value() == 1


async def test_a_node_that_was_paused_past_its_lease_serves_only_after_it_has_joined_again(processes: Any) -> None:
    processes.start_etcd()
    processes.start_node("n1", "--lease-ttl", "2")
    processes.start_gateway()
    async with holdfast.connect(processes.gateway, timeout=40) as client:
        counter: Any = client.get("Counter", "a")
        assert await counter.increment() == 1
        processes.running["n1"].send_signal(signal.SIGSTOP)
        waiting = asyncio.create_task(counter.increment())
        await asyncio.sleep(6)
        assert not waiting.done()
        processes.running["n1"].send_signal(signal.SIGCONT)
        assert await waiting == 2
        assert await counter.increment() == 3
    assert "serving nothing until etcd confirms" in processes.log("n1")
    assert "incarnation 2" in processes.log("n1")
