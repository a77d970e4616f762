"""Nodes with different kinds: which node has which, and what an owner asks for."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from holdfast.errors import LacksKind, NotFound, error_from_proto, error_to_proto
from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.etcdpb import etcd_pb2
from holdfast_cluster.membership.etcd import Changes, Listing
from holdfast_cluster.membership.kinds import KnownKinds
from holdfast_cluster.membership.view_watcher import apply
from holdfast_cluster.placement.model import (
    Assignment,
    ClusterSettings,
    Hosting,
    Keys,
    Member,
    Versioned,
    View,
    encode,
    encode_kinds,
)
from holdfast_cluster.placement.plan import plan
from holdfast_node.effects.outbox import PendingNotification
from holdfast_node.effects.records import AlarmRecord, Notification
from holdfast_node.effects.records import encode as encode_record
from holdfast_node.log.shards import Shard, Shards
from holdfast_node.objects.hosted_kinds import EVERY_S, LOOK_S, MEMORY_S, OBJECTS_MAX, ShardKinds
from holdfast_node.store import keys
from holdfast_node.store.rocks import Store

from tests.unit.engine_bench import Bench
from tests.unit.no_log import NO_LOG

SETTINGS = ClusterSettings(shards=1, replication=2, id="c")


def member(name: str, *kinds: str, version: int = 2, incarnation: int = 1) -> Member:
    return Member(
        name, f"127.0.0.1:{ord(name[0])}", incarnation, f"h-{name}", version=version, kinds=kinds
    )


def view(
    *members: Member, owner: str = "a", in_sync: tuple[str, ...] = ("a", "b"), **rest: Any
) -> View:
    now = Assignment(1, owner, 1, in_sync)
    kinds = {one.id: one.kinds for one in members}
    return View(
        1,
        SETTINGS,
        {one.id: one for one in members},
        {0: Versioned(now, 1)},
        "a",
        kinds=kinds | rest.pop("kinds", {}),
        **rest,
    )


# -- which kinds there are


def test_a_kind_is_expected_back_with_the_node_that_has_it() -> None:
    now = 0.0
    known = KnownKinds(30.0, lambda: now)
    known.follow(view(member("a", "X"), member("b", "Y"), in_sync=("a",)))
    assert known.names() == {"X", "Y"}
    assert (known.might_have("X"), known.might_have("Y"), known.might_have("Z")) == (
        True,
        True,
        False,
    )
    known.follow(view(member("a", "X"), in_sync=("a",), kinds={"b": ("Y",)}))
    now += 29.0
    assert known.might_have("Y")
    now += 2.0
    assert not known.might_have("Y")


def test_a_node_that_has_data_is_expected_for_as_long_as_it_is_away() -> None:
    now = 0.0
    known = KnownKinds(30.0, lambda: now)
    known.follow(view(member("a", "X"), kinds={"b": ("Y",)}))  # this process has never seen b
    now += 10_000.0
    assert known.might_have("Y")
    assert not known.might_have("Z")
    known.follow(view(member("a", "X")))  # b was always of version 1: no node knows what it has
    assert known.might_have("Z")


def test_a_member_of_the_version_before_may_have_anything() -> None:
    known = KnownKinds(30.0, lambda: 0.0)
    known.follow(view(member("a", "X"), member("b", version=1)))
    assert known.might_have("Z")
    assert known.names() == {"X"}


def test_what_etcd_says_of_kinds_is_in_the_view() -> None:
    places = Keys("default")
    told = Hosting(3, ("X",), {4: ("X",), 5: ()}, {6: ("Y",)})
    rows = {places.hosting("a"): encode(told), places.kinds("b"): encode_kinds(("Y", "Z"))}
    picture = apply(
        View(),
        Listing(
            [etcd_pb2.KeyValue(key=key.encode(), value=value) for key, value in rows.items()], 9
        ),
        places,
    )
    assert (picture.hosting, picture.kinds) == ({"a": told}, {"b": ("Y", "Z")})
    assert picture.hosting_of(member("a", incarnation=3)) == told
    assert picture.hosting_of(member("a", incarnation=4)).asks == {}  # an earlier life has said it
    gone = [
        etcd_pb2.Event(
            type=etcd_pb2.Event.DELETE, kv=etcd_pb2.KeyValue(key=key.encode(), mod_revision=4)
        )
        for key in rows
    ]
    picture = apply(picture, Changes(gone, 10), places)
    assert (picture.hosting, picture.kinds) == ({}, {})


def test_a_refusal_for_a_kind_survives_the_wire_and_is_no_owner_to_a_process_of_the_version_before() -> (  # noqa: E501
    None
):
    told = error_to_proto(LacksKind("m", definite=True, retryable=True))
    assert type(error_from_proto(told)) is LacksKind
    assert (told.code, told.lacks_kind) == (pb.CODE_WRONG_OWNER, True)


# -- what an owner asks for


@dataclass
class Node:
    """The kinds of node `name`, which owns shard 0 unless it is told otherwise."""

    name: str
    store: Store
    mine: tuple[str, ...]
    now: float = 1000.0

    def __post_init__(self) -> None:
        self.shards = Shards(8)
        self.used: dict[tuple[str, str], Any] = {}
        self.known = KnownKinds(30.0, lambda: self.now)
        self.kinds = ShardKinds(
            self.mine,
            self.known,
            self.store,
            self.shards,
            lambda of: [one for one in self.used.values() if one.shard in of],
            lambda: self.now,
        )
        self.shard: Shard | None = None

    def own(self) -> Shard:
        self.shard = Shard(0, 1, NO_LOG)
        self.shards.take(self.shard)
        return self.shard

    def lose(self) -> None:
        assert self.shard is not None
        self.shards.drop({self.shard})
        self.used = {}
        self.shard = None

    def use(self, kind: str, key: str) -> None:
        assert self.shard is not None
        self.shard.kinds.add(kind)
        self.used[kind, key] = SimpleNamespace(
            shard=self.shard, kind=SimpleNamespace(name=kind), last_used=self.now
        )

    async def told(self, picture: View) -> Hosting:
        self.known.follow(picture)
        await self.kinds.look(picture)
        return self.kinds.hosting(picture, picture.members[self.name])


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    store = Store(tmp_path / "store")
    yield Node("a", store, ("X",))
    store.close()


A, B, BOTH = member("a", "X"), member("b", "Y"), member("b", "X", "Y")


async def test_a_node_asks_for_another_owner_when_one_has_the_kind(node: Node) -> None:
    shard = node.own()
    for picture, asks in (
        (view(A), {}),
        (view(A, B), {0: ("Y",)}),
        (view(A, BOTH), {0: ("X", "Y")}),
    ):
        node.kinds.ask(shard, "Y", "y")
        assert (await node.told(picture)).asks == asks
    node.now += MEMORY_S + 1
    assert (await node.told(view(A, B))).asks == {}
    node.kinds.ask(shard, "Y", "y")
    node.lose()
    assert (await node.told(view(A, B))).asks == {}


async def test_a_node_that_stops_or_drains_is_not_asked_for(node: Node) -> None:
    node.kinds.ask(node.own(), "Y", "y")
    assert (await node.told(view(A, msgspec.structs.replace(B, state="stopping")))).asks == {}


async def test_where_no_node_has_all_kinds_the_one_that_more_objects_need_counts(
    node: Node,
) -> None:
    shard = node.own()
    for key in "123":
        node.use("X", key)
    for number, asks in ((2, {}), (3, {}), (4, {0: ("Y",)})):
        node.kinds.ask(shard, "Y", f"y{number}")
        node.kinds.ask(shard, "Y", "y0")  # one that comes again is one object
        assert (await node.told(view(A, B))).asks == asks, number
    node.use("X", "4")
    node.now += 1.0  # they are counted once a second
    assert (await node.told(view(A, B))).asks == {}
    assert (await node.told(view(A, BOTH))).asks == {0: ("X", "Y")}  # neither kind loses there


async def test_a_shard_that_was_handed_over_is_not_asked_away_at_once(node: Node) -> None:
    shard = node.own()
    released = View(
        1,
        SETTINGS,
        {"a": A, "b": B},
        {0: Versioned(Assignment(2, "a", 1, ("a", "b"), released=True), 1)},
        "a",
    )
    await node.told(released)
    for passed, asks in ((EVERY_S - 1, {}), (2.0, {0: ("Y",)})):
        node.now += passed
        node.kinds.ask(shard, "Y", "y")
        assert (await node.told(released)).asks == asks


async def test_what_is_remembered_of_those_that_ask_is_bounded(node: Node) -> None:
    shard = node.own()
    for i in range(OBJECTS_MAX + 50):
        node.kinds.ask(shard, "Y", str(i))
    assert len(node.kinds._asked[shard]) == OBJECTS_MAX


async def test_what_a_shard_holds_is_told_once_it_has_stayed_and_only_while_it_matters(
    node: Node,
) -> None:
    node.own()
    assert await node.told(view(A, member("b", "X"))) == Hosting(1)
    assert await node.told(view(A, B)) == Hosting(1, ("X",))  # perhaps objects are about to come
    node.now += EVERY_S + LOOK_S
    assert await node.told(view(A, B)) == Hosting(1, ("X",), {0: ()})
    batch = node.store.batch()
    batch.put("state", keys.row_prefix(0, "X", "x") + b"row", b"1")
    batch.put("state", keys.row_prefix(0, "Xx", "x") + b"row", b"1")
    node.store.write(batch)
    assert (await node.told(view(A, B))).holds == {0: ()}
    node.now += LOOK_S
    assert (await node.told(view(A, B))).holds == {0: ("X",)}
    node.lose()
    node.own().kinds.add("X")  # nothing of it is stored, but it was called
    node.now += EVERY_S + LOOK_S
    await node.told(view(A, B))
    node.now += EVERY_S + LOOK_S
    assert (await node.told(view(A, B))).holds == {0: ("X",)}
    assert await node.told(view(A, member("b", "X"))) == Hosting(1)


# -- two nodes and the controller together


@dataclass
class Life:
    """What became of a shard: its last owner, when it was handed over, and how often each kind was
    served."""

    owner: str
    at: list[float]
    served: Counter[str]


async def live(
    folder: Path,
    apps: dict[str, str],
    owner: str,
    steps: int,
    calls: Callable[[int], list[tuple[str, str]]],
) -> Life:
    """Call objects in one shard, four times a second. `apps`: by node, the letters of its kinds;
    each node has a copy."""
    members = {name: member(name, *kinds) for name, kinds in apps.items()}
    nodes = {name: Node(name, Store(folder / name), one.kinds) for name, one in members.items()}
    settings = msgspec.structs.replace(SETTINGS, replication=len(apps))
    nodes[owner].own()
    now = Assignment(1, owner, 1, tuple(apps), released=True)
    hosting: dict[str, Hosting] = {}
    life = Life(owner, [], Counter())
    for step in range(steps):
        for one in nodes.values():
            one.now = 1000 + step / 4
        here = nodes[life.owner]
        assert here.shard is not None
        for kind, key in calls(step):
            if kind in here.mine:
                here.use(kind, key)
                life.served[kind] += 1
            else:
                here.kinds.ask(here.shard, kind, key)
        picture = View(
            step + 1, settings, members, {0: Versioned(now, step)}, "a", hosting=dict(hosting)
        )
        for name, one in nodes.items():
            hosting[name] = await one.told(picture)
        for transition in plan(picture, 1):
            assert transition.why in ("hosting", "move")
            now = transition.to
        if now.handover:
            here.lose()
            life.owner = now.handover
            life.at.append(step / 4)
            nodes[life.owner].own()
            now = msgspec.structs.replace(
                now, epoch=now.epoch + 1, owner=life.owner, handover="", released=True
            )
    for one in nodes.values():
        one.store.close()
    return life


# X is at the ring's favourite, or at the other one
TWO = [
    ({"a": "X", "b": "Y"}, "a"),
    ({"a": "Y", "b": "X"}, "b"),
]


@pytest.mark.parametrize(("apps", "x_node"), TWO)
@pytest.mark.parametrize(
    ("xs", "ys", "kind"), [(3, 2, "X"), (2, 3, "Y"), (2, 2, "X"), (0, 1, "Y"), (5, 0, "X")]
)
async def test_a_shard_that_two_apps_want_does_not_go_back_and_forth(
    tmp_path: Path, apps: dict[str, str], x_node: str, xs: int, ys: int, kind: str
) -> None:
    called = [("X", str(i)) for i in range(xs)] + [("Y", str(i)) for i in range(ys)]
    life = await live(tmp_path, apps, x_node, 1000, lambda step: called)
    assert (life.owner == x_node, len(life.at)) == (kind == "X", kind == "Y")
    assert life.served[kind] > 500


@pytest.mark.parametrize(
    ("apps", "counts"),
    [
        (
            {"a": "X", "b": "Y", "c": "Z"},
            {"X": 1, "Y": 1, "Z": 1},
        ),  # two wait for each that is served
        ({"a": "X", "b": "Y", "c": "Z"}, {"X": 1, "Y": 2, "Z": 3}),
        ({"a": "XY", "b": "YZ", "c": "ZX"}, {"X": 2, "Y": 2, "Z": 2}),
        ({"a": "XY", "b": "YZ", "c": "ZX"}, {"X": 1, "Y": 2, "Z": 3}),
        ({"a": "XYU", "b": "YV", "c": "VX"}, {"X": 2, "Y": 2, "U": 1, "V": 2}),
        ({"a": "XU", "b": "YX", "c": "YU"}, {"X": 3, "Y": 3, "U": 1}),
        ({"a": "XU", "b": "YU", "c": "YX"}, {"X": 3, "Y": 3, "U": 1}),
    ],
)
@pytest.mark.parametrize("owner", ["a", "b", "c"])
async def test_every_hand_over_for_kinds_serves_more_objects_than_before(
    tmp_path: Path, apps: dict[str, str], counts: dict[str, int], owner: str
) -> None:
    called = [(kind, str(i)) for kind, count in counts.items() for i in range(count)]
    life = await live(tmp_path, apps, owner, 1000, lambda step: called)

    def served(name: str) -> int:
        return sum(counts.get(kind, 0) for kind in apps[name])

    assert len(life.at) <= 2
    assert served(life.owner) >= served(owner) + len(life.at)
    assert served(life.owner) == max(served(name) for name in apps)


@pytest.mark.parametrize(("apps", "x_node"), TWO)
async def test_a_shard_whose_kinds_are_asked_for_in_turn_serves_both(
    tmp_path: Path, apps: dict[str, str], x_node: str
) -> None:
    life = await live(
        tmp_path, apps, x_node, 2000, lambda step: [("X" if step // 400 % 2 else "Y", "o")]
    )
    assert len(life.at) == 5
    assert min(life.served.values()) > 500


@pytest.mark.parametrize(("apps", "x_node"), TWO)
async def test_a_shard_rests_between_two_hand_overs_whatever_it_is_asked_for(
    tmp_path: Path, apps: dict[str, str], x_node: str
) -> None:
    """Each kind is called by more and more objects in turn, as by somebody who wants to move the
    shard all the time."""
    life = await live(
        tmp_path,
        apps,
        x_node,
        400,
        lambda step: [("XY"[step // 4 % 2], f"{step}-{i}") for i in range(step // 4 + 1)],
    )
    assert life.at
    assert all(later - earlier >= EVERY_S for earlier, later in itertools.pairwise(life.at))


# -- an engine whose app lacks a kind


def elsewhere(bench: Bench, *members: Member, **rest: Any) -> View:
    """The cluster of the bench's node, `a`, and others."""
    mine = member("a", *bench.objects.kinds._mine)
    picture = view(mine, *members, **rest)
    bench.objects.kinds.known.follow(picture)
    return picture


