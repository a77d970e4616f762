"""Nodes that do not all have the same kinds: a rolling upgrade that adds one or removes one, and
two apps in one cluster."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import holdfast
import pytest
from holdfast_cluster.placement.ring import shard_of

from tests.cluster.processes import Processes
from tests.cluster.test_restarts import Load

pytestmark = pytest.mark.slow

SHARDS = 32
KIND = """
@app.kind("{name}")
class {name}(DurableObject):
    async def increment(self, by: int = 1) -> int:
        n = self.storage.get("n", default=0) + by
        self.storage.put("n", n)
        return n

    async def value(self) -> int:
        return self.storage.get("n", default=0)

    async def tell(self, kind: str, key: str) -> None:
        self.notify(kind, key).increment()

    async def wake(self, delay_ms: int) -> None:
        self.set_alarm(timedelta(milliseconds=delay_ms))

    async def on_alarm(self, alarm: Alarm) -> None:
        await self.increment()
"""


class Apps(Processes):
    """A cluster whose nodes have apps of named kinds."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, replication=3)

    def app(self, *kinds: str) -> str:
        file = self.folder / f"{'_'.join(kinds).lower()}_app.py"
        head = (
            "from datetime import timedelta\nfrom holdfast import Alarm, App, DurableObject\napp ="
            " App()\n"
        )
        file.write_text(head + "".join(KIND.format(name=name) for name in kinds))
        return str(file)

    def begin(self, nodes: int, *kinds: str) -> None:
        self.start_etcd()
        for i in range(1, nodes + 1):
            self.run_app(f"n{i}", *kinds, members_min=nodes)
        self.front()
        self.wait_ready(self.gateway)

    def run_app(self, name: str, *kinds: str, members_min: int = 3) -> None:
        options = (
            "--members-min",
            str(members_min),
            "--shards",
            str(SHARDS),
            "--repair-after",
            "20",
        )
        self.node(name, *options, app=self.app(*kinds))

    async def roll(self, name: str, *kinds: str) -> None:
        """Stop a node as an operator does, start it with another app, and wait until every copy is
        in sync again."""
        await asyncio.to_thread(self.kill, name, signal.SIGTERM)
        self.run_app(name, *kinds)
        started = time.monotonic()
        await self.until(lambda status: self.is_whole(status, name), started)

    @staticmethod
    def is_whole(status: Any, name: str) -> bool:
        there = any(
            node["id"].startswith(f"{name}-") and node["state"] == "active"
            for node in status["nodes"]
        )
        others = [problem for problem in status["problems"] if not problem["minor"]]
        moves = status["moves"]
        return (
            there
            and not others
            and not (moves["joining"] or moves["leaving"] or moves["handovers"])
        )

    async def until(self, condition: Callable[[Any], bool], started: float | None = None) -> Any:
        deadline = (started or time.monotonic()) + 90
        while True:
            _, status = await asyncio.to_thread(self.ask, "status")
            if condition(status):
                return status
            assert time.monotonic() < deadline, status["problems"]
            await asyncio.sleep(0.2)

    def owner(self, status: Any, kind: str, key: str) -> str:
        """The name of the node that owns an object's shard."""
        shard = shard_of(kind, key, SHARDS)
        return str(
            next(one["owner"] for one in status["assignments"] if one["shard"] == shard)
        ).partition("-")[0]


@pytest.fixture
def apps(tmp_path: Path) -> Iterator[Apps]:
    cluster = Apps(tmp_path)
    try:
        yield cluster
    finally:
        cluster.stop()


def lacking(status: Any) -> dict[str, str]:
    """By node: what it lacks, as the status says it."""
    said = [
        (p["what"].removeprefix("node ").partition("-")[0], p["why"]) for p in status["problems"]
    ]
    return {
        node: why.removeprefix("it lacks kind ").partition(":")[0]
        for node, why in said
        if "lacks kind" in why
    }


async def test_a_rolling_upgrade_that_adds_a_kind_serves_it_from_the_first_node_on(
    apps: Apps,
) -> None:
    apps.begin(3, "Counter")
    keys = [f"e{i}" for i in range(20)]
    await apps.until(lambda status: apps.is_whole(status, "n3"))
    async with apps.connect(timeout=60) as client:
        with pytest.raises(
            holdfast.NotFound, match="no kind 'Extra'; there are Counter"
        ) as unknown:
            await client.get("Extra", "e").increment()
        assert unknown.value.definite
        async with Load(client) as load:
            await apps.roll("n1", "Counter", "Extra")
            assert await asyncio.gather(
                *(client.get("Extra", key).increment() for key in keys)
            ) == [1] * len(keys)
            status = await apps.until(lambda status: apps.is_whole(status, "n1"))
            assert {apps.owner(status, "Extra", key) for key in keys} == {"n1"}
            assert lacking(status) == {"n2": "Extra", "n3": "Extra"}
            assert (await asyncio.to_thread(apps.ask, "status"))[0] == 0  # the upgrade may go on
            elsewhere = next(
                f"x{i}" for i in range(100) if apps.owner(status, "Extra", f"x{i}") != "n1"
            )
            _, explained = await asyncio.to_thread(apps.ask, "explain", "Extra", elsewhere)
            assert (
                "lacks kind Extra; calls wait until a node that has it owns the shard (n1-"
                in explained["unserved"]
            )
            await client.get("Counter", "k0").tell("Extra", "told")
            for number, name in enumerate(("n2", "n3"), 2):
                await apps.roll(name, "Counter", "Extra")
                assert await asyncio.gather(
                    *(client.get("Extra", key).increment() for key in keys)
                ) == [number] * len(keys)
                await load.goes_on()
            status = await apps.until(
                lambda status: apps.is_whole(status, "n3") and not status["problems"]
            )
        await load.check()
        assert load.slowest_s < 20
        assert await client.get("Extra", "told").value() == 1
    # the ring decides again
    assert {apps.owner(status, "Extra", key) for key in keys} == {
        "n1",
        "n2",
        "n3",
    }
    assert apps.ask("deadletters", "list")[1]["letters"] == []


