"""What docs/operating.md says of losing etcd, sentence by sentence, on real processes and a real etcd."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import Processes

KEYS = [f"k{i}" for i in range(24)]
OPTIONS = ("--shards", "16", "--repair-after", "60")


class Ledger:
    """Increments counters one after the other, and remembers every value that was acknowledged."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.values: dict[str, list[int]] = {key: [] for key in KEYS}
        self.errors: list[str] = []
        self._stop = False

    async def round(self) -> None:
        """One increment of every key; none may fail."""
        values = await asyncio.gather(*(self._client.get("Counter", key).increment() for key in KEYS))
        for key, value in zip(KEYS, values, strict=True):
            self.values[key].append(value)

    @asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        """Rounds all the time, of which every call has to be answered."""
        self._stop = False
        task = asyncio.create_task(self._go_on())
        try:
            yield
        finally:
            self._stop = True
            await task

    async def _go_on(self) -> None:
        while not self._stop:
            await self.round()
            await asyncio.sleep(0.05)

    async def check(self) -> None:
        """Nothing acknowledged is lost, and no value was given out twice, which two owners at once would do."""
        for key, values in self.values.items():
            assert values == sorted(set(values)), f"{key}: {values}"
            assert values[-1] <= await self._client.get("Counter", key).value(), key


class Lost(Processes):
    """A cluster of three nodes whose etcd can be lost in many ways."""

    def begin(self) -> None:
        self.start_all(*OPTIONS, nodes=3)
        self.wait_ready(self.gateway)
        self.until(lambda status: not status["problems"])

    def again(self, name: str) -> None:
        self.node(name, "--members-min", "3", *OPTIONS)

    def until(self, condition: Callable[[Any], bool], timeout_s: float = 60) -> Any:
        """Status, as soon as it is as `condition` wants it."""
        deadline = time.monotonic() + timeout_s
        while True:
            _, status = self.ask("status")
            if condition(status):
                return status
            assert time.monotonic() < deadline, status["problems"]
            time.sleep(0.2)

    def healthy(self, timeout_s: float = 60) -> None:
        """Return when three nodes are members and nothing is wrong."""
        self.until(
            lambda status: not status["problems"] and sum(node["state"] == "active" for node in status["nodes"]) == 3, timeout_s
        )

    def etcd_is_wrong(self) -> str:
        """What status says of etcd, once it says that it went back or was emptied."""
        status = self.until(lambda status: any("nothing of this is acted on" in problem["why"] for problem in status["problems"]), 20)
        return next(p["why"] for p in status["problems"] if "nothing of this is acted on" in p["why"])

    @property
    def etcd_folder(self) -> Path:
        return self.folder / "etcd"

    def save_etcd(self, name: str) -> None:
        """A copy of etcd's data; etcd is away for a moment."""
        self.kill("etcd")
        shutil.copytree(self.etcd_folder, self.folder / name)
        self.start_etcd()

    def replace_etcd(self, name: str | None) -> None:
        """etcd begins with other data: those of that name, or none."""
        self.kill("etcd")
        shutil.rmtree(self.etcd_folder)
        if name is not None:
            shutil.copytree(self.folder / name, self.etcd_folder)
        self.start_etcd()


@pytest.fixture
def lost(tmp_path: Path) -> Iterator[Lost]:
    cluster = Lost(tmp_path, replication=3)
    try:
        cluster.begin()
        yield cluster
    finally:
        cluster.stop()


async def test_an_etcd_that_was_emptied_and_put_back_is_followed_again_without_a_restart(lost: Lost) -> None:
    async with lost.connect() as client:
        ledger = Ledger(client)
        await ledger.round()
        async with ledger.going_on():
            lost.kill("etcd")
            shutil.move(lost.etcd_folder, lost.folder / "good")
            lost.start_etcd()
            why = await asyncio.to_thread(lost.etcd_is_wrong)
            assert "etcd knows no cluster of this name" in why
            await asyncio.sleep(12)
            lost.replace_etcd("good")
            await asyncio.to_thread(lost.healthy)
        lost.kill("n3")  # it is followed in fact: a node that dies is noticed, and its shards have other owners
        async with ledger.going_on():
            await asyncio.to_thread(lost.until, lambda status: sum(n["state"] == "active" for n in status["nodes"]) == 2)
            lost.again("n3")
            await asyncio.to_thread(lost.healthy)
        await ledger.check()
