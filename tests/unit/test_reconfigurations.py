"""Assignments that owners propose to etcd: what they compare, and what becomes of those that do not
come about."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from holdfast_cluster.membership.etcd import EtcdUnknown
from holdfast_cluster.placement.model import (
    Assignment,
    ClusterSettings,
    Lineage,
    Versioned,
    decode,
    encode,
)
from holdfast_node.replication.reconfigurations import EtcdReconfigurations

from tests.unit.fake_etcd import KEYS, FakeEtcd, Rows

NOW = Assignment(1, "a", 1, ("a", "b"), version=3, nonce=7)
TO = Assignment(1, "a", 1, ("a",), version=3, nonce=7)


class Asking:
    """An owner of two shards."""

    def __init__(self) -> None:
        self.rows = Rows()
        self.etcd = FakeEtcd(self.rows)
        self.answers: dict[int, Versioned | None] = {}
        self.reconfigurations = EtcdReconfigurations(self.etcd, KEYS, self._answered)

    def _answered(self, shard: int, written: Versioned | None, to: Assignment) -> None:
        assert to.in_sync == TO.in_sync
        self.answers[shard] = written

    async def begin(self) -> None:
        assert await self.etcd.form(ClusterSettings(id="c"))
        raw = self.rows.value(KEYS.lineage) or b""
        self.etcd.follow(decode(raw, Lineage), raw)
        for shard in (0, 1):
            self.rows.put(KEYS.shard(shard), encode(NOW))

    async def ask(self, *shards: int, old: bytes = encode(NOW)) -> None:
        for shard in shards:
            self.reconfigurations.propose(shard, old, TO)
        task = asyncio.create_task(self.reconfigurations.run())
        async with asyncio.timeout(5):
            while self.answers.keys() < set(shards):
                await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def stored(self, shard: int) -> Assignment:
        return decode(self.rows.value(KEYS.shard(shard)) or b"", Assignment)


@pytest.fixture
async def asking() -> Asking:
    asking = Asking()
    await asking.begin()
    return asking


async def test_what_was_written_is_the_next_version_as_it_is_in_etcd(asking: Asking) -> None:
    await asking.ask(0, 1)
    for shard in (0, 1):
        written = asking.answers[shard]
        assert written is not None
        assert written.assignment == asking.stored(shard)
        assert written.raw == asking.rows.value(KEYS.shard(shard))
        assert (written.assignment.version, written.assignment.in_sync) == (4, ("a",))
        assert written.assignment.nonce != NOW.nonce


async def test_one_that_is_out_of_date_does_not_keep_the_others_back(asking: Asking) -> None:
    asking.rows.put(KEYS.shard(0), encode(NOW.stamped()))
    await asking.ask(0, 1)
    # unknown: an etcd that is put back later may have what was to be replaced
    assert asking.answers[0] is None
    assert asking.answers[1] is not None
    assert asking.stored(0).in_sync == NOW.in_sync


async def test_an_etcd_that_is_halted_takes_no_proposal_and_the_owner_may_ask_again(
    asking: Asking,
) -> None:
    raw = asking.rows.value(KEYS.lineage) or b""
    good = asking.rows.snapshot()
    assert await FakeEtcd(asking.rows).halt(decode(raw, Lineage), raw, "n1", "so")
    await asking.ask(0, 1)
    assert asking.answers == {0: None, 1: None}
    assert asking.stored(0) == NOW
    asking.rows.restore(good)
    asking.answers.clear()
    await asking.ask(0, 1)
    assert all(asking.answers.values())


async def test_a_lost_reply_is_unknown(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    async def lost(*_: Any) -> int:
        raise EtcdUnknown("lost")

    monkeypatch.setattr(asking.etcd, "txn", lost)
    await asking.ask(0)
    assert asking.answers == {0: None}
