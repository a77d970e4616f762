"""The controller's shell: when it may change what etcd says."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from holdfast_cluster.membership import controller as controller_module
from holdfast_cluster.membership.controller import Controller
from holdfast_cluster.membership.view_watcher import apply
from holdfast_cluster.placement.model import (
    Assignment,
    ClusterSettings,
    Lineage,
    Member,
    View,
    decode,
    encode,
)

from tests.unit.a_cluster import a_cluster
from tests.unit.fake_etcd import KEYS, FakeEtcd, Rows

ME = Member("a", "a:1", 2, "a")


class Watcher:
    """A view that the test shows."""

    foreign = ""
    listed_at = float("-inf")

    def __init__(self) -> None:
        self.view = View()

    async def until(self, condition: Any) -> View:
        while not condition(self.view):
            await asyncio.sleep(0.005)
        return self.view


class Joined:
    member = ME
    lease_id = 1


class World:
    """A node that is the controller of a cluster of its own."""

    async def begin(self, replication: int, *assigned: Assignment) -> None:
        self.rows = Rows()
        etcd = FakeEtcd(self.rows)
        assert await etcd.form(ClusterSettings(shards=1, replication=replication, id="c"))
        raw = self.rows.value(KEYS.lineage) or b""
        etcd.follow(decode(raw, Lineage), raw)
        self.rows.put(KEYS.member("a"), encode(ME))
        self.rows.put(KEYS.controller, b"a")
        for one in assigned:
            self.rows.put(KEYS.shard(0), encode(one))
        self.watcher = Watcher()
        self.watcher.view = apply(View(), await etcd.list_prefix(KEYS.prefix), KEYS)
        self.controller = Controller(a_cluster(etcd, self.watcher), Joined(), 1, 30.0)  # type: ignore[arg-type]

    async def runs(self, seconds: float) -> Assignment | None:
        """What the shard is after a while."""
        task = asyncio.create_task(self.controller.run())
        await asyncio.sleep(seconds)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raw = self.rows.value(KEYS.shard(0))
        return None if raw is None else decode(raw, Assignment)


RESTARTED = Assignment(1, "a", 1, ("a",), version=4, nonce=7)
"""Its owner has come back as another incarnation: a new epoch is due."""


async def test_nothing_is_changed_while_a_witness_may_yet_halt_what_was_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(controller_module, "WITNESSES_S", 0.4)
    world = World()
    await world.begin(3, RESTARTED)
    world.watcher.listed_at = time.monotonic()
    assert await world.runs(0.2) == RESTARTED
    after = await world.runs(0.6)
    assert after is not None
    assert (after.epoch, after.version, after.incarnation) == (2, 5, 2)


@pytest.mark.parametrize("assigned", [(RESTARTED,), ()], ids=["single copies", "formation"])
async def test_where_there_is_nothing_to_lose_nobody_waits(
    assigned: tuple[Assignment, ...],
) -> None:
    world = World()
    await world.begin(1 if assigned else 3, *assigned)
    world.watcher.listed_at = time.monotonic()
    after = await world.runs(0.3)
    assert after is not None
    assert after.incarnation == 2


async def test_nothing_of_an_etcd_that_is_not_believed_is_acted_on() -> None:
    world = World()
    await world.begin(3, RESTARTED)
    world.watcher.foreign = "halted"
    assert await world.runs(0.3) == RESTARTED


async def test_what_was_planned_from_an_assignment_that_is_there_no_more_is_not_done() -> None:
    world = World()
    await world.begin(3, RESTARTED)
    other = Assignment(1, "b", 1, ("b",), version=4, nonce=8)
    world.rows.put(KEYS.shard(0), encode(other))
    world.rows.rows[KEYS.shard(0).encode()].mod_revision = world.watcher.view.assignments[
        0
    ].revision  # as after a restore
    assert await world.runs(0.3) == other
