"""A definite error is never told of an effect that is there: the rule at the head of
holdfast.errors, on real processes."""

from __future__ import annotations

import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import holdfast
import pytest
from holdfast.local import free_port

from tests.cluster.processes import Processes

pytestmark = pytest.mark.slow

CALLS = 600
WAITS_S = 0.7
THREADS = 40


@pytest.fixture
async def cluster(cluster: Processes) -> Processes:
    cluster.start_all(nodes=3)
    await asyncio.to_thread(cluster.wait_ready, cluster.gateway)
    return cluster


async def all_by_asyncio(endpoints: tuple[str, str], timeout: float) -> list[Any]:
    async with holdfast.connect(*endpoints, timeout=timeout) as client:
        calls = [
            client.get("Counter", f"asyncio-{i}").wait_and_increment(WAITS_S, 10.0)
            for i in range(CALLS)
        ]
        return await asyncio.gather(*calls, return_exceptions=True)


async def all_by_threads(endpoints: tuple[str, str], timeout: float) -> list[Any]:
    with (
        holdfast.connect_blocking(*endpoints, timeout=timeout) as client,
        ThreadPoolExecutor(THREADS) as pool,
    ):

        def one(i: int) -> Any:
            try:
                return client.get("Counter", f"threads-{i}").wait_and_increment(WAITS_S, 10.0)
            except holdfast.HoldfastError as error:
                return error

        return await asyncio.gather(
            *(asyncio.wrap_future(pool.submit(one, i)) for i in range(THREADS))
        )


@pytest.mark.parametrize("make", [all_by_asyncio, all_by_threads])
async def test_no_definite_error_is_told_of_an_effect_when_a_gateway_and_a_node_die(
    cluster: Processes, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway stops before it can answer, and dies with a node. Its callers try the other
    gateway. That one cannot reach the owners of some objects before the deadlines end. It knows
    nothing of earlier attempts, so it may not say that a call had no effect.
    """
    # every client begins with the gateway that dies
    in_order = SimpleNamespace(randrange=lambda _: 0)
    monkeypatch.setattr("holdfast.client.session.random", in_order)
    monkeypatch.setattr("holdfast.client.blocking.random", in_order)
    port = free_port()
    first, second = cluster.gateway, f"127.0.0.1:{port}"
    cluster.start_gateway("second", port)
    await asyncio.to_thread(cluster.wait_ready, second)
    async with holdfast.connect(second, timeout=40) as observer:
        calling = asyncio.create_task(make((first, second), 3.0))
        await asyncio.sleep(WAITS_S / 2)
        cluster.processes["gateway"].send_signal(signal.SIGSTOP)
        # by now the effects are there, and their replies wait in the gateway
        await asyncio.sleep(WAITS_S)
        cluster.kill("gateway")
        cluster.kill("n1")
        results = await calling
        name = make.__name__.rpartition("_")[2]
        there = await asyncio.gather(
            *(observer.get("Counter", f"{name}-{i}").value() for i in range(len(results)))
        )
    told = [
        (result, n)
        for result, n in zip(results, there, strict=True)
        if isinstance(result, Exception)
    ]
    errors = [(result, n) for result, n in told if isinstance(result, holdfast.HoldfastError)]
    assert errors == told
    assert not [f"{error.code}: {error}" for error, n in errors if error.definite and n]
    assert all(
        n == 1
        for result, n in zip(results, there, strict=True)
        if not isinstance(result, Exception)
    )
    assert max(there) == 1
    # effects of which only an error was told: the world was as described
    assert sum(n for _, n in told) >= len(results) / 10
    assert sum(not isinstance(result, Exception) for result in results) >= len(results) / 10
