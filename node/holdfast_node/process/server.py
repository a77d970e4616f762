"""A node process: puts the parts together, starts and stops them in order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
from collections.abc import Callable

import grpc
import msgspec
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from holdfast.app import App
from holdfast.channels import SERVER_OPTIONS, AddressInUse, bind, canonical
from holdfast.health import LIVE, HealthPort
from holdfast.metrics import Histogram, MetricsPage, measure_lag
from holdfast.processes import Stopped, process_stats, rss_bytes, unless_stopped
from holdfast.tls import Certificates
from holdfast.tracing import start as trace_process
from holdfast.v1 import admin_pb2
from holdfast_cluster.clock import boottime
from holdfast_cluster.cluster_time import Time, keep_time, tell_time
from holdfast_cluster.controller import AT_ONCE_S, Controller
from holdfast_cluster.dispatch import Dispatcher
from holdfast_cluster.etcd import EtcdError
from holdfast_cluster.feed import ViewFeed
from holdfast_cluster.guarded import GuardedEtcd
from holdfast_cluster.kinds import KnownKinds
from holdfast_cluster.membership import Membership, agree_on_settings
from holdfast_cluster.model import FEATURES, VERSION, Assignment, ClusterSettings, Keys, Member, Versioned, View
from holdfast_cluster.nodes import Nodes
from holdfast_cluster.peerpb import peer_pb2
from holdfast_cluster.streams import StreamServer

from holdfast_node.admin.dead_letters import DeadLetterAdmin
from holdfast_node.admin.inspection import Inspection
from holdfast_node.log.commit import Committer, Flusher
from holdfast_node.log.shards import Shards
from holdfast_node.log.single import SingleLog
from holdfast_node.objects import hosted_kinds as hosting
from holdfast_node.objects.engine import Engine
from holdfast_node.objects.responses import ResponseCache
from holdfast_node.observe import shard_load as heat
from holdfast_node.observe.liveness import Liveness, Watchdog
from holdfast_node.observe.metrics import NodeMetrics
from holdfast_node.process.config import NodeConfig
from holdfast_node.process.peer import LocalPipe, PeerService, WaitingRoom
from holdfast_node.replication import ReplicationSettings
from holdfast_node.replication.copies import CopyStore
from holdfast_node.replication.core.replica import Replica
from holdfast_node.replication.core.slowness import LOOK_S
from holdfast_node.replication.handover import Handovers
from holdfast_node.replication.host import Replicas
from holdfast_node.replication.links import Links
from holdfast_node.replication.single import SingleCopies
from holdfast_node.replication.snapshots import CHANNEL_OPTIONS, SnapshotReceiver, SnapshotSender
from holdfast_node.replication.swaps import EtcdSwaps
from holdfast_node.services.host import HostOptions, ObjectHost
from holdfast_node.store.assignments import KeptAssignments
from holdfast_node.store.directory import DataDirectory
from holdfast_node.store.disk_mark import DiskMark
from holdfast_node.store.disk_space import DiskWatch, Level, wait_for_room
from holdfast_node.store.rocks import Batch, Store

log = logging.getLogger(__name__)

_DROP_REPLIES_S = 60.0
_STOP_GRACE_S = 0.5
_READINESS_S = 0.25
_DISK_STATE_S = 0.25
_CRITICAL_S = 2.0  # before a node leaves: by then it knows of the others whose disks have become full at the same time
_WAITING_ROOM_AFTER_S = 2.0


class NodeServer:
    """One node. `run` serves until `stop` is set; every exception of a start-up that cannot work says why."""

    def __init__(self, config: NodeConfig, app: App) -> None:
        config.validate()
        self._config = config
        self._app = app
        self._member: Member | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Join the cluster and serve. Raises StoreError, WrongDirectory, Refused, AddressInUse when it cannot."""
        self._watch = DiskWatch(self._config.data, self._config.disk_reserve_bytes)
        try:
            again = True
            while again:
                await self._wait_for_room(stop)
                again = await self._run_once(stop)
        except Stopped:
            log.info("stopped before the cluster was there")

    async def _wait_for_room(self, stop: asyncio.Event) -> None:
        """Return when the disk has room for the store. Raises Stopped."""
        config = self._config
        if self._watch.cannot_start is None:
            return
        healthy = health.aio.HealthServicer()
        await healthy.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        await healthy.set(LIVE, health_pb2.HealthCheckResponse.SERVING)  # to end the process would give no room
        probes = HealthPort(healthy)
        try:
            if config.health_port is not None:
                await probes.listen(f"{config.listen.rpartition(':')[0]}:{config.health_port}")
            await unless_stopped(stop, wait_for_room(self._watch))
        finally:
            await probes.close()

    async def _run_once(self, stop: asyncio.Event) -> bool:
        """Serve until `stop`, or until the disk has no room: then True is returned. Raises Stopped before there is a cluster."""
        config = self._config
        self._member = None
        self._store = Store(config.data)
        directory = DataDirectory(self._store)
        node_id = directory.node_id(config.name)
        keys = Keys(config.cluster)
        etcd = GuardedEtcd(config.etcd_endpoints, keys, tls=config.etcd_tls)
        try:
            settings = await self._agree(stop, etcd, keys, directory, node_id)
            directory.claim(settings.id)
            return await self._serve(stop, etcd, keys, settings, directory, node_id)
        finally:
            await etcd.close()
            self._store.close()

    async def _agree(
        self, stop: asyncio.Event, etcd: GuardedEtcd, keys: Keys, directory: DataDirectory, node_id: str
    ) -> ClusterSettings:
        """The cluster's settings, once etcd tells them."""
        config = self._config
        wanted = msgspec.structs.replace(ClusterSettings(), **config.settings)
        agreed = asyncio.ensure_future(
            unless_stopped(stop, agree_on_settings(etcd, keys, wanted, config.settings, directory.cluster_id))
        )
        try:
            await asyncio.wait({agreed}, timeout=_WAITING_ROOM_AFTER_S)
            async with contextlib.nullcontext() if agreed.done() else self._waiting_room(directory, node_id):
                return await agreed
        finally:
            agreed.cancel()

    def _waiting_room(self, directory: DataDirectory, node_id: str) -> contextlib.AbstractAsyncContextManager[object]:
        """What a node with data serves until etcd tells of its cluster. Where there is no data there is nothing to ask for."""
        if not directory.cluster_id:
            return contextlib.nullcontext()
        memory = KeptAssignments(directory.cluster_id, self._store, _Unstaged())
        epochs = {shard: copy.epoch for shard, copy in CopyStore(self._store).load().items()}
        report = memory.report(node_id, directory.incarnation, epochs)
        return WaitingRoom(self._config.listen, report, self._config.certificates)

    async def _serve(
        self,
        stop: asyncio.Event,
        etcd: GuardedEtcd,
        keys: Keys,
        settings: ClusterSettings,
        directory: DataDirectory,
        node_id: str,
    ) -> bool:
        config = self._config
        watch = self._watch
        self._flusher = flusher = Flusher(self._store)
        mark = DiskMark(self._store, flusher, etcd, keys, node_id)
        memory = KeptAssignments(settings.id, self._store, flusher)
        feed = ViewFeed(etcd, keys, memory, f"node {node_id}")
        replicated = settings.replication > 1
        liveness = Liveness(config.lease_ttl_s, enabled=not replicated)
        self._time = time = Time()
        responses = ResponseCache(self._store, config.replies_window_s, time.now_ms)
        local = LocalPipe(liveness)
        certificates = config.certificates
        dispatcher = Dispatcher(feed, config.dispatch, (node_id, local), certificates)
        self._shards = shards = Shards(settings.shards, time)

        def identity() -> str:
            return f"{node_id}:{self._member.incarnation if self._member else 0}"

        self._replication = replication = (
            Replication(
                node_id, identity, self._store, flusher, memory, shards, settings, etcd, keys, config.move_rate, certificates, watch
            )
            if replicated
            else None
        )
        kinds = KnownKinds(config.repair_after_s, boottime)
        feed.listeners.append(kinds.follow)
        tracing = None if not config.trace else trace_process("holdfast-node", node_id, config.trace)
        self._committer = committer = Committer(flusher)
        self._objects = objects = ObjectHost(
            self._app, HostOptions(config.limits, kinds, tracing), committer, shards, responses, dispatcher
        )
        self._engine = engine = objects.engine
        if replication is not None:
            replication.connect(engine, feed)
        local.connect(engine, dispatcher)
        inspection = Inspection(
            self._store,
            shards,
            objects,
            _no_replica if replication is None else replication.replica,
            lambda: node_id,
            self.stats,
        )

        async def stats(request: admin_pb2.StatsRequest) -> admin_pb2.StatsResponse:
            return self.stats()

        async def known(request: peer_pb2.KnownRequest) -> peer_pb2.KnownResponse:
            epochs = {} if replication is None else {copy.number: copy.replica.epoch for copy in replication.replicas.copies()}
            return memory.report(node_id, directory.incarnation, epochs)

        async def clock(request: peer_pb2.ClockRequest) -> peer_pb2.ClockResponse:
            return await tell_time(time)

        peer = PeerService(
            engine,
            liveness,
            identity,
            lambda: feed.view.order,
            {
                "Stats": stats,
                "Known": known,
                "Clock": clock,
                **DeadLetterAdmin(
                    self._store, shards, objects.writes, objects.letters, objects.notifications, objects.alarms
                ).answers(),
                **inspection.answers(),
            },
            None if replication is None else replication.links,
            None if replication is None else replication.receiver,
            certificates,
        )
        server = grpc.aio.server(options=[*dict([*SERVER_OPTIONS, *CHANNEL_OPTIONS]).items()])
        server.add_generic_rpc_handlers((peer.handlers(),))
        healthy = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
        await healthy.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        await healthy.set(LIVE, health_pb2.HealthCheckResponse.SERVING)
        probes = HealthPort(healthy)
        port = bind(server, config.listen, None if certificates is None else certificates.server_credentials())
        await server.start()
        streams = StreamServer(peer.services(), certificates)
        host = config.listen.rpartition(":")[0]
        try:
            stream_port = await streams.listen(config.stream_listen or f"{host}:0")
        except AddressInUse:
            await server.stop(None)
            raise
        machine = config.host or socket.gethostname()
        nodes = Nodes(feed, certificates)
        address = canonical(config.advertise or f"{host}:{port}")
        stream_address = (
            canonical(config.stream_advertise) if config.stream_advertise else f"{address.rpartition(':')[0]}:{stream_port}"
        )
        membership = Membership(
            etcd,
            keys,
            Member(
                node_id,
                address,
                0,
                machine,
                config.zone,
                config.weight,
                stream_address,
                version=VERSION,
                kinds=tuple(sorted(self._app.kinds)),
                features=FEATURES,
            ),
            directory,
            settings.id,
            config.lease_ttl_s,
            boottime,
        )
        membership.on_renewed(liveness.confirm)

        self._single = single = SingleCopies(self._store, shards, SingleLog(flusher)) if replication is None else None
        no_room = asyncio.Event()

        def joined(member: Member) -> None:
            self._member = member
            if single is not None:
                single.follow(feed.view, member)
            if replication is not None:
                replication.replicas.joined(member, feed.view)

        def lost() -> None:
            self._member = None
            if single is not None:
                single.left()

        membership.joined = joined
        membership.lost = lost

        def follow(view: View) -> None:
            if single is not None:
                flusher.write()  # the rows of assignments, which are durable with what is taken
                single.follow(view, self._member)
            if replication is not None:
                replication.links.follow(view)
                replication.replicas.follow(view)

            shards.features.on = view.features
            objects.pauses.follow(frozenset(view.pauses))

        feed.listeners.append(follow)
        self._controller = controller = Controller(
            etcd,
            keys,
            feed,
            membership,
            settings.id,
            config.members_min or settings.replication,
            config.repair_after_s,
            at_once_s=max(AT_ONCE_S, config.lease_ttl_s),  # leases of members that die together end so far apart at most
        )
        loop_lag = Histogram()
        page: MetricsPage | None = None
        watchdog = Watchdog(liveness)
        watchdog.start()
        gc.collect()
        gc.freeze()  # what start-up made stays; the collector need not walk it again
        gc.set_threshold(50_000, 20, 50)
        try:
            if config.metrics_port is not None:
                metrics = NodeMetrics(
                    objects,
                    committer,
                    flusher,
                    self._store,
                    shards,
                    replication,
                    controller,
                    membership,
                    dispatcher,
                    feed,
                    loop_lag,
                    config.memory_max_bytes,
                    certificates,
                    watch,
                    time,
                )
                page = MetricsPage(metrics.collect)
                log.info("metrics at port %d", await page.listen(f"{host}:{config.metrics_port}"))
            if config.health_port is not None:
                log.info("health at port %d", await probes.listen(f"{host}:{config.health_port}"))
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(feed.run(), name="view feed"),
                    group.create_task(self._tick(), name="ticker"),
                    group.create_task(measure_lag(loop_lag), name="loop lag"),
                    *([] if certificates is None else [group.create_task(certificates.watch(), name="certificates")]),
                    group.create_task(controller.run(), name="controller"),
                    group.create_task(watch.run(), name="disk"),
                    group.create_task(
                        keep_time(
                            time,
                            node_id,
                            machine,
                            address,
                            feed,
                            nodes,
                            lambda: bool(shards.serving(boottime())),
                            settings.replication,
                        ),
                        name="cluster time",
                    ),
                    group.create_task(hosting.tell(objects.kinds, feed, etcd, keys, membership), name="hosting"),
                ]
                if replication is not None:
                    tasks.append(group.create_task(replication.run(), name="replication"))
                    tasks.append(group.create_task(heat.tell(heat.Thermometer(shards), etcd, keys, membership), name="heat"))
                try:
                    await unless_stopped(stop, mark.check())
                    await unless_stopped(stop, membership.join())
                except Stopped:
                    pass
                tasks.append(group.create_task(mark.run(), name="disk mark"))
                tasks.append(group.create_task(membership.run(), name="membership"))
                told = [
                    group.create_task(_readiness(membership, healthy), name="readiness"),
                    group.create_task(_tell_of_disk(watch, membership, feed, single, replication, no_room), name="disk state"),
                ]
                log.info("node %s serves at %s", node_id, address)
                await _first_of(stop, no_room)
                for task in told:
                    task.cancel()
                await asyncio.wait(told)  # what they say must not come after what is said now
                await healthy.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
                drain_until = boottime() + config.drain_timeout_s
                if replication is not None:
                    await self._give_up_shards(membership, feed, drain_until)
                log.info("stopping: finishing %d calls", engine.in_flight)
                peer.accepting = False
                await engine.drain(max(0.5, drain_until - boottime()))
                for task in tasks:
                    task.cancel()
        finally:
            await membership.leave()
            if page is not None:
                await page.close()
            await server.stop(_STOP_GRACE_S)
            await streams.close()
            await probes.close()
            await dispatcher.close()
            await nodes.close()
            if replication is not None:
                await replication.links.close()
            await engine.close()
            await flusher.close()
            watchdog.stop()
            if tracing is not None:
                await asyncio.to_thread(tracing.close)
        log.info("stopped")
        return no_room.is_set() and not stop.is_set()

    async def _give_up_shards(self, membership: Membership, feed: ViewFeed, until: float) -> None:
        """Have other nodes take over what this one owns, and go on without it, so that its going is not noticed."""
        me = membership.member
        if me is None:
            return
        try:
            await membership.announce("stopping")
        except EtcdError as error:
            log.warning("cannot tell that this node stops: %s", error)
            return
        log.info("stopping: handing over %d shards", len(self._shards.owned()))
        while boottime() < until and _others_could_take_over(feed.view, me.id):
            await asyncio.sleep(0.02)

    def stats(self) -> admin_pb2.StatsResponse:
        """Counters since the start, gauges as of now."""
        engine = self._engine
        return admin_pb2.StatsResponse(
            process=process_stats(),
            turns=engine.turns,
            turns_failed=engine.outcomes.failed,
            entries=self._committer.entries,
            fsyncs=self._store.syncs,
            activations=len(self._objects.activations),
            evictions=engine.eviction.count,
            calls_in_flight=engine.in_flight,
            shards_serving=len(self._shards.serving(boottime())),
            cache_bytes=self._objects.cached_bytes,
            kinds=sorted(self._app.kinds),
            notice=self._controller.notice,
            clock_ahead_s=self._time.wall_ahead_s,
            **self._objects.counts(),
            **(self._replication.stats() if self._replication is not None else {}),
            slow_nodes=sorted(self._replication.slow) if self._replication is not None else (),
        )

    async def _tick(self) -> None:
        """What follows the clock: eviction, dropping old replies."""
        interval = 0.1
        memory_max = self._config.memory_max_bytes
        dropped = boottime()
        while True:
            await asyncio.sleep(interval)
            self._objects.tick()
            if memory_max and rss_bytes() > memory_max:
                self._engine.eviction.evict_share(0.05)
            if boottime() - dropped > _DROP_REPLIES_S:
                dropped = boottime()
                if self._single is not None:
                    self._single.note_times(self._flusher.batch)


