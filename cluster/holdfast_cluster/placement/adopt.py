"""The new content of etcd after it was lost or put back. Pure: nodes' reports in, an `Adoption`
out.

Rules:

- Every node ever known has to report, or the operator has to leave it out by name. The newest
  assignment of a shard may be known to one node alone. An assignment that no node has seen does not
  matter: no process has acted on it.
- For each shard the newest assignment counts, by (generation, version). The members of its
  `in_sync` have everything that was acknowledged. A swap whose outcome the owner never learned
  needs no care: until it knows, an owner demands acknowledgements from the old and the new
  `in_sync`.
- Two different assignments of one version come from the two sides of an etcd that went back. A node
  in both `in_sync` sets has everything that either side acknowledged. If no node is in both, the
  operator has to leave out one side.
- The new epoch is above every epoch that a node has heard of. A node that was left out may have
  heard of a higher one. So if a node was left out, the new epoch leaps by EPOCH_LEAP.
- The lineage's generation grows. Data of earlier generations does not count any more.
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
"""How many changes of a shard's owner the left-out nodes may know of that no other node knows."""


class NotAdoptable(Exception):
    """etcd cannot be rebuilt from these reports; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Reported:
    """A node's knowledge of a shard. `epoch`: the highest epoch that its copy has heard of."""

    generation: int
    assignment: Assignment | None
    epoch: int


@dataclass(frozen=True, slots=True)
class Report:
    """A node's knowledge of the cluster."""

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
        """Read a node's answer. Raise Unreadable when this version cannot understand it."""
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
    """The new content of etcd. `notes`: warnings for the operator who has to confirm it."""

    generation: int
    settings: ClusterSettings
    assignments: Mapping[int, Assignment]
    incarnations: Mapping[str, int]
    drains: Mapping[str, Drain]
    pauses: Mapping[tuple[str, str], Pause]
    notes: tuple[str, ...]


def known_nodes(reports: Iterable[Report]) -> dict[str, int]:
    """Return every node that a report names, with its highest known incarnation."""
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
    """Return the new content of etcd. Raise NotAdoptable.

    `without`: the nodes to leave out. `generation`: the generation of etcd's present lineage.
    `others`: the incarnations of nodes in the present etcd.
    """
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
            f"no report from {', '.join(silent)}: each of them may know an assignment that no other"
            " node knows. Start it, and give its address with --node. If it is gone for good, leave"
            " it out with --without NODE"
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
                f"shard {shard}: all its data is on nodes that are left out"
                f" ({', '.join(chosen.in_sync)}); calls to it wait"
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
    """Return the newest assignment of a shard; None if the shard was never assigned.

    Add to `notes` if two assignments of the newest version are known. Raise NotAdoptable.
    """
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
