"""What etcd is to hold again after it was lost or put back, from what nodes know. Pure: reports in,
an `Adoption` out.

Rules:

- Every node ever known has to report, or has to be left out by name: the newest assignment of a
  shard may be known to one node alone.
  Nobody has acted on one that no node has seen.
- For each shard the newest assignment counts, by (generation, version): its `in_sync` has
  everything that was acknowledged. A swap whose outcome its owner never heard of needs nothing, for
  an owner demands both sets until it knows.
- Two of one version were made on both sides of an etcd that went back. Whoever is in both `in_sync`
  sets has what either side
  acknowledged; with nobody in both a person has to leave out one side.
- The epoch is above every one that any node has heard of. A node that was left out may have heard
  of a higher one, so then it leaps.
- The lineage's generation grows: what earlier ones said counts no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from holdfast_cluster.peerpb import peer_pb2
from holdfast_cluster.placement.model import (
    Assignment,
    ClusterSettings,
    Drain,
    Member,
    Pause,
    decode,
)

EPOCH_LEAP = 1 << 16
"""How many changes of an owner nodes that are left out may know of, beyond what the others know."""


class NotAdoptable(Exception):
    """etcd cannot be rebuilt from these reports; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Reported:
    """What a node knows of a shard. `epoch`: the highest that its copy has heard of."""

    generation: int
    assignment: Assignment | None
    epoch: int


@dataclass(frozen=True, slots=True)
class Report:
    """What a node knows of the cluster."""

    node: str
    incarnation: int
    cluster: str
    generation: int = 0
    revision: int = 0
    settings: ClusterSettings | None = None
    members: Mapping[str, Member] = field(default_factory=dict)
    drains: Mapping[str, Drain] = field(default_factory=dict)
    pauses: Mapping[tuple[str, str], Pause] = field(default_factory=dict)
    shards: Mapping[int, Reported] = field(default_factory=dict)

    @classmethod
    def of(cls, said: peer_pb2.KnownResponse) -> Report:
        """Raises msgspec.ValidationError when a node says what this version does not understand."""
        members = [decode(raw, Member) for raw in said.members]
        return cls(
            said.node,
            said.incarnation,
            said.cluster,
            said.generation,
            said.revision,
            decode(said.settings, ClusterSettings) if said.settings else None,
            {member.id: member for member in members},
            {node: decode(raw, Drain) for node, raw in said.drains.items()},
            {(one.kind, one.key): decode(one.pause, Pause) for one in said.pauses},
            {
                one.shard: Reported(
                    one.generation,
                    decode(one.assignment, Assignment) if one.assignment else None,
                    one.epoch,
                )
                for one in said.shards
            },
        )


@dataclass(frozen=True, slots=True)
class Adoption:
    """What etcd is to hold. `notes`: what whoever confirms it should know."""

    generation: int
    settings: ClusterSettings
    assignments: Mapping[int, Assignment]
    incarnations: Mapping[str, int]
    drains: Mapping[str, Drain]
    pauses: Mapping[tuple[str, str], Pause]
    notes: tuple[str, ...]


def known_nodes(reports: Iterable[Report]) -> dict[str, int]:
    """Every node that a report names, with the highest incarnation of it that is known."""
    nodes: dict[str, int] = {}

    def know(node: str, incarnation: int = 0) -> None:
        nodes[node] = max(nodes.get(node, 0), incarnation)

    for report in reports:
        know(report.node, report.incarnation)
        for member in report.members.values():
            know(member.id, member.incarnation)
        for one in report.shards.values():
            if one.assignment is not None:
                know(one.assignment.owner, one.assignment.incarnation)
                for node in (*one.assignment.in_sync, *one.assignment.joining):
                    know(node)
    return nodes


def adopt(
    reports: list[Report],
    without: Iterable[str],
    generation: int,
    others: Mapping[str, int] | None = None,
) -> Adoption:
    """What etcd is to hold. `generation`: of etcd now. `others`: incarnations that etcd has. Raises
    NotAdoptable."""
    left_out = set(without)
    reports = [report for report in reports if report.node not in left_out]
    clusters = {report.cluster for report in reports}
    if len(clusters) != 1:
        raise NotAdoptable(
            f"nodes report clusters {', '.join(sorted(clusters))}"
            if clusters
            else "no node has reported"
        )
    nodes = known_nodes(reports)
    for node, incarnation in (others or {}).items():
        nodes[node] = max(nodes.get(node, 0), incarnation)
    if silent := sorted(set(nodes) - {report.node for report in reports} - left_out):
        raise NotAdoptable(
            f"no report of {', '.join(silent)}: one may know of what no other node knows. Start it,"
            " and name its address with --node; or, if it is gone for good, leave it out with"
            " --without NODE"
        )
    newest = max(
        (r for r in reports if r.settings is not None),
        key=lambda r: (r.generation, r.revision),
        default=None,
    )
    if newest is None or newest.settings is None:
        raise NotAdoptable("no node knows the cluster's settings")
    notes: list[str] = []
    assignments = {}
    for shard in range(newest.settings.shards):
        reported = [report.shards[shard] for report in reports if shard in report.shards]
        chosen = _newest(shard, reported, nodes, notes)
        if chosen is None:
            continue
        epoch = 1 + max(
            max(one.epoch, one.assignment.epoch if one.assignment is not None else 0)
            for one in reported
        )
        if left_out:
            epoch += EPOCH_LEAP
        if left_out.issuperset(chosen.in_sync):
            notes.append(
                f"shard {shard}: its data is on {', '.join(chosen.in_sync)} only, which is left"
                " out; calls to it wait"
            )
        assignments[shard] = msgspec.structs.replace(
            chosen, epoch=epoch, released=False, handover="", leaving=()
        ).stamped()
    generations = [generation, *(report.generation for report in reports)]
    generations += [one.generation for report in reports for one in report.shards.values()]
    return Adoption(
        max(generations) + 1,
        newest.settings,
        assignments,
        nodes,
        dict(newest.drains),
        dict(newest.pauses),
        tuple(notes),
    )


def _newest(
    shard: int, reported: list[Reported], nodes: Mapping[str, int], notes: list[str]
) -> Assignment | None:
    """The assignment to go on from; None for a shard that was never assigned."""
    candidates = [
        (one.generation, one.assignment) for one in reported if one.assignment is not None
    ]
    if not candidates:
        if any(one.epoch for one in reported):
            raise NotAdoptable(
                f"there are copies of shard {shard}, but no node knows an assignment of it"
            )
        return None
    highest = max((generation, assignment.version) for generation, assignment in candidates)
    newest = {
        one.nonce: one for generation, one in candidates if (generation, one.version) == highest
    }
    first = newest.pop(min(newest))
    if not newest:
        return first
    both = tuple(
        node for node in first.in_sync if all(node in one.in_sync for one in newest.values())
    )
    if not both:
        sides = "; ".join(sorted(", ".join(one.in_sync) for one in (first, *newest.values())))
        raise NotAdoptable(
            f"shard {shard} has two assignments of version {first.version}, and no node is in sync"
            f" in both ({sides}): both sides may have acknowledged writes. Leave out the nodes of"
            " one side with --without"
        )
    notes.append(
        f"shard {shard}: two assignments of version {first.version} are known; {', '.join(both)} is"
        " in sync in both"
    )
    owner = first.owner if first.owner in both else both[0]
    return msgspec.structs.replace(
        first, owner=owner, incarnation=nodes[owner], in_sync=both, joining=()
    )
