"""Small worlds in which etcd goes back, with processes that remember and others that do not, and
with rules broken on purpose.

A process that knows more than etcd has is a witness. Each step is checked:

- After a witness has listed, no process's transaction succeeds until the good data is back or etcd
  was rebuilt.
- A process with a memory never acts on an older assignment than before. One version is one
  assignment.
- A swap replaces the very assignment that it was planned from.
- A rebuilt etcd has, for each shard, the newest assignment that a process acted on.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from holdfast_cluster.etcdpb import etcd_pb2 as pb
from holdfast_cluster.membership.etcd import Etcd, Listing, unchanged
from holdfast_cluster.membership.etcd import put as put_op
from holdfast_cluster.membership.guarded import EtcdForeign
from holdfast_cluster.membership.lineage import Known, Memory, Verdict, judge
from holdfast_cluster.membership.rebuild import look, rebuild
from holdfast_cluster.membership.view_watcher import apply
from holdfast_cluster.placement import adopt as adopt_module
from holdfast_cluster.placement.adopt import Report, Reported, adopt
from holdfast_cluster.placement.model import Assignment, ClusterSettings, Versioned, View, encode

from tests.unit.fake_etcd import KEYS, FakeEtcd, Rows

NAMES = ("a", "b", "c")
SHARDS = 3
SETTINGS = ClusterSettings(shards=SHARDS, id="c")
STEPS = 120
WORLDS = 300

Compare = Callable[[str, Versioned], pb.Compare]


class Broken(AssertionError):
    """A rule does not hold."""


def by_value(key: str, planned_from: Versioned) -> pb.Compare:
    return unchanged(key, planned_from.raw)


class Process:
    """A node (its memory outlives it) or a process without a memory."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.memory = Memory("c")
        self.raws: dict[int, Versioned] = {}
        self.start()

    def start(self) -> None:
        self.etcd = self.world.client(self.world.rows)
        self.view = View()
        if self.name not in NAMES:
            self.memory = Memory("c")

    async def look(self) -> None:
        """List etcd, as after a broken watch."""
        known = self.memory.known()
        view = apply(View(), await self.etcd.list_prefix(KEYS.prefix), KEYS)
        verdict = self.world.judge(known, view)
        if verdict.why:
            if verdict.halt:
                assert known.lineage is not None
                await self.etcd.halt(
                    view.lineage or known.lineage, view.lineage_raw or None, self.name, verdict.why
                )
            if self.name in NAMES and self.world.rolled_back and judge(known, view).why:
                self.world.witnessed = True
                self.world.happened["witness"] += 1
            return
        assert view.lineage is not None
        for shard, versioned in view.assignments.items():
            self.acts_on(shard, versioned)
        self.etcd.follow(view.lineage, view.lineage_raw)
        self.memory.follow(view)
        self.view = view

    def acts_on(self, shard: int, versioned: Versioned) -> None:
        """Check it for processes that remember. The others cannot know."""
        before = self.raws.get(shard)
        if self.name in NAMES and before is not None:
            if versioned.order < before.order:
                raise Broken(f"{self.name} goes back on shard {shard}: {versioned} after {before}")
            if versioned.order == before.order and versioned.raw != before.raw:
                raise Broken(
                    f"{self.name} sees two assignments of one version: {versioned} and {before}"
                )
        if before is None or versioned.order > before.order:
            self.raws[shard] = versioned

    async def swap(self, shard: int, chance: random.Random) -> None:
        planned_from = self.view.assignments.get(shard)
        if planned_from is None:
            return
        now = planned_from.assignment
        in_sync = tuple(sorted(chance.sample(NAMES, chance.randint(1, 3))))
        to = msgspec.structs.replace(
            now, epoch=now.epoch + 1, owner=in_sync[0], in_sync=in_sync
        ).stamped()
        key = KEYS.shard(shard)
        there = self.world.rows.value(key)
        try:
            revision = await self.etcd.txn(
                [self.world.compare(key, planned_from)], [put_op(key, encode(to))]
            )
        except EtcdForeign:
            return
        if not revision:
            return
        if there != planned_from.raw:
            raise Broken(
                f"{self.name} replaced {there!r} by what was planned from {planned_from.raw!r}"
            )
        if self.world.witnessed:
            raise Broken(f"{self.name} swapped in an etcd that a witness had found to be old")
        self.world.happened["swap in an old etcd" if self.world.rolled_back else "swap"] += 1
        written = Versioned(to, revision, encode(to), self.etcd.generation)
        self.acts_on(shard, written)
        self.memory.learn(shard, written)
        self.view = msgspec.structs.replace(
            self.view, assignments={**self.view.assignments, shard: written}
        )

    def report(self) -> Report:
        known = self.memory.known()
        shards = {
            shard: Reported(one.generation, one.assignment, 0) for shard, one in self.raws.items()
        }
        return Report(
            self.name,
            1,
            "c",
            known.lineage.generation if known.lineage else 0,
            0,
            SETTINGS,
            shards=shards,
        )


