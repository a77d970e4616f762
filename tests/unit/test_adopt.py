"""`holdfast adopt-etcd` makes a new etcd from what nodes know, and writes it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from holdfast_cluster.membership import rebuild as rebuild_module
from holdfast_cluster.membership.etcd import EtcdError
from holdfast_cluster.membership.lineage import ADOPTING
from holdfast_cluster.membership.rebuild import look, rebuild
from holdfast_cluster.membership.view_watcher import apply
from holdfast_cluster.peerpb import peer_pb2
from holdfast_cluster.placement.adopt import EPOCH_LEAP, NotAdoptable, Report, Reported, adopt
from holdfast_cluster.placement.model import (
    Assignment,
    ClusterSettings,
    Drain,
    Lineage,
    Member,
    Pause,
    View,
    decode,
    encode,
)

from tests.unit.fake_etcd import KEYS, FakeEtcd, Rows

SETTINGS = ClusterSettings(shards=2, id="c")
MEMBERS = {name: Member(name, f"{name}:1", 4, name) for name in ("a", "b", "c")}


def assigned(
    version: int, nonce: int, in_sync: tuple[str, ...] = ("a", "b"), epoch: int = 3
) -> Assignment:
    return Assignment(epoch, in_sync[0], 4, in_sync, version=version, nonce=nonce)


def report(
    node: str,
    first: Assignment | None,
    second: Assignment | None = None,
    epoch: int = 0,
    **more: Any,
) -> Report:
    shards = {
        shard: Reported(0, one, epoch)
        for shard, one in ((0, first), (1, second))
        if one is not None or epoch
    }
    return replace(Report(node, 5, "c", 0, 10, SETTINGS, MEMBERS, shards=shards), **more)


def all_of(*firsts: Assignment | None, **more: Any) -> list[Report]:
    return [
        report(node, first, assigned(1, 1), **more)
        for node, first in zip(("a", "b", "c"), firsts, strict=True)
    ]


def test_the_highest_version_of_each_shard_counts_under_a_higher_epoch() -> None:
    newest = assigned(9, 90, ("b",), epoch=7)
    adoption = adopt(all_of(assigned(5, 50), newest, assigned(8, 80, ("a", "c"), epoch=6)), [], 0)
    to = adoption.assignments[0]
    assert (to.epoch, to.owner, to.in_sync, to.version) == (8, "b", ("b",), 10)
    assert to.nonce not in (50, 90, 80)
    assert not to.released
    assert adoption.assignments[1].epoch == 4
    assert adoption.generation == 1
    assert adoption.settings == SETTINGS
    assert adoption.incarnations == {"a": 5, "b": 5, "c": 5}


def test_the_epoch_is_above_every_one_that_a_copy_has_heard_of() -> None:
    reports = all_of(*[assigned(5, 50)] * 3)
    reports[1] = replace(
        reports[1], shards={**reports[1].shards, 0: Reported(0, assigned(4, 40), 41)}
    )
    assert adopt(reports, [], 0).assignments[0].epoch == 42


def test_a_later_generation_counts_more_than_a_higher_version() -> None:
    reports = all_of(assigned(90, 9, ("a",)), None, None)
    reports[1] = replace(
        reports[1],
        generation=2,
        shards={**reports[1].shards, 0: Reported(2, assigned(1, 1, ("b",)), 0)},
    )
    adoption = adopt(reports, [], 1)
    assert adoption.assignments[0].in_sync == ("b",)
    assert adoption.generation == 3
    assert adopt(reports, [], 7).generation == 8


def test_every_node_ever_known_reports_or_is_left_out_by_name() -> None:
    two = all_of(*[assigned(5, 50)] * 3)[:2]
    with pytest.raises(NotAdoptable, match=r"no report from c: .* --without NODE"):
        adopt(two, [], 0)
    assert adopt(two, ["c"], 0).assignments[0].epoch == 4 + EPOCH_LEAP
    with pytest.raises(NotAdoptable, match="no report from d"):
        adopt([report("a", assigned(5, 50, ("a", "d")), members={})], [], 0)
    with pytest.raises(NotAdoptable, match="no report from e"):
        adopt(two, ["c"], 0, {"e": 3})
    with pytest.raises(NotAdoptable, match="no node has reported"):
        adopt([], [], 0)


def test_data_that_is_left_out_is_named() -> None:
    reports = all_of(*[assigned(5, 50, ("c",))] * 3)
    adoption = adopt(reports, ["c"], 0)
    assert adoption.notes == (
        "shard 0: all its data is on nodes that are left out (c); calls to it wait",
    )
    assert adoption.incarnations["c"] == 4  # as its member said last


def test_two_assignments_of_one_version_leave_who_is_in_both() -> None:
    adoption = adopt(all_of(assigned(5, 50, ("a", "b")), assigned(5, 51, ("c", "b")), None), [], 0)
    to = adoption.assignments[0]
    assert (to.owner, to.incarnation, to.in_sync, to.version) == ("b", 5, ("b",), 6)
    assert "two assignments of version 5" in adoption.notes[0]
    apart = all_of(assigned(5, 50, ("a",)), assigned(5, 51, ("b",)), None)
    with pytest.raises(NotAdoptable, match=r"no node is in sync in both \(a; b\)"):
        adopt(apart, [], 0)
    assert adopt(apart, ["b"], 0).assignments[0].in_sync == ("a",)


def test_copies_that_nobody_knows_an_assignment_of_are_not_formed_anew() -> None:
    with pytest.raises(NotAdoptable, match="copies of shard 0, but no node knows"):
        adopt(all_of(None, None, None, epoch=2), [], 0)
    adoption = adopt(all_of(None, None, None), [], 0)
    assert set(adoption.assignments) == {1}  # never assigned: the controller forms it


def test_nodes_of_two_clusters_are_not_mixed() -> None:
    reports = all_of(*[assigned(5, 50)] * 3)
    with pytest.raises(NotAdoptable, match="clusters c, d"):
        adopt([*reports[:2], replace(reports[2], cluster="d")], [], 0)
    with pytest.raises(NotAdoptable, match="settings"):
        adopt([replace(one, settings=None) for one in reports], [], 0)


def test_drains_and_pauses_are_those_of_the_newest_report() -> None:
    reports = all_of(*[assigned(5, 50)] * 3)
    reports[1] = replace(
        reports[1], revision=11, drains={"a": Drain(1.0)}, pauses={("K", "k"): Pause(2.0)}
    )
    reports[2] = replace(reports[2], revision=9, drains={"b": Drain(1.0)})
    adoption = adopt(reports, [], 0)
    assert (adoption.drains, adoption.pauses) == ({"a": Drain(1.0)}, {("K", "k"): Pause(2.0)})


def test_a_report_is_what_a_node_said() -> None:
    said = peer_pb2.KnownResponse(
        node="a",
        incarnation=5,
        cluster="c",
        revision=10,
        settings=encode(SETTINGS),
        members=[encode(member) for member in MEMBERS.values()],
        shards=[
            peer_pb2.KnownShard(shard=0, assignment=encode(assigned(5, 50)), epoch=3),
            peer_pb2.KnownShard(shard=1, epoch=2),
        ],
    )
    assert Report.of(said) == replace(
        report("a", None), shards={0: Reported(0, assigned(5, 50), 3), 1: Reported(0, None, 2)}
    )


# -- writing


async def view_of(rows: Rows) -> View:
    return apply(View(), await FakeEtcd(rows).list_prefix(KEYS.prefix), KEYS)


def halted() -> Rows:
    rows = Rows()
    rows.put(KEYS.lineage, encode(Lineage(0, 7, "halted", "n1", "so")))
    rows.put(KEYS.settings, encode(SETTINGS))
    rows.put(KEYS.shard(0), encode(assigned(2, 20)))
    rows.put(KEYS.drain("z"), encode(Drain(1.0)))
    return rows


@pytest.mark.parametrize("rows", [Rows(), halted()], ids=["emptied", "restored"])
async def test_an_emptied_and_a_restored_etcd_become_the_same(rows: Rows) -> None:
    etcd = FakeEtcd(rows)
    adoption = adopt(
        all_of(*[assigned(5, 50)] * 3, drains={"a": Drain(1.0)}, pauses={("K", "k"): Pause(2.0)}),
        [],
        0,
    )
    await rebuild(etcd, KEYS, await look(etcd, KEYS), adoption)
    view = await view_of(rows)
    assert view.lineage == Lineage(1, view.lineage.nonce if view.lineage else 0)
    assert view.settings == SETTINGS
    assert {
        shard: now.assignment for shard, now in view.assignments.items()
    } == adoption.assignments
    assert (view.drains, view.pauses) == ({"a": Drain(1.0)}, {("K", "k"): Pause(2.0)})
    assert rows.value(KEYS.incarnation("b")) == b"5"
    with pytest.raises(NotAdoptable, match="not halted"):
        await look(etcd, KEYS)


async def test_a_rebuild_that_is_cut_short_is_followed_by_nobody_and_may_be_begun_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rebuild_module, "TXN_OPS_MAX", 1)
    reports = all_of(*[assigned(5, 50)] * 3)
    for transactions in range(1, 7):
        rows = halted()
        etcd = FailsAfter(rows, transactions)
        with pytest.raises(EtcdError, match="cut short"):
            await rebuild(etcd, KEYS, await look(etcd, KEYS), adopt(reports, [], 0))
        cut = await view_of(rows)
        assert cut.lineage is not None
        assert (cut.lineage.state, cut.lineage.generation) == (ADOPTING, 1)
        again = FakeEtcd(rows)
        await rebuild(
            again, KEYS, await look(again, KEYS), adopt(reports, [], cut.lineage.generation)
        )
        view = await view_of(rows)
        assert view.lineage is not None
        assert (view.lineage.state, view.lineage.generation) == ("", 2)
        assert {shard: now.assignment.in_sync for shard, now in view.assignments.items()} == {
            0: ("a", "b"),
            1: ("a", "b"),
        }


class FailsAfter(FakeEtcd):
    """Away after so many transactions."""

    def __init__(self, rows: Rows, transactions: int) -> None:
        super().__init__(rows)
        self._left = transactions

    async def transact(self, compare: Any, success: Any, failure: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise EtcdError("cut short")
        return await super().transact(compare, success, failure)


async def test_what_was_changed_since_it_was_looked_at_is_not_overwritten() -> None:
    rows = halted()
    etcd = FakeEtcd(rows)
    found = await look(etcd, KEYS)
    adoption = adopt(all_of(*[assigned(5, 50)] * 3), [], 0)
    await rebuild(etcd, KEYS, found, adoption)  # somebody else's, which came first
    before = dict(rows.rows)
    with pytest.raises(EtcdError, match="changed meanwhile"):
        await rebuild(FakeEtcd(rows), KEYS, found, adoption)
    assert rows.rows == before
    assert decode(rows.value(KEYS.lineage) or b"", Lineage).state == ""
    assert msgspec.structs.replace(adoption.settings) == SETTINGS
