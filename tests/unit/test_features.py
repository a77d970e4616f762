"""Features: a cluster uses one once every member knows it, and then no other process may join."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from holdfast_cluster.membership.controller import Controller
from holdfast_cluster.membership.member import (
    Membership,
    NotAccepted,
    agree_on_settings,
    refuse_unknown_features,
)
from holdfast_cluster.membership.view_watcher import ViewWatcher
from holdfast_cluster.placement import model
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

SETTINGS = ClusterSettings(id="c")


class Etcd(FakeEtcd):
    """One that a cluster with these settings was formed in; what happens before a transaction can
    be set."""

    def __init__(self, settings: ClusterSettings) -> None:
        super().__init__(Rows())
        self.before_txn: Any = lambda: None
        lineage = Lineage(nonce=7)
        self.store.put(KEYS.settings, encode(settings))
        self.store.put(KEYS.lineage, encode(lineage))
        self.follow(lineage, encode(lineage))

    async def grant(self, ttl_s: int) -> int:
        return 7

    async def transact(self, compare: Any, success: Any, failure: Any) -> Any:
        self.before_txn()
        return await super().transact(compare, success, failure)

    def settings(self) -> ClusterSettings:
        raw = self.store.value(KEYS.settings)
        assert raw is not None
        return decode(raw, ClusterSettings)


class Directory:
    def next_incarnation(self) -> int:
        return 1


def member(name: str, *features: str) -> Member:
    return Member(name, "127.0.0.1:1", 1, name, features=features)


def controller(etcd: Etcd, *knows: str) -> Controller:
    watcher = ViewWatcher(etcd, KEYS, None, "test")  # type: ignore[arg-type]
    return Controller(a_cluster(etcd, watcher), None, 1, 30.0, features=knows)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("members", "expected", "turned_on"),
    [
        ([member("a", "x", "y"), member("b", "x")], [], ("x",)),
        ([member("a", "x"), member("b")], [], ()),
        (
            [member("a", "x")],
            [member("b")],
            (),
        ),  # away for a moment, and would come back to what it does not know
        ([member("a", "z")], [], ()),  # the controller does not know it
    ],
)
async def test_a_feature_comes_into_use_when_every_member_knows_it(
    members: list[Member], expected: list[Member], turned_on: tuple[str, ...]
) -> None:
    etcd = Etcd(SETTINGS)
    view = View(1, SETTINGS, {one.id: one for one in members}, settings_raw=encode(SETTINGS))
    await controller(etcd, "x", "y")._turn_on_features(view, {one.id: one for one in expected})
    assert etcd.settings().features == turned_on


async def test_who_does_not_know_a_feature_neither_starts_nor_joins_nor_goes_on() -> None:
    new = msgspec.structs.replace(SETTINGS, features=("sql",))
    etcd = Etcd(new)
    with pytest.raises(NotAccepted, match="uses sql, which this version does not know"):
        await agree_on_settings(etcd, KEYS, None, {})
    membership = Membership(etcd, KEYS, member("a"), Directory(), "c", 3, lambda: 0.0)
    with pytest.raises(NotAccepted, match="uses sql"):
        await membership.join()
    with pytest.raises(NotAccepted, match="uses sql"):
        refuse_unknown_features(new)


async def test_a_feature_that_comes_into_use_while_a_node_joins_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    etcd = Etcd(SETTINGS)

    def meanwhile() -> None:
        etcd.before_txn = lambda: None
        etcd.store.put(KEYS.settings, encode(msgspec.structs.replace(SETTINGS, features=("sql",))))

    etcd.before_txn = meanwhile
    membership = Membership(etcd, KEYS, member("a"), Directory(), "c", 3, lambda: 0.0)
    async with asyncio.timeout(5):
        with pytest.raises(NotAccepted, match="uses sql"):
            await membership.join()
    assert etcd.store.value(KEYS.member("a")) is None


def test_each_change_of_an_assignment_has_a_version_and_a_nonce_of_its_own() -> None:
    first = Assignment(1, "a", 1, ("a",)).stamped()
    one, other = first.stamped(), first.stamped()
    assert (first.version, one.version, other.version) == (1, 2, 2)
    assert one.nonce != other.nonce
    assert 0 <= one.nonce < 1 << 53


def test_an_epoch_that_would_reach_into_the_bits_kept_free_is_refused() -> None:
    assert Assignment(model.EPOCHS_MAX - 1, "a", 1, ("a",)).epoch == model.EPOCHS_MAX - 1
    with pytest.raises(ValueError, match="not between 0 and 2"):
        Assignment(model.EPOCHS_MAX, "a", 1, ("a",))
    raw = encode(Assignment(1, "a", 1, ("a",))).replace(
        b'"epoch":1', b'"epoch":%d' % model.EPOCHS_MAX
    )
    with pytest.raises(model.Unreadable, match="not between 0 and 2"):
        decode(raw, Assignment)