async def test_a_rolling_upgrade_that_removes_a_kind_serves_it_to_the_last_node(apps: Apps) -> None:
    apps.begin(3, "Counter", "Old")
    keys = [f"o{i}" for i in range(12)]
    expected = 0

    async def goes_on(client: holdfast.Client) -> None:
        nonlocal expected
        expected += 1
        assert await asyncio.gather(*(client.get("Old", key).increment() for key in keys)) == [
            expected
        ] * len(keys)

    async with apps.connect(timeout=60) as client:
        await goes_on(client)
        async with Load(client) as load:
            for name in ("n1", "n2"):
                await client.get("Counter", "k0").tell("Old", "told")
                await client.get("Old", f"woken by {name}").wake(3000)
                await apps.roll(name, "Counter")
                await goes_on(client)
            status = await apps.until(lambda status: apps.is_whole(status, "n2"))
            assert {apps.owner(status, "Old", key) for key in keys} == {"n3"}
            async with asyncio.timeout(30):
                while await client.get("Old", "told").value() < 2:
                    await asyncio.sleep(0.1)
                for name in ("n1", "n2"):
                    while await client.get("Old", f"woken by {name}").value() < 1:
                        await asyncio.sleep(0.1)
            # The only node that has the kind is away for a moment. The gateway does not say that
            # there is no such kind.
            await asyncio.to_thread(apps.kill, "n3")
            waits = asyncio.create_task(client.get("Old", keys[0]).increment())
            await asyncio.sleep(1)
            apps.run_app("n3", "Counter", "Old")
            assert await waits == expected + 1
            await apps.roll("n3", "Counter")
            with pytest.raises(holdfast.NotFound, match="no kind 'Old'; there are Counter"):
                await client.get("Old", keys[0]).value()
            await load.goes_on()
        await load.check()
        assert load.slowest_s < 20
    assert apps.ask("deadletters", "list")[1]["letters"] == []


async def test_two_apps_that_share_no_kind_live_in_one_cluster(apps: Apps) -> None:
    """Half of the nodes come back with another app: objects of both keep answering, at nodes that
    have their kind."""
    apps.begin(4, "Counter")
    of_counters = {shard_of("Counter", f"k{i}", SHARDS) for i in range(100)} & set(
        range(0, SHARDS, 2)
    )
    counters = [f"k{i}" for i in range(100) if shard_of("Counter", f"k{i}", SHARDS) in of_counters]
    baskets = [f"b{i}" for i in range(100) if shard_of("Basket", f"b{i}", SHARDS) % 2 == 1][:30]

    async def all_of(client: holdfast.Client, kind: str, keys: list[str]) -> list[int]:
        counts: list[int] = await asyncio.gather(
            *(client.get(kind, key).increment() for key in keys)
        )
        return counts

    async with apps.connect(timeout=60) as client:
        assert await all_of(client, "Counter", counters) == [1] * len(counters)
        for number, name in enumerate(("n3", "n4"), 2):
            await apps.roll(name, "Basket")
            assert await all_of(client, "Counter", counters) == [number] * len(counters)
        assert await all_of(client, "Basket", baskets) == [1] * len(baskets)

        def at_home(status: Any) -> bool:
            counting = {apps.owner(status, "Counter", key) for key in counters}
            shopping = {apps.owner(status, "Basket", key) for key in baskets}
            return (
                counting == {"n1", "n2"}
                and shopping == {"n3", "n4"}
                and apps.is_whole(status, "n4")
            )

        status = await apps.until(at_home)
        assert lacking(status) == {"n1": "Basket", "n2": "Basket", "n3": "Counter", "n4": "Counter"}
        epochs = {one["shard"]: one["epoch"] for one in status["assignments"]}
        slowest = 0.0
        until = time.monotonic() + 15  # longer than the pause between two hand-overs of a shard
        number = 1
        while time.monotonic() < until:
            number += 1
            began = time.monotonic()
            assert await all_of(client, "Counter", counters) == [number + 2] * len(counters)
            assert await all_of(client, "Basket", baskets) == [number] * len(baskets)
            slowest = max(slowest, time.monotonic() - began)
            await asyncio.sleep(0.2)
        assert slowest < 3  # nothing is held any more
        _, status = await asyncio.to_thread(apps.ask, "status")
        moved = {
            one["shard"] for one in status["assignments"] if one["epoch"] != epochs[one["shard"]]
        }
        assert not moved & ({shard_of("Basket", key, SHARDS) for key in baskets} | of_counters)

        # A node of each app dies. An in-sync copy takes over, and the shards end where their
        # kinds are.
        for name in ("n1", "n3"):
            await asyncio.to_thread(apps.kill, name)
        assert await all_of(client, "Counter", counters) == [number + 3] * len(counters)
        assert await all_of(client, "Basket", baskets) == [number + 1] * len(baskets)
    assert apps.ask("deadletters", "list")[1]["letters"] == []