class World:
    """One seed is one story."""

    def __init__(
        self,
        seed: int,
        client: type[FakeEtcd] = FakeEtcd,
        judge: Callable[[Known, View], Verdict] = judge,
        compare: Compare = by_value,
    ) -> None:
        self.chance = random.Random(seed)
        self.client = client
        self.judge = judge
        self.compare = compare
        self.rows = Rows()
        self.snapshots: list[Rows] = []
        self.good: Rows | None = None
        self.witnessed = False
        self.happened: Counter[str] = Counter()

    @property
    def rolled_back(self) -> bool:
        return self.good is not None

    async def run(self) -> None:
        assert await FakeEtcd(self.rows).form(SETTINGS)
        for shard in range(SHARDS):
            self.rows.put(KEYS.shard(shard), encode(Assignment(1, "a", 1, NAMES).stamped()))
        self.processes = [Process(self, name) for name in (*NAMES, "fresh", "gateway")]
        for process in self.processes:
            await process.look()
        for _ in range(STEPS):
            await self.step()

    async def step(self) -> None:
        chance = self.chance
        process = chance.choice(self.processes)
        match chance.choices(
            ("swap", "look", "restart", "snapshot", "go back", "empty", "put back", "adopt"),
            (40, 25, 5, 5, 4, 1, 4, 4),
        )[0]:
            case "swap":
                await process.swap(chance.randrange(SHARDS), chance)
            case "look":
                await process.look()
            case "restart":
                process.start()
            case "snapshot" if not self.rolled_back:
                self.snapshots.append(self.rows.snapshot())
            case "go back" if self.snapshots and not self.rolled_back:
                self.good = self.rows.snapshot()
                self.rows.restore(
                    chance.choice(self.snapshots), chance.choice((0, self.rows.revision + 100))
                )
            case "empty" if not self.rolled_back:
                self.good = self.rows.snapshot()
                self.rows.restore(Rows())
            case "put back" if self.good is not None and self.is_untouched():
                self.happened["put back"] += 1
                self.rows.restore(self.good)
                self.good, self.witnessed = None, False
                for each in self.processes:  # everybody goes on by itself
                    await each.look()
                    if not each.view.assignments:
                        raise Broken(f"{each.name} does not follow the good data")
            case "adopt" if self.rolled_back:
                await self.adopt()

    def is_untouched(self) -> bool:
        """Whether no process acted on the old etcd before it was halted. Then no process knows more
        than its good data does."""
        assert self.good is not None
        good = apply(View(), _listing(self.good), KEYS)
        return all(
            shard in good.assignments
            and one.order <= good.assignments[shard].order
            and (
                one.order < good.assignments[shard].order or one.raw == good.assignments[shard].raw
            )
            for process in self.processes
            for shard, one in process.raws.items()
        )

    async def adopt(self) -> None:
        for each in self.processes:
            await each.look()
        etcd = FakeEtcd(self.rows)
        try:
            found = await look(etcd, KEYS)
            reports = [each.report() for each in self.processes if each.name in NAMES]
            adoption = adopt(
                reports, [], found.view.lineage.generation if found.view.lineage else 0
            )
        except adopt_module.NotAdoptable:
            self.happened["nothing to rebuild"] += (
                1  # nothing had changed, or both sides have acted and a person has to choose
            )
            return
        newest: dict[int, Versioned] = {}
        epochs: dict[int, int] = {}
        for each in self.processes:
            for shard, one in each.raws.items():
                if each.name in NAMES:
                    epochs[shard] = max(epochs.get(shard, 0), one.assignment.epoch)
                    if shard not in newest or one.order > newest[shard].order:
                        newest[shard] = one
        for shard, to in adoption.assignments.items():
            if to.epoch <= epochs[shard]:
                raise Broken(f"epoch {to.epoch} of shard {shard} is not new")
            if not set(to.in_sync) <= set(newest[shard].assignment.in_sync) and not adoption.notes:
                raise Broken(f"shard {shard} is on {to.in_sync}, but {newest[shard]} was acted on")
        await rebuild(etcd, KEYS, found, adoption)
        self.happened["both sides acted" if adoption.notes else "rebuilt"] += 1
        self.good, self.witnessed, self.snapshots = None, False, []
        for each in self.processes:
            await each.look()
            if each.view.lineage is None or each.view.lineage.generation != adoption.generation:
                raise Broken(f"{each.name} does not follow the rebuilt etcd")


