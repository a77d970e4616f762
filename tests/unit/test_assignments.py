"""What a node keeps of etcd on its disk, and that nothing happens under an assignment before it is
there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from holdfast_cluster.membership.lineage import Seen, judge
from holdfast_cluster.placement.adopt import Report
from holdfast_cluster.placement.model import (
    Assignment,
    ClusterSettings,
    Drain,
    Lineage,
    Member,
    Pause,
    Versioned,
    View,
    encode,
)
from holdfast_node.store.assignments import KeptAssignments
from holdfast_node.store.rocks import Store

from tests.unit.test_host import SHARD, Flusher, Trio

SETTINGS = ClusterSettings(shards=4, id="c")
LINEAGE = Lineage(2, 7)
A, B = (Member(name, f"{name}:1", 3, name) for name in ("a", "b"))


def versioned(version: int, generation: int = 2) -> Versioned:
    now = Assignment(version, "a", 1, ("a", "b"), version=version, nonce=version * 10)
    return Versioned(now, 100 + version, encode(now), generation)


def view(
    versions: dict[int, int], members: tuple[Member, ...] = (A, B), drains: tuple[str, ...] = ()
) -> View:
    return View(
        50,
        SETTINGS,
        {member.id: member for member in members},
        {shard: versioned(version) for shard, version in versions.items()},
        drains={node: Drain(1.0) for node in drains},
        pauses={("K", "k"): Pause(2.0)},
        lineage=LINEAGE,
        lineage_raw=encode(LINEAGE),
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store")
    yield store
    store.close()


def test_what_was_seen_is_known_after_a_start(store: Store) -> None:
    flusher = Flusher(store)
    memory = KeptAssignments("c", store, flusher)
    memory.follow(view({0: 5, 3: 1}))
    assert memory.learn(0, versioned(6))
    assert not memory.learn(0, versioned(6))
    assert not KeptAssignments("c", store, flusher).known().assignments, "it was not flushed yet"
    flusher.flush()
    known = KeptAssignments("c", store, flusher).known()
    assert known.assignments == {0: Seen(2, 6, 60), 3: Seen(2, 1, 10)}
    assert known.lineage == LINEAGE
    assert judge(known, view({0: 5, 3: 1})).halt
    assert not judge(known, view({0: 6, 3: 1})).why


def test_what_did_not_change_is_not_written_again(store: Store) -> None:
    flusher = Flusher(store)
    memory = KeptAssignments("c", store, flusher)
    memory.follow(view({0: 5}))
    flusher.flush()
    memory.follow(msgspec.structs.replace(view({0: 5}), revision=60))
    assert flusher.staged is None


def test_a_report_tells_all_that_is_known_as_it_is_in_etcd(store: Store) -> None:
    flusher = Flusher(store)
    memory = KeptAssignments("c", store, flusher)
    gone = Member("gone", "gone:1", 3, "gone")
    drained = Member("drained", "drained:1", 3, "drained")
    memory.follow(view({0: 4}, (A, B, gone, drained), ("drained",)))
    memory.follow(view({0: 5}))
    flusher.flush()
    report = Report.of(KeptAssignments("c", store, flusher).report("a", 9, {0: 7, 2: 1}))
    assert set(report.members) == {"a", "b", "gone"}  # nothing is on one that was drained and left
    assert (report.node, report.incarnation, report.cluster, report.generation) == ("a", 9, "c", 2)
    assert report.settings == SETTINGS
    assert report.pauses == {("K", "k"): Pause(2.0)}
    zero, two = report.shards[0], report.shards[2]
    assert (zero.generation, zero.assignment, zero.epoch) == (2, versioned(5).assignment, 7)
    assert (two.assignment, two.epoch) == (None, 1)


def test_a_replica_hears_of_an_assignment_once_it_is_on_disk(tmp_path: Path) -> None:
    trio = Trio(tmp_path)
    node = trio.nodes["a"]
    now = Assignment(1, "a", 1, ("a", "b"), version=1, nonce=1)
    shown = View(1, SETTINGS, trio.members, {SHARD: Versioned(now, 1, encode(now))})
    node.replicas.joined(trio.members["a"], shown)
    assert node.replicas.get(SHARD) is None
    node.flusher.flush()
    copy = node.replicas.get(SHARD)
    assert copy is not None
    assert copy.replica.assignment == now
    assert copy.raw == encode(now)


def test_a_proposal_that_happened_counts_once_it_is_on_disk(tmp_path: Path) -> None:
    trio = Trio(
        tmp_path,
        replica_timeout_s=0.0,
        first_patience_s=0.0,
        heartbeat_s=0.0,
        min_in_sync=1,
        lone_patience_s=0.0,
    )
    node = trio.nodes["a"]
    now = Assignment(1, "a", 1, ("a", "b"), released=True, version=4, nonce=1)
    node.replicas.joined(
        trio.members["a"], View(1, SETTINGS, trio.members, {SHARD: Versioned(now, 1, encode(now))})
    )
    for _ in range(20):
        node.flusher.flush()
        node.replicas.tick()
    [(_, old, to), *_] = node.asked
    assert old == encode(now)
    assert to.in_sync == ("a",)
    written = to.stamped()
    copy = node.replicas.get(SHARD)
    assert copy is not None
    committed = copy.replica.committed
    node.replicas.proposal_answered(SHARD, Versioned(written, 9, encode(written)), written)
    assert (copy.replica.assignment, copy.replica.committed) == (now, committed), (
        "without b nothing is committed yet"
    )
    node.flusher.flush()
    assert copy.replica.assignment == written
    assert copy.replica.committed > committed
    assert copy.raw == encode(written)