async def test_a_kind_that_another_node_has_is_refused_as_such_and_asked_for(bench: Bench) -> None:
    picture = elsewhere(bench, member("b", "Order"))
    (error,) = await bench.answered(bench.call("o", "place", kind="Order"))
    assert (error.code, error.lacks_kind, error.definite) == (pb.CODE_WRONG_OWNER, True, True)
    assert bench.objects.kinds.hosting(picture, picture.members["a"]).asks == {0: ("Order",)}


async def test_not_found_names_the_kinds_of_the_whole_cluster(bench: Bench) -> None:
    elsewhere(bench, member("b", "Order"))
    first, later = await bench.answered(
        bench.call("o", "place", kind="Orders"), bench.call("o", "place", kind="Orders", attempt=1)
    )
    assert (first.code, first.message) == (
        pb.CODE_NOT_FOUND,
        "no kind 'Orders'; did you mean Order?",
    )
    assert first.definite
    # an earlier attempt may have met a node that had it
    assert (later.code, later.definite) == (
        pb.CODE_NOT_FOUND,
        False,
    )
    assert bench.objects.kinds._asked == {}


async def test_a_node_that_does_not_serve_the_shard_says_nothing_of_its_kinds(bench: Bench) -> None:
    elsewhere(bench)
    bench.shard.until = 0.0
    (error,) = await bench.answered(bench.call("o", "place", kind="Order"))
    assert (error.code, error.lacks_kind) == (pb.CODE_WRONG_OWNER, False)


