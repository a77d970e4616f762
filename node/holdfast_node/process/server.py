"""A node process. It waits for room on its disk and for its cluster, and then serves. If the disk
becomes full, it begins again."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import msgspec
from holdfast.app import App
from holdfast.processes import Stopped, unless_stopped
from holdfast_cluster.membership.access import ClusterAccess
from holdfast_cluster.membership.guarded import GuardedEtcd
from holdfast_cluster.membership.member import agree_on_settings
from holdfast_cluster.membership.view_watcher import ViewWatcher
from holdfast_cluster.placement.model import ClusterSettings, Keys
from holdfast_cluster.process.watched import Watched

from holdfast_node.log.commit import Flusher
from holdfast_node.process.config import NodeConfig
from holdfast_node.process.conversion import convert
from holdfast_node.process.node import Node
from holdfast_node.process.peer import WaitingRoom
from holdfast_node.replication.copies import CopyStore
from holdfast_node.store.assignments import KeptAssignments
from holdfast_node.store.directory import DataDirectory
from holdfast_node.store.disk_space import DiskWatch, wait_for_room
from holdfast_node.store.rocks import Batch, Store

log = logging.getLogger(__name__)

_WAITING_ROOM_AFTER_S = 2.0


class NodeServer:
    """One node process. `run` serves until `stop` is set. If the node cannot start, the exception
    says why."""

    def __init__(self, config: NodeConfig, app: App) -> None:
        config.validate()
        self._config = config
        self._app = app
        self.node: Node | None = None
        """The running node; None before there is a cluster."""

    async def run(self, stop: asyncio.Event) -> None:
        """Join the cluster and serve. Raise StoreError, WrongDirectory, NotAccepted or AddressInUse
        if the node cannot."""
        watch = DiskWatch(self._config.data, self._config.disk_reserve_bytes)
        try:
            again = True
            while again:
                await self._wait_for_room(stop, watch)
                again = await self._run_once(stop, watch)
        except Stopped:
            log.info("stopped before the cluster was there")

    async def _wait_for_room(self, stop: asyncio.Event, watch: DiskWatch) -> None:
        """Return when the disk has room for the store. Raises Stopped."""
        if watch.cannot_start is None:
            return
        watched = Watched(self._config.listen.rpartition(":")[0], self._config.health_port, None)
        await watched.begin()  # health checks pass: an end of the process would make no room
        try:
            await watched.listen()
            await unless_stopped(stop, wait_for_room(watch))
        finally:
            await watched.close()

    async def _run_once(self, stop: asyncio.Event, watch: DiskWatch) -> bool:
        """Serve until `stop` is set, and return False, or until the disk has no room, and return
        True. Raises Stopped if `stop` is set before there is a cluster."""
        config = self._config
        self.node = None
        store = Store(config.data)
        directory = DataDirectory(store, convert)
        node_id = directory.node_id(config.name)
        keys = Keys(config.cluster)
        etcd = GuardedEtcd(config.etcd_endpoints, keys, tls=config.etcd_tls)
        try:
            settings = await self._agree(stop, etcd, keys, directory, store)
            directory.claim(settings.id)
            flusher = Flusher(store)
            memory = KeptAssignments(settings.id, store, flusher)
            watcher = ViewWatcher(etcd, keys, memory, f"node {node_id}")
            cluster = ClusterAccess(etcd, keys, settings, watcher, config.certificates)
            self.node = Node(config, self._app, cluster, directory, memory, flusher, watch)
            return await self.node.serve(stop)
        finally:
            await etcd.close()
            store.close()

    async def _agree(
        self,
        stop: asyncio.Event,
        etcd: GuardedEtcd,
        keys: Keys,
        directory: DataDirectory,
        store: Store,
    ) -> ClusterSettings:
        """Return the cluster's settings, when etcd has them. Raises Stopped."""
        config = self._config
        wanted = msgspec.structs.replace(ClusterSettings(), **config.settings)
        agreed = asyncio.ensure_future(
            unless_stopped(
                stop, agree_on_settings(etcd, keys, wanted, config.settings, directory.cluster_id)
            )
        )
        try:
            await asyncio.wait({agreed}, timeout=_WAITING_ROOM_AFTER_S)
            async with (
                contextlib.nullcontext() if agreed.done() else self._waiting_room(directory, store)
            ):
                return await agreed
        finally:
            agreed.cancel()

    def _waiting_room(
        self, directory: DataDirectory, store: Store
    ) -> contextlib.AbstractAsyncContextManager[object]:
        """Return the service that a node with data offers until etcd has its cluster. A node
        without data offers none."""
        if not directory.cluster_id:
            return contextlib.nullcontext()
        memory = KeptAssignments(directory.cluster_id, store, _Unstaged())
        epochs = {shard: copy.epoch for shard, copy in CopyStore(store).load().items()}
        report = memory.report(directory.node_id(self._config.name), directory.incarnation, epochs)
        return WaitingRoom(self._config.listen, report, self._config.certificates)


class _Unstaged:
    """The staging of a memory that learns nothing."""

    @property
    def batch(self) -> Batch:
        raise AssertionError("nothing is learnt while a node waits for its cluster")
