"""The assembly of the parts that copy shards between nodes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from holdfast_cluster.membership.access import ClusterAccess
from holdfast_cluster.placement.model import Assignment, Member, Versioned, View

from holdfast_node.log.commit import Flusher
from holdfast_node.log.shards import Shards
from holdfast_node.objects.hand_off import ShardTurns
from holdfast_node.replication import ReplicationSettings
from holdfast_node.replication.copies import CopyStore
from holdfast_node.replication.core.events import WireMessage
from holdfast_node.replication.core.replica import Replica
from holdfast_node.replication.core.slowness import LOOK_S
from holdfast_node.replication.handover import Handovers
from holdfast_node.replication.host import Replicas
from holdfast_node.replication.links import Links
from holdfast_node.replication.reconfigurations import EtcdReconfigurations
from holdfast_node.replication.snapshots import SnapshotReceiver, SnapshotSender
from holdfast_node.store.assignments import KeptAssignments
from holdfast_node.store.disk_space import DiskWatch

log = logging.getLogger(__name__)


class Replication:
    """The replicas of a node, with their links, disk and snapshots.

    It passes messages from other nodes, and changes in etcd, to the replicas.

    Implements `holdfast_node.replication.host.Surroundings` and
    `holdfast_node.replication.links.Receiver`.
    """

    def __init__(
        self,
        identity: Callable[[], str],
        flusher: Flusher,
        shards: Shards,
        turns: ShardTurns,
        cluster: ClusterAccess,
        memory: KeptAssignments,
        watch: DiskWatch,
        move_rate: float,
    ) -> None:
        """`identity` returns this node, as `id:incarnation`.

        `move_rate`: the most bytes a second that this node sends to make copies elsewhere.
        """
        store = flusher.store
        node = identity().rpartition(":")[0]
        self._store = store
        self._node = node
        self._watch = watch
        self._memory = memory
        self._watcher = cluster.watcher
        disk = CopyStore(store)
        settings = ReplicationSettings(min_in_sync=cluster.settings.writable_from)
        self.links = Links(identity, self, cluster.certificates)
        self.reconfigurations = EtcdReconfigurations(
            cluster.etcd, cluster.keys, self._proposal_answered
        )
        self.replicas = Replicas(node, disk, flusher, shards, settings, self)
        self.sender = SnapshotSender(
            store, self.replicas, self.links, identity, move_rate, cluster.certificates
        )
        self.receiver = SnapshotReceiver(store, disk, self.replicas, watch)
        self.handovers = Handovers(self.replicas, turns)

    # -- holdfast_node.replication.host.Surroundings

    def send(self, to: str, shard: int, message: WireMessage) -> None:
        self.links.send(to, shard, message)

    def propose(self, shard: int, old: bytes, to: Assignment) -> None:
        self.reconfigurations.propose(shard, old, to)

    def send_snapshot(self, shard: int, to: str, epoch: int) -> None:
        self.sender.send(shard, to, epoch)

    def full(self, assignment: Assignment) -> str | None:
        why = self._watch.full
        if why is None:
            return None
        view = self._watcher.view
        return (
            None
            if any(
                view.state_of(name) == "active" for name in assignment.in_sync if name != self._node
            )
            else why
        )

    # -- holdfast_node.replication.links.Receiver

    def received(self, sender: str, messages: list[tuple[int, WireMessage]]) -> None:
        self.replicas.received(sender, messages)

    def broke(self, node: str) -> None:
        self.replicas.lost(node)

    def _proposal_answered(self, shard: int, written: Versioned | None, to: Assignment) -> None:
        """Keep the assignment that etcd has written. Then pass the answer to the replica."""
        if written is not None:
            self._memory.learn(shard, written)
        self.replicas.proposal_answered(shard, written, to)

    # -- events and questions of the node

    def joined(self, member: Member, view: View) -> None:
        """Take note that the node is a member under a new incarnation."""
        self.replicas.joined(member, view)

    def left(self) -> None:
        """Do nothing when the node is no member any more: promises limit how long it serves."""

    def follow(self, view: View, member: Member | None) -> None:
        """Take a new view of the cluster."""
        self.links.follow(view)
        self.replicas.follow(view)

    def save_times(self) -> None:
        """Do nothing: entries carry the shards' times."""

    def set_read_only(self, why: str | None) -> None:
        """Do nothing: replicas ask `full` themselves."""

    @property
    def slow(self) -> frozenset[str]:
        """The nodes that this node finds slow; see `holdfast_node.replication.core.slowness`."""
        return self.replicas.slow_nodes.names

    @property
    def disk_is_slow(self) -> bool:
        """Whether this node finds its own disk slow."""
        return self._node in self.slow

    def epochs(self) -> dict[int, int]:
        """Return the epochs of the copies, by shard."""
        return {copy.number: copy.replica.epoch for copy in self.replicas.copies()}

    def replica(self, shard: int) -> Replica | None:
        """Return the core of this node's copy of a shard; None if it has no copy."""
        copy = self.replicas.get(shard)
        return None if copy is None else copy.replica

    def stats(self) -> dict[str, int]:
        """Return the fields that replication adds to `StatsResponse`."""
        copies = list(self.replicas.copies())
        owned = [copy.replica for copy in copies if copy.shard is not None]
        return {
            "copies": sum(copy.replica.log.last != (0, 0) for copy in copies),
            "entries_uncommitted": sum(
                replica.log.last_seq - replica.committed for replica in owned
            ),
            "replica_lag": max(
                (
                    replica.log.last_seq - peer.matched
                    for replica in owned
                    for peer in replica.peers.values()
                ),
                default=0,
            ),
            "snapshots_sent": self.sender.sent,
            "snapshots_waiting": self.sender.waiting,
            "snapshot_bytes_sent": self.sender.sent_bytes,
            "handovers": self.handovers.done,
            "data_bytes": self._store.approximate_bytes(),
            "move_rate": int(self.sender.rate),
        }

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.reconfigurations.run(), name="reconfigurations")
            group.create_task(self.sender.run(), name="snapshots")
            group.create_task(self._tick(), name="replication ticker")

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            self.replicas.tick()
            self.handovers.tick(self._watcher.view)

    async def close(self) -> None:
        await self.links.close()
