"""Giving owned shards to other replicas."""

from __future__ import annotations

from typing import Any

import pytest
from holdfast_cluster.placement.model import Assignment, Member, View
from holdfast_node.replication import handover
from holdfast_node.replication.handover import Handovers

MEMBERS = {name: Member(name, f"{name}:1", 1, name) for name in "abc"}
VIEW = View(members=MEMBERS)
ALONE = View(members={"a": MEMBERS["a"], "c": MEMBERS["c"]})
"""Without b."""


class Core:
    """What is asked of a replica, as the test sets it."""

    def __init__(self, assignment: Assignment) -> None:
        self.me = "a"
        self.assignment = assignment
        self.concedes_to = ""
        self.may_propose = True
        self.is_isolated = self.is_unheard = False
        self.may = True

    def isolated(self, now: float) -> bool:
        return self.is_isolated

    def unheard(self, now: float) -> bool:
        return self.is_unheard

    def may_release(self, now: float) -> bool:
        return self.may


class Copy:
    number = 7

    def __init__(self, replica: Core) -> None:
        self.replica = replica
        self.shard: object | None = object()


class World:
    """A node that owns shard 7. Stands in for `Replicas` and `ShardTurns`."""

    def __init__(self) -> None:
        self.now = 100.0
        self.core = Core(Assignment(1, "a", 1, ("a", "b", "c"), handover="b"))
        self.copy = Copy(self.core)
        self.done: list[tuple[str, ...]] = []
        self.over = False
        stands_in: Any = self
        self.handovers = Handovers(stands_in, stands_in)

    def tick(self, view: View = VIEW) -> list[tuple[str, ...]]:
        """What one tick did."""
        self.done.clear()
        self.handovers.tick(view)
        return list(self.done)

    # -- Replicas

    def unsettled(self) -> list[Any]:
        return [self.copy]

    def release(self, number: int, to: Member) -> None:
        self.done.append(("release", to.id))

    def abdicate(self, number: int, to: Member) -> None:
        self.done.append(("abdicate", to.id))

    def concede(self, number: int, to: Member) -> None:
        self.done.append(("concede", to.id))

    # -- ShardTurns

    def close(self, shard: Any) -> None:
        self.done.append(("close",))

    def open(self, shard: Any) -> None:
        self.done.append(("open",))

    def cancel(self, shard: Any) -> None:
        self.done.append(("cancel",))

    def are_over(self, shard: Any) -> bool:
        return self.over


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(handover, "boottime", lambda: world.now)
    return world


def test_a_shard_is_given_when_its_turns_are_over(world: World) -> None:
    assert world.tick() == [("close",)]
    assert world.tick() == []
    world.over = True
    assert world.tick() == [("release", "b")]
    world.copy.shard = None
    world.core.assignment = Assignment(2, "b", 1, ("a", "b", "c"))
    assert world.tick() == []
    assert world.handovers.done == 1


def test_turns_that_do_not_end_are_cancelled_and_the_shard_is_kept_in_the_end(world: World) -> None:
    world.tick()
    world.now += 5.1
    assert world.tick() == [("cancel",)]
    world.now += 3
    assert world.tick() == [("open",)]
    world.now += 1.9
    assert world.tick() == []
    world.now += 0.2
    assert world.tick() == [("close",)]
    assert world.handovers.done == 0


@pytest.mark.parametrize("why", ["it left", "it is not asked for now", "it is not in sync"])
def test_a_shard_is_served_again_when_the_next_owner_is_not_to_have_it(
    world: World, why: str
) -> None:
    world.tick()
    world.over = True
    in_sync: tuple[str, ...] = "a", "b", "c"
    to = "b"
    if why == "it is not asked for now":
        to = ""
    if why == "it is not in sync":
        in_sync = ("a", "c")
    world.core.assignment = Assignment(1, "a", 1, in_sync, handover=to)
    assert world.tick(ALONE if why == "it left" else VIEW) == [("open",)]


def test_nothing_is_given_to_a_node_that_is_away_or_that_lacks_entries(world: World) -> None:
    assert world.tick(ALONE) == []
    world.core.assignment = Assignment(1, "a", 1, ("a", "c"), joining=("b",), handover="b")
    assert world.tick() == []


def test_nothing_is_given_before_the_replica_may(world: World) -> None:
    world.core.may = False
    assert world.tick() == []


def test_an_owner_that_hears_no_replica_gives_the_shard_to_one_that_is_there(world: World) -> None:
    world.core.is_isolated = True
    assert world.tick() == [("abdicate", "b")]
    assert world.tick(ALONE) == [("abdicate", "c")]
    assert world.tick(View(members={"a": MEMBERS["a"]})) == []


def test_a_shard_is_conceded_to_the_copy_that_has_more_and_to_no_other(world: World) -> None:
    world.core.concedes_to = "b"
    world.core.is_unheard = True
    assert world.tick() == [("concede", "b")]
    assert world.tick(ALONE) == []
    world.core.concedes_to = ""
    assert world.tick(ALONE) == [("concede", "c")]
    world.core.may_propose = False
    assert world.tick() == []