async def _readiness(membership: Membership, healthy: health.aio.HealthServicer) -> None:
    """Say SERVING while the node is a member."""
    while True:
        ready = membership.member is not None
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        await healthy.set("", status)
        await asyncio.sleep(_READINESS_S)


async def _tell_of_disk(
    watch: DiskWatch,
    membership: Membership,
    feed: ViewFeed,
    single: SingleCopies | None,
    replication: Replication | None,
    no_room: asyncio.Event,
) -> None:
    """Tell the cluster whether the disk is full, or slow, and set `no_room` when it is critical and the node is not needed."""
    calm_at = boottime()
    while True:
        slow = replication is not None and replication.disk_is_slow
        state = "full" if watch.full else "slow" if slow else "active"
        if single is not None:
            single.set_read_only(watch.full)
        if membership.state != state:
            try:
                await membership.announce(state)
            except EtcdError as error:
                log.debug("cannot tell that this node is %s: %s; still trying", state, error)
        me = membership.member
        if watch.level is not Level.CRITICAL:
            calm_at = boottime()
        waited = boottime() - calm_at > _CRITICAL_S
        if single is None and waited and me is not None and not _is_needed(feed.view, me.id):
            log.error("%s: the node leaves, and comes back when there is room", watch.full)
            no_room.set()
        await asyncio.sleep(_DISK_STATE_S)


