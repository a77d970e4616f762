"""Disks that are replaced, on real processes: every shard gets its copies back, whatever was replaced just before."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import holdfast
import pytest
from conftest import Processes
from holdfast.blocking import BlockingClient
from holdfast.errors import HoldfastError
from holdfast.local import free_port
from test_replication import wait_until, whole

KEYS = 60
REPAIR_AFTER_S = 600
"""Far beyond the test: copies that come back in it were not made because a patience was over."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Processes]:
    processes = Processes(tmp_path, replication=3)
    try:
        yield processes
    finally:
        processes.stop()


class Load:
    """Increments from a thread of its own, and which of them were acknowledged, or may have happened."""

    def __init__(self, gateway: str) -> None:
        self._gateway = gateway
        self._stop = Event()
        self.acknowledged: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()
        self._thread = Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:

        async with holdfast.connect(self._gateway, timeout=30) as client:

            async def increment(key: str) -> None:
                while not self._stop.is_set():
                    try:
                        await client.get("Counter", key).increment()
                        self.acknowledged[key] += 1
                    except HoldfastError as error:
                        if not error.definite:
                            self.unknown[key] += 1
                        await asyncio.sleep(0.05)
                    await asyncio.sleep(0.02)

            await asyncio.gather(*(increment(f"k{i}") for i in range(KEYS)))

    def check(self, gateway: str) -> None:
        """Every acknowledged increment is there, and nothing that nobody made."""
        with BlockingClient(gateway, timeout=40) as client:
            for key, count in self.acknowledged.items():
                assert count <= client.get("Counter", key).value() <= count + self.unknown[key], key


@pytest.mark.timeout(240)
def test_two_disks_that_are_replaced_one_after_the_other_are_made_whole_again(cluster: Processes) -> None:
    ports = {name: free_port() for name in ("n1", "n2", "n3")}

    def start(name: str) -> None:
        options = ("--shards", "32", "--repair-after", str(REPAIR_AFTER_S), "--listen", f"127.0.0.1:{ports[name]}")
        cluster.node(name, "--members-min", "3", *options)

    def replace(name: str) -> None:
        cluster.kill(name)
        shutil.rmtree(cluster.folder / name)
        start(name)

    cluster.start_etcd()
    for name in ports:
        start(name)
    cluster.front()
    cluster.wait_ready(cluster.gateway)
    before = wait_until(cluster, whole)
    with Load(cluster.gateway) as load:
        time.sleep(2)
        began = time.monotonic()
        replace("n2")
        time.sleep(6)
        replace("n3")
        assert time.monotonic() - began < 30
        status = wait_until(cluster, lambda status: whole(status) and len(status["nodes"]) == 3, 60)
    assert not {n["id"] for n in before["nodes"]} >= {n["id"] for n in status["nodes"]}
    assert all(n["shards_in_sync"] == 32 for n in status["nodes"])
    assert sum(load.acknowledged.values()) > 500
    cluster.kill("n1")  # the only one whose disk was never replaced
    load.check(cluster.gateway)
    cluster.kill("n2")
    load.check(cluster.gateway)
