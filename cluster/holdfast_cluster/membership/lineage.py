"""The decision whether etcd went back. Pure: a listing and a process's knowledge in, a verdict out.

Terms. A *lineage* is one history of etcd's data (`model.Lineage`). etcd *went back* when it was put
back to an older state, or emptied. A *witness* is a process that knows of an assignment which such
an etcd does not have any more.

Rules:

- Revisions prove nothing. Within seconds a restored etcd passes the revisions that were seen
  before. With `etcdutl snapshot restore --bump-revision` its revision does not go back at all. The
  version of an assignment grows with every change. Its nonce tells apart two changes of one
  version.
- A process compares a listing with its knowledge from *before* it asked for the listing. An owner
  learns of its own swap before its watch does.
- An older version is proof, and so is an equal version with another nonce. The witness halts the
  lineage. Every transaction compares the lineage, so one witness stops every process, also those
  that have no memory.
- A process never halts the etcd of another cluster: it may have been pointed at it by mistake.
- A later generation supersedes all earlier knowledge: an operator has rebuilt etcd (`adopt.py`).
- An etcd that a process does not believe is *foreign*. The process does not act on it, and goes on
  with its earlier knowledge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from holdfast_cluster.placement.model import Lineage, Versioned, View

HALTED = "halted"
ADOPTING = "adopting"


class Seen(NamedTuple):
    """The parts of an assignment that tell it from other assignments of its shard."""

    generation: int
    version: int
    nonce: int


@dataclass(frozen=True, slots=True)
class Known:
    """The knowledge of a process, from etcd and from its disk."""

    cluster: str
    """The cluster's id."""
    lineage: Lineage | None = None
    """The lineage that the process follows; None if it has followed none yet."""
    assignments: Mapping[int, Seen] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on a listing.

    `why`: why the listing is foreign; empty when it is believed. `halt`: whether it proves that
    etcd went back, so that the lineage is to be halted.
    """

    why: str = ""
    halt: bool = False


BELIEVED = Verdict()


class Memory:
    """The knowledge of this process, which grows as the process learns."""

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self._lineage: Lineage | None = None
        self._assignments: dict[int, Seen] = {}

    def known(self) -> Known:
        """Return a copy of the present knowledge."""
        return Known(self._cluster, self._lineage, dict(self._assignments))

    def follow(self, view: View) -> None:
        """Learn from a view that is believed."""
        self._lineage = view.lineage
        for shard, versioned in view.assignments.items():
            self.learn(shard, versioned)

    def learn(self, shard: int, versioned: Versioned) -> bool:
        """Learn that etcd has an assignment. Return whether it is newer than the known one."""
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
    """Return whether to believe the view of a listing.

    `known` is the process's knowledge from before it asked for the listing.
    """
    lineage = view.lineage
    if view.settings is None:
        stopped = lineage is not None and lineage.state
        why = "etcd knows no cluster of this name: it was emptied, or restored from nothing"
        return Verdict(why, halt=not stopped and known.lineage is not None)
    if view.settings.id != known.cluster:
        return Verdict(
            f"etcd describes cluster {view.settings.id}, but this process belongs to cluster"
            f" {known.cluster}"
        )
    if lineage is None:
        return Verdict(
            "etcd has no lineage: it was put back to an older state", halt=known.lineage is not None
        )
    if lineage.state == ADOPTING:
        return Verdict(
            "etcd is being rebuilt by `holdfast adopt-etcd`; if the command was cut short, run it"
            " again"
        )
    if lineage.state:
        return Verdict(f"etcd's lineage is {lineage.state} by {lineage.by}: {lineage.why}")
    if (proof := _went_back(known, lineage, view)) is not None:
        return Verdict(proof, halt=True)
    return BELIEVED


def _went_back(known: Known, lineage: Lineage, view: View) -> str | None:
    """Return the proof that etcd went back; None if there is none."""
    newest = max((seen.generation for seen in known.assignments.values()), default=0)
    if known.lineage is not None:
        newest = max(newest, known.lineage.generation)
        if known.lineage.generation == lineage.generation and known.lineage.nonce != lineage.nonce:
            return (
                "etcd has another lineage than the one that this process followed; both are of"
                f" generation {lineage.generation}"
            )
    if lineage.generation < newest:
        return (
            f"etcd was put back to an older state: it is at generation {lineage.generation}, but"
            f" was at {newest} before"
        )
    for shard, seen in sorted(known.assignments.items()):
        if seen.generation < lineage.generation:
            continue  # etcd was rebuilt since
        versioned = view.assignments.get(shard)
        if versioned is None:
            return (
                f"etcd was put back to an older state: shard {shard} is not assigned, but had an"
                f" assignment of version {seen.version} before"
            )
        now = versioned.assignment
        if now.version < seen.version:
            return (
                f"etcd was put back to an older state: shard {shard} is at version {now.version},"
                f" but was at {seen.version} before"
            )
        if now.version == seen.version and now.nonce != seen.nonce:
            return (
                f"etcd was put back to an older state: version {now.version} of shard {shard} is"
                " not the one that it had before"
            )
    return None


def is_suspicious(before: View, after: View) -> bool:
    """Return whether a watch shows a change that etcd can only show after it went back.

    Only a new listing can tell whether it did.
    """
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
