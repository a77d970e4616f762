"""Telling that etcd was put back: what proves it, and who is stopped by it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from holdfast_cluster.etcdpb import etcd_pb2 as pb
from holdfast_cluster.membership import member as membership_module
from holdfast_cluster.membership import view_watcher as watcher_module
from holdfast_cluster.membership.etcd import Changes, EtcdUnavailable, Listing, put, unchanged
from holdfast_cluster.membership.guarded import EtcdForeign
from holdfast_cluster.membership.lineage import (
    ADOPTING,
    BELIEVED,
    HALTED,
    Known,
    Memory,
    Seen,
    is_suspicious,
    judge,
)
from holdfast_cluster.membership.member import agree_on_settings
from holdfast_cluster.membership.view_watcher import ViewWatcher
from holdfast_cluster.placement.model import (
    Assignment,
    ClusterSettings,
    Lineage,
    Member,
    Versioned,
    View,
    decode,
    encode,
)

from tests.unit.fake_etcd import KEYS, FakeEtcd, Rows

SETTINGS = ClusterSettings(shards=2, id="c")
LINEAGE = Lineage(3, 77)
KNOWN = Known("c", LINEAGE, {0: Seen(3, 5, 50), 1: Seen(3, 2, 20)})


def assigned(version: int, nonce: int) -> Versioned:
    now = Assignment(1, "a", 1, ("a", "b"), version=version, nonce=nonce)
    return Versioned(now, 9, encode(now), 3)


def view(
    first: Versioned | None,
    second: Versioned | None,
    lineage: Lineage | None = LINEAGE,
    id: str = "c",
) -> View:
    found = {shard: one for shard, one in enumerate((first, second)) if one is not None}
    raw = b"" if lineage is None else encode(lineage)
    return View(
        99,
        msgspec.structs.replace(SETTINGS, id=id),
        assignments=found,
        lineage=lineage,
        lineage_raw=raw,
    )


GOOD = view(assigned(5, 50), assigned(2, 20))
OLDER = "etcd was put back to an older state"


@pytest.mark.parametrize(
    ("found", "why", "halt"),
    [
        (GOOD, "", False),
        (view(assigned(6, 1), assigned(9, 2)), "", False),
        (
            view(assigned(4, 40), assigned(2, 20)),
            f"{OLDER}: shard 0 is at version 4, but was at 5 before",
            True,
        ),
        (
            view(assigned(5, 51), assigned(2, 20)),
            f"{OLDER}: version 5 of shard 0 is not the one that it had before",
            True,
        ),
        (
            view(assigned(5, 50), None),
            f"{OLDER}: shard 1 is not assigned, but had an assignment of version 2 before",
            True,
        ),
        (
            view(assigned(9, 1), assigned(1, 10)),
            f"{OLDER}: shard 1 is at version 1",
            True,
        ),  # one shard is enough
        (
            view(None, None, Lineage(2, 76)),
            f"{OLDER}: it is at generation 2, but was at 3 before",
            True,
        ),
        (
            view(assigned(5, 50), assigned(2, 20), Lineage(3, 78)),
            "etcd has another lineage",
            True,
        ),
        (view(assigned(1, 10), None, Lineage(4, 1)), "", False),  # etcd was rebuilt
        (view(assigned(5, 50), assigned(2, 20), None), "etcd has no lineage", True),
        (
            view(assigned(5, 50), assigned(2, 20), Lineage(3, 77, HALTED, "n1", "so")),
            "etcd's lineage is halted by n1: so",
            False,
        ),
        (
            view(assigned(5, 50), assigned(2, 20), Lineage(4, 1, ADOPTING)),
            "etcd is being rebuilt",
            False,
        ),
        (
            view(assigned(1, 10), None, id="other"),
            "etcd describes cluster other",
            False,
        ),  # it is not ours to halt
        (View(5), "etcd knows no cluster of this name", True),
        (View(5, lineage=Lineage(3, 77, HALTED)), "etcd knows no cluster of this name", False),
    ],
)
def test_a_listing_is_believed_unless_it_shows_less_than_was_seen(
    found: View, why: str, halt: bool
) -> None:
    verdict = judge(KNOWN, found)
    assert verdict.why.startswith(why)
    assert bool(verdict.why) == bool(why)
    assert verdict.halt is halt


def test_who_knows_nothing_believes_what_it_finds_and_halts_nothing() -> None:
    fresh = Known("c")
    assert judge(fresh, view(assigned(1, 1), None)) == BELIEVED
    assert not judge(fresh, View(5)).halt
    assert judge(fresh, view(assigned(1, 1), None, Lineage(3, 77, HALTED))).why


def test_a_disk_alone_proves_that_etcd_went_back() -> None:
    started = Known("c", None, {0: Seen(3, 5, 50)})
    assert judge(started, view(assigned(4, 40), None)).halt
    assert judge(Known("c", None, {0: Seen(4, 1, 1)}), GOOD).halt


@pytest.mark.parametrize(
    ("after", "suspicious"),
    [
        (GOOD, False),
        (view(assigned(6, 1), assigned(2, 20)), False),
        (view(assigned(4, 1), assigned(2, 20)), True),
        (view(assigned(5, 51), assigned(2, 20)), True),
        (view(assigned(5, 50), None), True),
        (view(assigned(5, 50), assigned(2, 20), Lineage(3, 77, HALTED)), True),
        (View(100), True),
    ],
)
def test_a_watch_that_shows_what_does_not_follow_is_suspicious(
    after: View, suspicious: bool
) -> None:
    assert is_suspicious(GOOD, after) is suspicious


def test_memory_keeps_the_newest_of_each_shard_and_a_copy_of_it_stays_as_it_is() -> None:
    memory = Memory("c")
    assert memory.learn(0, assigned(5, 50))
    before = memory.known()
    assert not memory.learn(0, assigned(5, 51))
    assert not memory.learn(0, assigned(4, 40))
    rebuilt = msgspec.structs.replace(assigned(1, 10), generation=4)
    assert memory.learn(0, rebuilt)
    assert not memory.learn(0, assigned(9, 90)), "an earlier generation counts no more"
    assert before.assignments == {0: Seen(3, 5, 50)}
    assert memory.known().assignments == {0: Seen(4, 1, 10)}


def test_assignments_and_views_are_ordered_across_generations() -> None:
    older = msgspec.structs.replace(assigned(900, 1), generation=0)
    assert 0 < older.order < assigned(1, 1).order < assigned(2, 1).order
    assert (
        msgspec.structs.replace(GOOD, revision=10**9, lineage=Lineage(2)).order
        < GOOD.order
        < 1 << 63
    )
    with pytest.raises(ValueError, match="generation"):
        Lineage(1 << 15)


# -- transactions


async def formed() -> tuple[Rows, FakeEtcd]:
    """A cluster whose etcd holds two assignments, and a process that follows it."""
    rows = Rows()
    etcd = FakeEtcd(rows)
    assert await etcd.form(SETTINGS)
    for shard in (0, 1):
        rows.put(KEYS.shard(shard), encode(Assignment(1, "a", 1, ("a", "b")).stamped()))
    lineage = rows.value(KEYS.lineage)
    assert lineage is not None
    etcd.follow(decode(lineage, Lineage), lineage)
    return rows, etcd


async def test_every_transaction_compares_the_lineage() -> None:
    rows, etcd = await formed()
    assert await etcd.txn([], [put("/x", b"1")])
    # refused for a reason of its own
    assert await etcd.txn([unchanged("/x", b"2")], [put("/x", b"3")]) == 0
    await etcd.verify()
    witness = FakeEtcd(rows)
    raw = rows.value(KEYS.lineage)
    assert raw is not None
    assert await witness.halt(decode(raw, Lineage), raw, "n1", "so")
    for compare in ([], [unchanged("/x", b"1")], [unchanged("/x", b"2")]):
        with pytest.raises(EtcdForeign, match="halted"):
            await etcd.txn(compare, [put("/x", b"4")])
    with pytest.raises(EtcdForeign):
        await etcd.verify()
    assert rows.value("/x") == b"1"


async def test_before_anything_is_believed_no_transaction_is_sent() -> None:
    rows, _ = await formed()
    with pytest.raises(EtcdForeign):
        await FakeEtcd(rows).txn([], [put("/x", b"1")])
    assert rows.value("/x") is None


async def test_a_proposal_compares_what_a_put_back_etcd_cannot_repeat() -> None:
    rows, etcd = await formed()
    before = rows.snapshot()
    mine = Assignment(1, "a", 1, ("a",), version=1).stamped()
    rows.put(KEYS.shard(0), encode(mine))
    planned_at = rows.rows[KEYS.shard(0).encode()].mod_revision
    rows.restore(before)
    # somebody else's, of that same version
    rows.put(KEYS.shard(0), encode(Assignment(2, "b", 1, ("a", "b"), version=1).stamped()))
    assert rows.rows[KEYS.shard(0).encode()].mod_revision == planned_at
    assert not await etcd.txn(
        [unchanged(KEYS.shard(0), encode(mine))], [put(KEYS.shard(0), encode(mine.stamped()))]
    )


async def test_who_has_data_forms_no_cluster_and_nobody_does_in_an_etcd_that_was_emptied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(membership_module, "_RETRY_S", 0.01)
    rows = Rows()
    waiting = asyncio.ensure_future(
        agree_on_settings(FakeEtcd(rows), KEYS, ClusterSettings(), {}, "c")
    )
    await asyncio.sleep(0.05)
    assert not waiting.done()
    assert not rows.rows
    assert await FakeEtcd(rows).halt(LINEAGE, None, "n1", "etcd was emptied")
    fresh = asyncio.ensure_future(agree_on_settings(FakeEtcd(rows), KEYS, ClusterSettings(), {}))
    await asyncio.sleep(0.05)
    assert not fresh.done()
    assert list(rows.rows) == [KEYS.lineage.encode()]
    assert not await FakeEtcd(rows).form(SETTINGS)  # it was about to when etcd was halted
    rows.put(KEYS.settings, encode(SETTINGS))
    assert (await waiting).id == (await fresh).id == "c"


async def test_a_cluster_of_a_version_without_a_lineage_gets_one() -> None:
    rows = Rows()
    rows.put(KEYS.settings, encode(SETTINGS))
    await agree_on_settings(FakeEtcd(rows), KEYS, None, {})
    assert rows.value(KEYS.lineage) is None  # a gateway writes nothing
    await agree_on_settings(FakeEtcd(rows), KEYS, ClusterSettings(), {})
    first = rows.value(KEYS.lineage)
    assert first is not None
    await agree_on_settings(FakeEtcd(rows), KEYS, ClusterSettings(), {})
    assert rows.value(KEYS.lineage) == first


# -- following


class Watched(FakeEtcd):
    """Its watch lists, and then waits for what the test shows: changes, or that the
    watch breaks."""

    def __init__(self, rows: Rows) -> None:
        super().__init__(rows)
        self.shown: asyncio.Queue[Changes | None] = asyncio.Queue()
        self.listings = 0

    async def watch(self, prefix: str, state: Any) -> AsyncGenerator[Listing | Changes, None]:
        self.listings += 1
        yield await self.list_prefix(prefix)
        while (changes := await self.shown.get()) is not None:
            yield changes
        raise EtcdUnavailable("broke")

    def show(self, key: str) -> None:
        """The watch shows the row as it is."""
        row = self.store.rows[key.encode()]
        self.shown.put_nowait(Changes([pb.Event(type=pb.Event.PUT, kv=row)], row.mod_revision))


class Follower:
    """A process that follows etcd."""

    def __init__(self, rows: Rows, memory: Memory | None = None) -> None:
        self.etcd = Watched(rows)
        self.memory = memory or Memory("c")
        self.watcher = ViewWatcher(self.etcd, KEYS, self.memory, "n1")
        self.views: list[View] = []
        self.watcher.listeners.append(self.views.append)

    async def __aenter__(self) -> Follower:
        self._task = asyncio.create_task(self.watcher.run())
        await self.settle()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def settle(self) -> None:
        await asyncio.sleep(0.05)

    async def breaks(self) -> None:
        self.etcd.shown.put_nowait(None)
        await self.settle()

    def versions(self) -> list[int]:
        return [now.assignment.version for _, now in sorted(self.watcher.view.assignments.items())]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher_module, "FOREIGN_S", 0.02)
    monkeypatch.setattr(watcher_module, "_HALTING_S", 0.005)
    monkeypatch.setattr(watcher_module, "_BACKOFF_S", (0.005, 0.01))


def change(rows: Rows, shard: int) -> Assignment:
    raw = rows.value(KEYS.shard(shard))
    assert raw is not None
    now = decode(raw, Assignment).stamped()
    rows.put(KEYS.shard(shard), encode(now))
    return now


def state(rows: Rows) -> str:
    return decode(rows.value(KEYS.lineage) or b"{}", Lineage).state


@pytest.mark.parametrize("revision", [0, 1_000], ids=["lower revisions", "higher revisions"])
async def test_an_etcd_that_went_back_is_halted_and_followed_again_when_its_good_data_is_back(
    revision: int,
) -> None:
    rows, _ = await formed()
    old = rows.snapshot()
    async with Follower(rows) as one, Follower(rows) as other:
        change(rows, 0)
        for each in (one, other):
            each.etcd.show(KEYS.shard(0))
            await each.settle()
        assert one.versions() == [2, 1]
        good = rows.snapshot()
        rows.restore(old, revision)
        await one.breaks()
        assert state(rows) == HALTED
        assert "shard 0 is at version 1, but was at 2 before" in one.watcher.foreign
        with pytest.raises(EtcdForeign):  # the other one has not noticed anything yet
            await other.etcd.txn([], [put("/x", b"1")])
        async with Follower(rows) as fresh:
            assert "halted by n1" in fresh.watcher.foreign
            assert not fresh.views
        seen = len(one.views)
        assert one.versions() == [2, 1]
        rows.restore(good)
        await one.settle()
        assert one.watcher.foreign == ""
        assert len(one.views) > seen
        assert await one.etcd.txn([], [put("/x", b"1")])
        change(rows, 1)
        await one.breaks()
        assert one.versions() == [2, 2]


async def test_an_emptied_etcd_is_halted_and_listed_until_its_data_is_back() -> None:
    rows, _ = await formed()
    async with Follower(rows) as one:
        good = rows.snapshot()
        rows.restore(Rows())
        await one.breaks()
        assert state(rows) == HALTED
        listings = one.etcd.listings
        await one.settle()
        assert one.etcd.listings > listings
        rows.restore(good)
        await one.settle()
        assert one.watcher.foreign == ""
        assert state(rows) == ""


async def test_what_an_owner_wrote_is_known_before_its_watch_shows_it() -> None:
    rows, _ = await formed()
    async with Follower(rows) as one:
        old = rows.snapshot()
        now = change(rows, 0)
        one.memory.learn(
            0, Versioned(now, rows.revision, encode(now), 0)
        )  # the answer to its proposal
        change(rows, 1)
        one.etcd.show(KEYS.shard(1))
        await one.settle()
        assert one.watcher.foreign == ""  # its watch is late, which proves nothing
        rows.restore(old)
        await one.breaks()
        assert state(rows) == HALTED


async def test_a_watch_that_shows_an_older_version_is_listed_anew_and_halted() -> None:
    rows, _ = await formed()
    async with Follower(rows) as one:
        change(rows, 0)
        one.etcd.show(KEYS.shard(0))
        await one.settle()
        rows.put(KEYS.shard(0), encode(Assignment(1, "a", 1, ("a", "b"), version=1)))
        one.etcd.show(KEYS.shard(0))
        await one.settle()
        assert state(rows) == HALTED
        assert one.versions() == [2, 1]


async def test_a_restarted_process_that_kept_its_memory_is_a_witness() -> None:
    rows, _ = await formed()
    old = rows.snapshot()
    change(rows, 0)
    async with Follower(rows) as one:
        memory = one.memory
    rows.restore(old)
    async with Follower(rows, memory) as again:
        assert state(rows) == HALTED
        assert not again.views


async def test_the_etcd_of_another_cluster_is_left_alone() -> None:
    rows, _ = await formed()
    memory = Memory("another")
    memory.learn(0, assigned(99, 1))
    async with Follower(rows, memory) as lost:
        assert (
            "describes cluster c, but this process belongs to cluster another"
            in lost.watcher.foreign
        )
    assert state(rows) == ""


async def test_what_is_learnt_while_a_listing_is_on_its_way_proves_nothing() -> None:
    rows, _ = await formed()

    class Slow(Watched):
        async def watch(self, prefix: str, state: Any) -> AsyncGenerator[Listing | Changes, None]:
            listing = await self.list_prefix(prefix)
            # once, before its first listing is there, this owner's proposal is answered
            if not one.memory.known().lineage:
                now = change(rows, 0)
                one.memory.learn(0, Versioned(now, rows.revision, encode(now), 0))
            yield listing
            await asyncio.Event().wait()

    one = Follower(rows)
    one.etcd = Slow(rows)
    one.watcher = ViewWatcher(one.etcd, KEYS, one.memory, "n1")
    async with one:
        assert one.watcher.foreign == ""
        assert state(rows) == ""


# -- membership


class Leased(FakeEtcd):
    """Leases that the test ends."""

    alive = True

    async def grant(self, ttl_s: int) -> int:
        self.alive = True
        return 1

    async def renew(self, lease: int, timeout_s: float) -> int:
        return 60 if self.alive else 0


class Counts:
    """A data directory's start counter."""

    incarnation = 0

    def next_incarnation(self) -> int:
        self.incarnation += 1
        return self.incarnation