async def _first_of(*events: asyncio.Event) -> None:
    """Return when one of them is set."""
    tasks = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _is_needed(view: View, node: str) -> bool:
    """Whether calls would notice that this node is gone: it owns a shard, or writes to one need its copy."""
    active = {name for name in view.members if view.state_of(name) == "active"}
    writable_from = view.settings.writable_from if view.settings is not None else 1
    for versioned in view.assignments.values():
        now = versioned.assignment
        # Only those that have room count: others may be about to leave as this one is.
        others = active.intersection(now.in_sync) - {node}
        if now.owner == node or (node in now.in_sync and (now.owner not in active or len(others) < writable_from)):
            return True
    return False


def _others_could_take_over(view: View, node: str) -> bool:
    """Whether there is a shard that this node owns, or is in sync for, and that does not need it."""
    active = {name for name in view.members if view.state_of(name) == "active"}
    writable_from = view.settings.writable_from if view.settings is not None else 1
    for versioned in view.assignments.values():
        now = versioned.assignment
        others = [name for name in now.in_sync if name != node]
        if now.owner == node and any(name in active for name in others):
            return True
        if node in now.in_sync and now.owner in active and len(others) >= writable_from:
            return True
    return False


class Replication:
    """The parts that copy shards between nodes, put together."""

    def __init__(
        self,
        node_id: str,
        identity: Callable[[], str],
        store: Store,
        flusher: Flusher,
        memory: KeptAssignments,
        shards: Shards,
        settings: ClusterSettings,
        etcd: GuardedEtcd,
        keys: Keys,
        move_rate: float,
        certificates: Certificates | None,
        watch: DiskWatch,
    ) -> None:
        self._store = store
        self._node_id = node_id
        self._watch = watch
        self._memory = memory
        disk = CopyStore(store)
        self.replicas = Replicas(node_id, disk, flusher, shards, ReplicationSettings(min_in_sync=settings.writable_from))
        self.links = self.replicas.links = Links(node_id, identity, self.replicas.received, certificates)
        self.swaps = self.replicas.swaps = EtcdSwaps(etcd, keys, self._swapped)
        self.sender = self.replicas.snapshots = SnapshotSender(store, self.replicas, self.links, identity, move_rate, certificates)
        self.receiver = SnapshotReceiver(store, disk, self.replicas, watch)

    def _swapped(self, shard: int, written: Versioned | None, to: Assignment) -> None:
        """A swap was answered: what was written is kept before the shard's replica hears of it."""
        if written is not None:
            self._memory.learn(shard, written)
        self.replicas.swapped(shard, written, to)

    def connect(self, engine: Engine, feed: ViewFeed) -> None:
        """Tie it to the engine whose entries it replicates."""
        self.links.broke = self.replicas.lost
        self.handovers = Handovers(self.replicas, engine.shard_turns)
        self._feed = feed
        self.replicas.full = self._full

    def _full(self, assignment: Assignment) -> str | None:
        """Why a shard that this node owns takes no writes because of the disk; None when it does, or is about to be handed over."""
        why = self._watch.full
        if why is None:
            return None
        view = self._feed.view
        return None if any(view.state_of(name) == "active" for name in assignment.in_sync if name != self._node_id) else why

    @property
    def slow(self) -> frozenset[str]:
        """The nodes that this one has found slow; see `holdfast_node.replication.core.slowness`."""
        return self.replicas.slowness.slow

    @property
    def disk_is_slow(self) -> bool:
        """Whether this node's own disk is what writes wait for."""
        return self._node_id in self.slow

    def replica(self, shard: int) -> Replica | None:
        """The core of one shard's copy here."""
        copy = self.replicas.get(shard)
        return None if copy is None else copy.replica

    def stats(self) -> dict[str, int]:
        """For `StatsResponse`."""
        copies = list(self.replicas.copies())
        owned = [copy.replica for copy in copies if copy.shard is not None]
        return {
            "copies": sum(copy.replica.last != (0, 0) for copy in copies),
            "entries_uncommitted": sum(replica.last.seq - replica.committed for replica in owned),
            "replica_lag": max((replica.last.seq - peer.matched for replica in owned for peer in replica.peers.values()), default=0),
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
            group.create_task(self.swaps.run(), name="swaps")
            group.create_task(self.sender.run(), name="snapshots")
            group.create_task(self._tick(), name="replication ticker")

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            self.replicas.tick()
            self.handovers.tick(self._feed.view)


class _Unstaged:
    """For a memory that only tells what it knows."""

    @property
    def batch(self) -> Batch:
        raise AssertionError("nothing is learnt while a node waits for its cluster")


def _no_replica(shard: int) -> None:
    return None
