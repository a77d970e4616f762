"""Owning shards that have a single copy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from holdfast_cluster.placement.model import Assignment, Member, Versioned, View
from holdfast_node.log.commit import Flusher
from holdfast_node.log.shards import FOR_EVER, Shards
from holdfast_node.replication.single import SingleCopies
from holdfast_node.store import keys
from holdfast_node.store.rocks import Store

ME = Member("a-1", "a:1", 7, "host")


def view(**epochs: int) -> View:
    """A view in which this node owns the shards `s0` and on under these epochs."""
    return View(
        members={ME.id: ME},
        assignments={
            int(name[1:]): Versioned(Assignment(epoch, ME.id, ME.incarnation, (ME.id,)), 1)
            for name, epoch in epochs.items()
        },
    )


class World:
    def __init__(self, path: Path) -> None:
        self.store = Store(path)
        self.flusher = Flusher(self.store)
        self.shards = Shards(4)
        self.copies = SingleCopies(self.flusher, self.shards)

    def owned(self) -> dict[int, int]:
        return {shard.number: shard.epoch for shard in self.shards.owned()}

    def kept(self, shard: int) -> tuple[int, int] | None:
        raw = self.store.get("meta", keys.position_key(shard))
        return None if raw is None else keys.decode_position(raw)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    await world.flusher.close()
    world.store.close()


async def test_what_is_assigned_is_owned_under_an_epoch_that_is_on_disk(world: World) -> None:
    world.copies.follow(view(s0=3, s1=4), ME)
    assert world.owned() == {0: 3, 1: 4}
    assert [world.kept(shard) for shard in (0, 1, 2)] == [(3, 0), (4, 0), None]
    assert {shard.until for shard in world.shards.owned()} == {FOR_EVER}
    before = world.shards.get(0)
    world.copies.follow(view(s0=3, s1=6), ME)
    assert world.owned() == {0: 3, 1: 6}
    assert world.shards.get(0) is before
    world.copies.left()
    assert world.owned() == {}


async def test_another_life_of_the_node_owns_nothing_of_this_one(world: World) -> None:
    later = Member(ME.id, ME.address, ME.incarnation + 1, ME.host)
    for member in (later, None):
        world.copies.follow(view(s0=3), ME)
        assert world.owned() == {0: 3}
        world.copies.follow(view(s0=3), member)
        assert world.owned() == {}


async def test_a_shard_is_not_served_under_an_epoch_older_than_its_data(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.copies.follow(view(s0=5, s1=5), ME)
    world.copies.left()
    world.copies.follow(view(s0=4, s1=5), ME)
    assert world.owned() == {1: 5}
    assert "shard 0 is assigned under epoch 4, but this directory has epoch 5" in caplog.text
    assert world.kept(0) == (5, 0)
    world.copies.follow(view(s0=6, s1=5), ME)
    assert world.owned() == {1: 5}, "its etcd has gone back: a later epoch proves nothing"


async def test_a_shard_that_comes_while_the_disk_is_full_is_read_only_too(world: World) -> None:
    world.copies.follow(view(s0=1), ME)
    world.copies.set_read_only("full")
    world.copies.follow(view(s0=1, s1=1), ME)
    assert [shard.read_only for shard in world.shards.owned()] == ["full", "full"]
    world.copies.set_read_only(None)
    assert [shard.read_only for shard in world.shards.owned()] == [None, None]


async def test_a_shard_goes_on_with_the_time_that_was_noted(world: World) -> None:
    world.copies.follow(view(s0=1), ME)
    [shard] = world.shards.owned()
    shard.time_ms = 1234.5
    world.copies.save_times()
    world.copies.left()
    world.copies.follow(view(s0=2), ME)
    [shard] = world.shards.owned()
    assert world.kept(0) == (2, 1234)
    assert int(shard.time_ms) == 1234