async def test_without_a_cluster_an_unknown_kind_is_not_found(bench: Bench) -> None:
    (error,) = await bench.answered(bench.call("a", "increment", kind="Counte"))
    assert type(error_from_proto(error)) is NotFound
    assert "Counter" in error.message


async def test_an_alarm_of_a_kind_that_the_owner_lacks_waits_and_asks_for_another_owner(
    bench: Bench,
) -> None:
    picture = elsewhere(bench, member("b", "Order"))
    batch = bench.store.batch()
    batch.put("state", keys.due_key(0, keys.ALARMS, 5, keys.ident("Order", "o") + b"x"), b"")
    batch.put(
        "state",
        keys.alarm_prefix(0, "Order", "o") + b"x",
        encode_record(AlarmRecord(5, 5, b"\x90")),
    )
    bench.store.write(batch)
    bench.objects.services.tick()
    await asyncio.sleep(0.05)
    assert bench.objects.kinds.hosting(picture, picture.members["a"]).asks == {0: ("Order",)}
    assert (bench.objects.alarms.fired, bench.objects.alarms.failed) == (0, 0)
    assert bench.store.get("state", keys.alarm_prefix(0, "Order", "o") + b"x") is not None


@pytest.mark.parametrize(("has", "letters"), [("Order", 0), ("Other", 1)])
async def test_what_a_kind_has_sent_that_the_owner_lacks_is_given_up_by_nobody_who_does_not_know_its_limits(  # noqa: E501
    bench: Bench, has: str, letters: int
) -> None:
    elsewhere(bench, member("b", has))
    objects = bench.objects
    objects.dead_letters.opened(bench.shard)
    note = PendingNotification(
        bench.shard,
        keys.sequence(1, 1),
        Notification("Order", "o", "Counter", "c", "increment", b"\x90", 1, attempts=19),
    )
    objects.outbox.add([note])
    assert objects.outbox.take(0.0, lambda target: True, lambda target: False) == [note]
    objects.delivery.answered(
        note, pb.Error(code=pb.CODE_APPLICATION, type="ValueError", message="no")
    )
    assert objects.dead_letters.count == letters