class Hears(membership_module.MembershipListener):
    """Notes when a membership is lost."""

    def __init__(self, lost: list[int]) -> None:
        self._lost = lost

    def lost(self) -> None:
        self._lost.append(1)


@pytest.mark.parametrize("has_lease", [True, False], ids=["with its lease", "without it"])
async def test_a_lease_that_ends_in_an_etcd_that_is_not_believed_ends_no_membership(
    monkeypatch: pytest.MonkeyPatch, has_lease: bool
) -> None:
    monkeypatch.setattr(membership_module, "_RETRY_S", 0.01)
    rows, _ = await formed()
    raw = rows.value(KEYS.lineage) or b""
    etcd, starts = Leased(rows), Counts()
    lost: list[Any] = []
    etcd.follow(decode(raw, Lineage), raw)
    membership = membership_module.Membership(
        etcd, KEYS, Member("n", "n:1", 0, "h"), starts, "c", 60, lambda: 0.0, Hears(lost)
    )
    membership._lease.ttl_s = 0.06  # type: ignore[assignment]
    await membership.join()
    running = asyncio.create_task(membership.run())
    good = rows.snapshot()
    rows.restore(Rows())
    etcd.alive = False
    await asyncio.sleep(0.2)
    assert membership.member is not None
    assert (starts.incarnation, lost) == (1, [])
    etcd.alive = has_lease
    rows.restore(good)
    async with asyncio.timeout(5):
        while not has_lease and starts.incarnation == 1:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
    assert membership.member is not None
    assert (starts.incarnation, lost) == ((1, []) if has_lease else (2, [1]))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_no_start_is_counted_while_nobody_can_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership_module, "_RETRY_S", 0.01)
    rows, _ = await formed()
    raw = rows.value(KEYS.lineage) or b""
    etcd, starts = Leased(rows), Counts()
    etcd.follow(decode(raw, Lineage), raw)
    good = rows.snapshot()
    assert await etcd.halt(decode(raw, Lineage), raw, "n1", "so")
    membership = membership_module.Membership(
        etcd, KEYS, Member("n", "n:1", 0, "h"), starts, "c", 60, lambda: 0.0
    )
    joining = asyncio.create_task(membership.join())
    await asyncio.sleep(0.1)
    assert starts.incarnation == 0
    rows.restore(good)
    await asyncio.wait_for(joining, 5)
    assert starts.incarnation == 1


def test_no_part_of_the_program_can_write_past_the_lineage() -> None:
    """What writes by other means than `GuardedEtcd.txn` is named here, with the lineage that it
    compares."""
    root = Path(__file__).parents[2]
    sources = [
        file for folder in ("cluster", "node", "gateway") for file in (root / folder).rglob("*.py")
    ]
    found = {
        (file.name, call)
        for file in sources
        for call in re.findall(
            r"(?<!Guarded)\bEtcd\(|\.transact\(|\bsuper\(\)\.txn\(|etcd\.begin\(", file.read_text()
        )
    }
    assert found == {
        ("etcd.py", ".transact("),
        ("guarded.py", ".transact("),
        ("guarded.py", "super().txn("),  # `begin`, for those below and formation
        ("member.py", "etcd.begin("),  # the first lineage of a cluster that has none
        ("rebuild.py", "etcd.begin("),
    }
