"""Whether etcd still tells of the course of events that a process knows. Pure: a listing and what
is known in, a verdict out.

Terms. A *lineage* is the course of events that an etcd tells of (`model.Lineage`). etcd *went back*
when it was put back to an older state, or emptied. A *witness* is a process that knows of an
assignment which such an etcd does not have any more.

Rules:

- Revisions prove nothing. A restored etcd overtakes what was seen within seconds, and `etcdutl
  snapshot restore --bump-revision` never goes back. The version of an assignment grows with every
  change, and its nonce tells apart two changes of the same one.
- A listing is held against what was known *before* it was asked for: an owner learns of its own
  swap sooner than its watch does.
- An older version, or an equal one with another nonce, is proof. The witness halts the lineage,
  which every transaction compares: so
  one witness stops every process, those without a memory included.
- Nobody halts the etcd of another cluster: a process may have been pointed at it by mistake.
- A later generation supersedes everything: somebody has rebuilt etcd (`adopt.py`).
- A view that is not believed is *foreign*. Nothing of it is acted on, and what was known before
  goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from holdfast_cluster.placement.model import Lineage, Versioned, View

HALTED = "halted"
ADOPTING = "adopting"


class Seen(NamedTuple):
    """An assignment, as far as telling it from others goes."""

    generation: int
    version: int
    nonce: int


@dataclass(frozen=True, slots=True)
class Known:
    """What a process knows, from etcd and from its disk."""

    cluster: str
    """The cluster's id."""
    lineage: Lineage | None = None
    """The one that is followed; None for a process that has followed none yet."""
    assignments: Mapping[int, Seen] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`why` a listing is foreign, empty when it is believed; `halt`: it proves that etcd
    went back."""

    why: str = ""
    halt: bool = False


BELIEVED = Verdict()


class Memory:
    """What this process knows, kept as it learns. `learn` returns whether that was news."""

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self._lineage: Lineage | None = None
        self._assignments: dict[int, Seen] = {}

    def known(self) -> Known:
        """What is known by now; it does not change any more."""
        return Known(self._cluster, self._lineage, dict(self._assignments))

    def follow(self, view: View) -> None:
        """A view is believed."""
        self._lineage = view.lineage
        for shard, versioned in view.assignments.items():
            self.learn(shard, versioned)

    def learn(self, shard: int, versioned: Versioned) -> bool:
        """An assignment is in etcd. What is known already, or is older, changes nothing."""
        seen = self._assignments.get(shard)
        now = versioned.assignment
        if seen is not None and (seen.generation, seen.version) >= (
            versioned.generation,
            now.version,
        ):
            return False
        self._assignments[shard] = Seen(versioned.generation, now.version, now.nonce)
        return True


def judge(known: Known, view: View) -> Verdict:
    """Whether the view that a listing gives is to be believed. What is `known` was known before the
    listing was asked for."""
    lineage = view.lineage
    if view.settings is None:
        stopped = lineage is not None and lineage.state
        why = "etcd knows no cluster of this name: it was emptied, or restored from nothing"
        return Verdict(why, halt=not stopped and known.lineage is not None)
    if view.settings.id != known.cluster:
        return Verdict(
            f"etcd describes cluster {view.settings.id}, but this process is of cluster"
            f" {known.cluster}"
        )
    if lineage is None:
        return Verdict(
            "etcd has no lineage: it was put back to an older state", halt=known.lineage is not None
        )
    if lineage.state == ADOPTING:
        return Verdict(
            "etcd is being rebuilt by `holdfast adopt-etcd`; if that was cut short, run it again"
        )
    if lineage.state:
        return Verdict(f"etcd's lineage is {lineage.state} by {lineage.by}: {lineage.why}")
    if (proof := _went_back(known, lineage, view)) is not None:
        return Verdict(proof, halt=True)
    return BELIEVED


def _went_back(known: Known, lineage: Lineage, view: View) -> str | None:
    """The proof that etcd went back, if there is one."""
    newest = max((seen.generation for seen in known.assignments.values()), default=0)
    if known.lineage is not None:
        newest = max(newest, known.lineage.generation)
        if known.lineage.generation == lineage.generation and known.lineage.nonce != lineage.nonce:
            return (
                "etcd tells of another lineage than the one that was followed, both of generation"
                f" {lineage.generation}"
            )
    if lineage.generation < newest:
        return (
            f"etcd was put back to an older state: it is at generation {lineage.generation},"
            f" {newest} was seen"
        )
    for shard, seen in sorted(known.assignments.items()):
        if seen.generation < lineage.generation:
            continue  # etcd was rebuilt since
        versioned = view.assignments.get(shard)
        if versioned is None:
            return (
                f"etcd was put back to an older state: shard {shard} is not assigned, version"
                f" {seen.version} of that was seen"
            )
        now = versioned.assignment
        if now.version < seen.version:
            return (
                f"etcd was put back to an older state: shard {shard} is at version {now.version},"
                f" {seen.version} was seen"
            )
        if now.version == seen.version and now.nonce != seen.nonce:
            return (
                f"etcd was put back to an older state: version {now.version} of shard {shard} is"
                " another one than was seen"
            )
    return None


def is_suspicious(before: View, after: View) -> bool:
    """Whether a watch shows what an etcd that never goes back does not: only a new listing can tell
    what it means."""
    if after.settings is None or before.settings is None or after.settings.id != before.settings.id:
        return True
    if after.lineage_raw != before.lineage_raw:
        return True
    for shard, old in before.assignments.items():
        new = after.assignments.get(shard)
        if new is old:
            continue
        if new is None or new.assignment.version < old.assignment.version:
            return True
        if (
            new.assignment.version == old.assignment.version
            and new.assignment.nonce != old.assignment.nonce
        ):
            return True
    return False
