"""Every assignment that this node has seen, kept on its disk. With them the node recognises an etcd
that was put back, after a restart too.

There is one row for each shard, whether the node has a copy of the shard or not. One more row has
the other facts of the cluster. `holdfast adopt-etcd` can rebuild etcd from these rows. Rows are
staged for the next flush. The node waits for that flush before it acts on an assignment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec
from holdfast_cluster.membership.lineage import Memory, Seen
from holdfast_cluster.peerpb import peer_pb2
from holdfast_cluster.placement.model import (
    Assignment,
    ClusterSettings,
    Drain,
    Lineage,
    Member,
    Pause,
    Versioned,
    View,
    decode,
    encode,
)

from holdfast_node.store import keys
from holdfast_node.store.rocks import Batch, Store


class Staging(Protocol):
    """Where rows wait for the next flush."""

    @property
    def batch(self) -> Batch: ...


class Row(msgspec.Struct, frozen=True, array_like=True):
    """The row of a shard. `raw`: the assignment as it is in etcd."""

    generation: int
    raw: bytes


class Facts(msgspec.Struct, frozen=True):
    """The facts of the cluster."""

    lineage: Lineage | None = None
    revision: int = 0
    settings: ClusterSettings | None = None
    members: Mapping[str, Member] = {}
    """Every member ever seen, in its last state. A member that left after a drain is forgotten: it
    has no data."""
    drains: Mapping[str, Drain] = {}
    pauses: tuple[tuple[str, str, Pause], ...] = ()


class KeptAssignments(Memory):
    """A node's memory of assignments, which survives a restart. It begins with the rows on disk."""

    def __init__(self, cluster: str, store: Store, staging: Staging) -> None:
        super().__init__(cluster)
        self._staging = staging
        self._raws: dict[int, Row] = {}
        prefix = keys.assignment_key(0)[:-2]
        for key, value in store.scan("meta", prefix, keys.after(prefix)):
            row = msgspec.msgpack.decode(value, type=Row)
            assignment = decode(row.raw, Assignment)
            shard = keys.read_assignment_key(key)
            self._raws[shard] = row
            self._assignments[shard] = Seen(row.generation, assignment.version, assignment.nonce)
        raw = store.get("meta", keys.FACTS)
        self._facts = Facts() if raw is None else decode(raw, Facts)
        self._lineage = self._facts.lineage

    def follow(self, view: View) -> None:
        super().follow(view)
        members = {
            name: member
            for name, member in self._facts.members.items()
            if name not in view.drains and name not in self._facts.drains
        }
        pauses = tuple((kind, key, pause) for (kind, key), pause in sorted(view.pauses.items()))
        facts = Facts(
            view.lineage,
            self._facts.revision,
            view.settings,
            {**members, **view.members},
            view.drains,
            pauses,
        )
        if facts != self._facts:
            self._facts = msgspec.structs.replace(facts, revision=view.revision)
            self._staging.batch.put("meta", keys.FACTS, encode(self._facts))

    def learn(self, shard: int, versioned: Versioned) -> bool:
        """Also stage the row: a flush that is requested afterwards puts it on disk."""
        if not super().learn(shard, versioned):
            return False
        row = self._raws[shard] = Row(versioned.generation, versioned.raw)
        self._staging.batch.put("meta", keys.assignment_key(shard), msgspec.msgpack.encode(row))
        return True

    def report(
        self, node: str, incarnation: int, epochs: Mapping[int, int]
    ) -> peer_pb2.KnownResponse:
        """Return all that the node knows. `epochs`: by shard, the highest epoch that this node's
        copy has heard of."""
        facts = self._facts
        response = peer_pb2.KnownResponse(
            node=node,
            incarnation=incarnation,
            cluster=self._cluster,
            generation=facts.lineage.generation if facts.lineage is not None else 0,
            revision=facts.revision,
            settings=b"" if facts.settings is None else encode(facts.settings),
            members=[encode(member) for _, member in sorted(facts.members.items())],
            drains={name: encode(drain) for name, drain in facts.drains.items()},
            pauses=[
                peer_pb2.KnownPause(kind=kind, key=key, pause=encode(pause))
                for kind, key, pause in facts.pauses
            ],
        )
        for shard in sorted({*self._raws, *epochs}):
            row = self._raws.get(shard, Row(0, b""))
            response.shards.add(
                shard=shard,
                generation=row.generation,
                assignment=row.raw,
                epoch=epochs.get(shard, 0),
            )
        return response
