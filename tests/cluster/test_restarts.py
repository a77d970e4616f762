"""Processes that die, pause and come back under load: callers see latency, not errors, and nothing
acknowledged is lost."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

import holdfast
import psutil
import pytest
from holdfast.local import free_port

from tests.cluster.processes import Processes

WORKERS = 32
KEYS = 16


class Load:
    """Workers that increment counters all the time. Every call must succeed."""

    def __init__(self, client: holdfast.Client) -> None:
        self._client = client
        self.acknowledged = dict.fromkeys((f"k{i}" for i in range(KEYS)), 0)
        self.slowest_s = 0.0
        self._stop = False

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._work(f"k{i % KEYS}")) for i in range(WORKERS)]
        await self.goes_on()
        self.slowest_s = 0.0
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop = True
        await asyncio.gather(*self._tasks)

    async def _work(self, key: str) -> None:
        while not self._stop:
            began = time.monotonic()
            await self._client.get("Counter", key).increment()
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            self.acknowledged[key] += 1

    async def goes_on(self) -> None:
        """Return when every counter has moved."""
        before = dict(self.acknowledged)
        while any(self.acknowledged[key] <= n for key, n in before.items()):
            await asyncio.sleep(0.02)

    async def check(self) -> None:
        values = {key: await self._client.get("Counter", key).value() for key in self.acknowledged}
        assert values == self.acknowledged


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill -9", "SIGTERM"])
@pytest.mark.parametrize("victim", ["n1", "gateway", "etcd"])
async def test_a_restart_under_load_costs_latency_but_no_call(
    processes: Processes, victim: str, number: int
) -> None:
    processes.start_all(nodes=2)
    async with processes.connect(timeout=60) as client:
        async with Load(client) as load:
            for _ in range(3):
                processes.kill(victim, number)
                await asyncio.sleep(0.3)
                if victim == "etcd":
                    processes.start_etcd()
                elif victim == "gateway":
                    processes.front()
                else:
                    processes.node("n1")
                await load.goes_on()
        await load.check()
        assert load.slowest_s < 20


async def test_with_etcd_away_calls_go_on_and_membership_comes_back_with_it(
    processes: Processes,
) -> None:
    processes.start_all("--lease-ttl", "2", nodes=2)
    async with processes.connect(timeout=60) as client:
        async with Load(client) as load:
            processes.kill("etcd")
            end = time.monotonic() + 6  # three leases
            while time.monotonic() < end:
                await load.goes_on()
            assert load.slowest_s < 2
            processes.start_etcd()
            for _ in range(5):
                await load.goes_on()
                await asyncio.sleep(0.5)
        await load.check()
        assert processes.ask("status")[0] == 0


async def test_a_node_that_was_paused_past_its_lease_serves_only_after_it_has_joined_again(
    processes: Processes,
) -> None:
    processes.start_all("--lease-ttl", "2")
    async with processes.connect() as client:
        counter: Any = client.get("Counter", "a")
        assert await counter.increment() == 1
        processes.processes["n1"].send_signal(signal.SIGSTOP)
        waiting = asyncio.create_task(counter.increment())
        await asyncio.sleep(6)
        assert not waiting.done()
        processes.processes["n1"].send_signal(signal.SIGCONT)
        assert await waiting == 2
        assert await counter.increment() == 3
    assert "serving nothing until etcd confirms" in processes.said("n1")
    assert "incarnation 2" in processes.said("n1")


async def test_a_client_goes_on_through_another_gateway(processes: Processes) -> None:
    processes.start_all()
    second = free_port()
    processes.start_gateway("gateway2", second)
    async with holdfast.connect(processes.gateway, f"127.0.0.1:{second}", timeout=30) as client:
        async with Load(client) as load:
            for victim in ("gateway", "gateway2"):
                processes.kill(victim)
                await load.goes_on()
                if victim == "gateway":
                    processes.front()
                    await asyncio.sleep(1)
        await load.check()


async def test_the_blocking_client_goes_on_while_the_gateway_restarts(processes: Processes) -> None:
    processes.start_all()

    def script() -> list[int]:
        with holdfast.connect_blocking(processes.gateway, timeout=30) as client:
            counts = [client.get("Counter", "b").increment()]
            for victim in ("gateway", "n1"):
                processes.kill(victim)
                if victim == "n1":
                    processes.node("n1")
                else:
                    processes.front()
                counts.append(client.get("Counter", "b").increment())
            return counts

    assert await asyncio.to_thread(script) == [1, 2, 3]


async def test_a_drain_lets_running_turns_end(processes: Processes) -> None:
    processes.start_all()
    async with processes.connect() as client:
        assert await client.get("Counter", "a").value() == 0
        running = asyncio.create_task(client.get("Counter", "a").wait_and_increment(1.5, 5.0))
        await asyncio.sleep(0.5)
        processes.kill("n1", signal.SIGTERM)
        processes.node("n1")
        assert await running == 1
        assert await client.get("Counter", "a").value() == 1
    assert "stopping: finishing 1 calls" in processes.said("n1")


async def test_a_drain_lets_nested_calls_end_and_runs_again_what_it_had_to_cut(
    processes: Processes,
) -> None:
    processes.start_all("--drain-timeout", "2")
    async with processes.connect() as client:
        await client.get("Counter", "warm").value()
        nested = asyncio.create_task(client.get("Counter", "outer").wait_then_call(0.8, "inner"))
        too_slow = asyncio.create_task(client.get("Counter", "slow").wait_and_increment(4.0, 20.0))
        await asyncio.sleep(0.3)
        began = time.monotonic()
        processes.kill("n1", signal.SIGTERM)
        assert time.monotonic() - began < 5
        processes.node("n1")
        assert await nested == 1
        assert await too_slow == 1
        assert await client.get("Counter", "inner").value() == 1


async def test_a_gateway_under_load_stops_soon_and_loses_nothing(processes: Processes) -> None:
    processes.start_all()
    async with processes.connect(timeout=60) as client:
        async with Load(client) as load:
            began = time.monotonic()
            processes.kill("gateway", signal.SIGTERM)
            assert time.monotonic() - began < 5
            processes.front()
            await load.goes_on()
        await load.check()


async def test_a_node_that_dies_before_it_took_its_first_shards_serves_them_when_it_is_back(
    processes: Processes,
) -> None:
    processes.start_etcd()
    processes.node("n1", "--members-min", "2")
    processes.front()
    processes.node("n2", "--members-min", "2")
    while "joined as n2" not in processes.said("n2"):
        await asyncio.sleep(0.002)
    processes.kill("n2")
    processes.node("n2", "--members-min", "2")
    async with processes.connect() as client:
        assert (
            await asyncio.gather(*(client.get("Counter", f"k{i}").increment() for i in range(64)))
            == [1] * 64
        )


async def test_several_workers_are_as_many_nodes_and_end_together(processes: Processes) -> None:
    processes.start_etcd()
    processes.node("n1", "--workers", "3", "--members-min", "3", "--listen", "127.0.0.1:0")
    processes.front()
    async with processes.connect() as client:
        await asyncio.gather(*(client.get("Counter", f"k{i}").increment() for i in range(100)))
        _, status = processes.ask("status")
        assert sorted(node["id"][:4] for node in status["nodes"]) == ["n1-0", "n1-1", "n1-2"]
        assert len({node["host"] for node in status["nodes"]}) == 1
        children = psutil.Process(processes.processes["n1"].pid).children()
        assert len(children) == 3
        children[0].kill()  # it is started again
        values = await asyncio.gather(*(client.get("Counter", f"k{i}").value() for i in range(100)))
        assert values == [1] * 100
        processes.kill("n1", signal.SIGTERM)
        assert not [
            child
            for child in children
            if child.is_running() and child.status() != psutil.STATUS_ZOMBIE
        ]