def _listing(rows: Rows) -> Listing:
    return Listing([row for _, row in sorted(rows.rows.items())], rows.revision)


async def run_worlds(**broken: Any) -> Counter[str]:
    """Run them all; how often what happened in them."""
    happened: Counter[str] = Counter()
    for seed in range(WORLDS):
        world = World(seed, **broken)
        await world.run()
        happened += world.happened
    return happened


async def test_whatever_becomes_of_etcd_nobody_goes_back() -> None:
    happened = await run_worlds()
    for what in (
        "swap",
        "swap in an old etcd",
        "witness",
        "put back",
        "rebuilt",
        "both sides acted",
    ):
        assert happened[what] >= 20, happened


# -- rules broken on purpose


def halts_nothing(known: Known, view: View) -> Verdict:
    """A witness that does not halt."""
    return Verdict(judge(known, view).why)


def trusts_versions_alone(known: Known, view: View) -> Verdict:
    """Does not look at nonces."""
    forgetful = {
        shard: seen._replace(nonce=view.assignments[shard].assignment.nonce)
        if shard in view.assignments
        else seen
        for shard, seen in known.assignments.items()
    }
    return judge(Known(known.cluster, known.lineage, forgetful), view)


def trusts_the_lineage_alone(known: Known, view: View) -> Verdict:
    """Compares no assignments, as if the lineage told of every restore."""
    return judge(Known(known.cluster, known.lineage), view)


def by_revision(key: str, planned_from: Versioned) -> pb.Compare:
    """A swap that compares the revision only."""
    return pb.Compare(
        result=pb.Compare.EQUAL,
        target=pb.Compare.MOD,
        key=key.encode(),
        mod_revision=planned_from.revision,
    )


class ForgetsTheLineage(FakeEtcd):
    """Its transactions do not compare it."""

    async def txn(self, compare: Any, success: Any) -> int:
        return await Etcd.txn(self, compare, success)


@pytest.mark.parametrize(
    "broken",
    [
        {"judge": halts_nothing},
        {"judge": trusts_versions_alone},
        {"judge": trusts_the_lineage_alone},
        {"compare": by_revision},
        {"client": ForgetsTheLineage},
    ],
    ids=lambda broken: next(iter(broken.values())).__name__,
)
async def test_a_broken_rule_is_caught(broken: dict[str, Any]) -> None:
    with pytest.raises(Broken):
        await run_worlds(**broken)


async def test_adopting_the_lowest_version_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def lowest_version(
        shard: int, reported: list[Reported], nodes: Any, notes: Any
    ) -> Assignment | None:
        known = [
            (one.generation, one.assignment.version, one.assignment)
            for one in reported
            if one.assignment is not None
        ]
        return min(known, key=lambda one: one[:2])[2] if known else None

    monkeypatch.setattr(adopt_module, "_newest", lowest_version)
    with pytest.raises(Broken, match="was acted on"):
        await run_worlds()
