"""One running node. It makes its parts in the order in which they need each other, serves, and ends
them in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket

import grpc
from holdfast.app import App
from holdfast.channels import SERVER_OPTIONS, AddressInUse, bind, canonical
from holdfast.processes import Stopped, process_stats, rss_bytes, unless_stopped
from holdfast.tracing import start as trace_process
from holdfast.v1 import admin_pb2
from holdfast_cluster.clocks.boottime import boottime
from holdfast_cluster.clocks.cluster_time import Time
from holdfast_cluster.membership.access import ClusterAccess
from holdfast_cluster.membership.controller import AT_ONCE_S, Controller
from holdfast_cluster.membership.etcd import EtcdError
from holdfast_cluster.membership.kinds import KnownKinds
from holdfast_cluster.membership.member import Membership, MembershipListener
from holdfast_cluster.peerpb import peer_pb2
from holdfast_cluster.placement.model import FEATURES, VERSION, Member, View
from holdfast_cluster.process.time_keeper import TimeKeeper, Voter, tell_time
from holdfast_cluster.process.watched import Watched, settle_garbage
from holdfast_cluster.routing.dispatch import Dispatcher
from holdfast_cluster.routing.nodes import Nodes
from holdfast_cluster.streams.tcp import StreamServer

from holdfast_node.admin.dead_letters import DeadLetterAdmin
from holdfast_node.admin.inspection import Inspection
from holdfast_node.log.commit import Committer, Flusher
from holdfast_node.log.disk_mark import DiskMark
from holdfast_node.log.shards import Shards
from holdfast_node.objects import hosted_kinds
from holdfast_node.objects.responses import ResponseCache
from holdfast_node.observe import shard_load
from holdfast_node.observe.liveness import Liveness, Watchdog
from holdfast_node.observe.metrics import NodeMetrics
from holdfast_node.process.config import NodeConfig
from holdfast_node.process.leaving import DiskState, others_could_take_over
from holdfast_node.process.peer import LocalPipe, PeerService
from holdfast_node.replication.replication import Replication
from holdfast_node.replication.single import SingleCopies
from holdfast_node.replication.snapshots import CHANNEL_OPTIONS
from holdfast_node.services.host import HostOptions, ObjectHost
from holdfast_node.store.assignments import KeptAssignments
from holdfast_node.store.directory import DataDirectory
from holdfast_node.store.disk_space import DiskWatch

log = logging.getLogger(__name__)

_SAVE_TIMES_S = 60.0
_TICK_S = 0.1
_STOP_GRACE_S = 0.5


class Node(MembershipListener):
    """A node of a cluster whose settings are known. `serve` joins the cluster, serves until the
    node has to stop, and leaves."""

    def __init__(
        self,
        config: NodeConfig,
        app: App,
        cluster: ClusterAccess,
        directory: DataDirectory,
        memory: KeptAssignments,
        flusher: Flusher,
        watch: DiskWatch,
    ) -> None:
        node_id = directory.node_id(config.name)
        certificates = cluster.certificates
        settings = cluster.settings
        self._config = config
        self._app = app
        self._cluster = cluster
        self._watcher = watcher = cluster.watcher
        self._id = node_id
        self._watch = watch
        self._member: Member | None = None
        self._flusher = flusher
        self._host = config.listen.rpartition(":")[0]
        self._machine = config.host or socket.gethostname()
        self._mark = DiskMark(flusher.store, flusher, cluster.etcd, cluster.keys, node_id)
        replicated = settings.replication > 1
        self._liveness = Liveness(config.lease_ttl_s, enabled=not replicated)
        self._watchdog = Watchdog(self._liveness)
        self._time = Time()
        self.shards = Shards(settings.shards, self._time)
        self._dispatcher = Dispatcher(watcher, config.dispatch, certificates)
        self._tracing = (
            None if not config.trace else trace_process("holdfast-node", node_id, config.trace)
        )
        self._kinds = KnownKinds(config.repair_after_s, boottime)
        self._committer = Committer(flusher)
        self.objects = ObjectHost(
            app,
            HostOptions(config.limits, self._kinds, self._tracing),
            self._committer,
            self.shards,
            ResponseCache(flusher.store, config.replies_window_s, self._time.now_ms),
            self._dispatcher,
        )
        self._engine = engine = self.objects.engine
        self._dispatcher.attach(node_id, LocalPipe(self._liveness, engine, self._dispatcher))
        self.copies: Replication | SingleCopies
        if replicated:
            self.copies = Replication(
                self.identity,
                flusher,
                self.shards,
                engine.shard_turns,
                cluster,
                memory,
                watch,
                config.move_rate,
            )
        else:
            self.copies = SingleCopies(flusher, self.shards)
        self._peer = self._make_peer(directory, memory)
        self._server = grpc.aio.server(options=[*dict([*SERVER_OPTIONS, *CHANNEL_OPTIONS]).items()])
        self._streams = StreamServer(self._peer.services(), certificates)
        self._nodes = Nodes(watcher, certificates)
        self._watched = Watched(self._host, config.health_port, config.metrics_port)
        self._directory = directory

    def identity(self) -> str:
        """Return this node's name, `id:incarnation`. The incarnation is 0 while the node is no
        member."""
        return f"{self._id}:{self._member.incarnation if self._member else 0}"

    @property
    def _replication(self) -> Replication | None:
        return self.copies if isinstance(self.copies, Replication) else None

    # -- holdfast_cluster.membership.member.MembershipListener

    def joined(self, member: Member) -> None:
        self._member = member
        self.copies.joined(member, self._watcher.view)

    def lost(self) -> None:
        self._member = None
        self.copies.left()

    def renewed(self, expires_at: float) -> None:
        self._liveness.confirm(expires_at)

    def _follow(self, view: View) -> None:
        self.copies.follow(view, self._member)
        self.shards.features.on = view.features
        self.objects.pauses.follow(frozenset(view.pauses))

    # -- parts

    def _make_peer(self, directory: DataDirectory, memory: KeptAssignments) -> PeerService:
        """Make the service for other processes."""
        objects = self.objects
        store = self._flusher.store
        inspection = Inspection(
            store, self.shards, objects, self.copies.replica, lambda: self._id, self.stats
        )
        letters = DeadLetterAdmin(
            store,
            self.shards,
            objects.writes,
            objects.dead_letters,
            objects.notifications,
            objects.alarms,
        )

        async def stats(request: admin_pb2.StatsRequest) -> admin_pb2.StatsResponse:
            return self.stats()

        async def known(request: peer_pb2.KnownRequest) -> peer_pb2.KnownResponse:
            return memory.report(self._id, directory.incarnation, self.copies.epochs())

        async def clock(request: peer_pb2.ClockRequest) -> peer_pb2.ClockResponse:
            return await tell_time(self._time)

        replication = self._replication
        return PeerService(
            objects.engine,
            self._liveness,
            self.identity,
            lambda: self._watcher.view.order,
            {
                "Stats": stats,
                "Known": known,
                "Clock": clock,
                **letters.answers(),
                **inspection.answers(),
            },
            None if replication is None else replication.links,
            None if replication is None else replication.receiver,
            self._cluster.certificates,
        )

    def _make_membership(self, port: int, stream_port: int) -> Membership:
        config = self._config
        address = canonical(config.advertise or f"{self._host}:{port}")
        if config.stream_advertise:
            stream_address = canonical(config.stream_advertise)
        else:
            stream_address = f"{address.rpartition(':')[0]}:{stream_port}"
        member = Member(
            self._id,
            address,
            0,
            self._machine,
            config.zone,
            config.weight,
            stream_address,
            version=VERSION,
            kinds=tuple(sorted(self._app.kinds)),
            features=FEATURES,
        )
        cluster = self._cluster
        return Membership(
            cluster.etcd,
            cluster.keys,
            member,
            self._directory,
            cluster.settings.id,
            config.lease_ttl_s,
            boottime,
            self,
        )

    def _make_metrics(self, controller: Controller, membership: Membership) -> NodeMetrics:
        return NodeMetrics(
            objects=self.objects,
            committer=self._committer,
            flusher=self._flusher,
            store=self._flusher.store,
            shards=self.shards,
            replication=self._replication,
            controller=controller,
            membership=membership,
            dispatcher=self._dispatcher,
            watcher=self._watcher,
            loop_lag=self._watched.loop_lag,
            memory_max_bytes=self._config.memory_max_bytes,
            certificates=self._cluster.certificates,
            watch=self._watch,
            time=self._time,
        )

    # -- its life

    async def serve(self, stop: asyncio.Event) -> bool:
        """Serve until `stop` is set, or until the disk has no room. Return whether the disk was the
        reason."""
        config, cluster = self._config, self._cluster
        self._server.add_generic_rpc_handlers((self._peer.handlers(),))
        self._watched.serve_health(self._server)
        await self._watched.begin()
        credentials = (
            None if cluster.certificates is None else cluster.certificates.server_credentials()
        )
        port = bind(self._server, config.listen, credentials)
        try:
            stream_port = await self._streams.listen(config.stream_listen or f"{self._host}:0")
        except AddressInUse:
            await self._server.stop(None)
            raise
        membership = self._make_membership(port, stream_port)
        self._watcher.listeners += [self._kinds.follow, self._follow]
        # The leases of members that die together end within the lease's time.
        self._controller = Controller(
            cluster,
            membership,
            config.members_min or cluster.settings.replication,
            config.repair_after_s,
            at_once_s=max(AT_ONCE_S, config.lease_ttl_s),
        )
        disk = DiskState(self._watch, membership, self._watcher, self.copies)
        await self._server.start()
        self._watchdog.start()
        settle_garbage()
        try:
            await self._watched.listen(self._make_metrics(self._controller, membership).collect)
            await self._run(stop, membership, disk)
        finally:
            await self._close(membership)
        log.info("stopped")
        return disk.no_room.is_set() and not stop.is_set()

    async def _run(self, stop: asyncio.Event, membership: Membership, disk: DiskState) -> None:
        address = membership.address
        cluster = self._cluster
        voter = Voter(self._id, self._machine, address, cluster.settings.replication)
        keeper = TimeKeeper(
            self._time,
            voter,
            self._watcher,
            self._nodes,
            lambda: bool(self.shards.serving(boottime())),
        )
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._watcher.run(), name="view watcher"),
                group.create_task(self._tick(), name="ticker"),
                group.create_task(self._watched.measure(), name="loop lag"),
                group.create_task(self._controller.run(), name="controller"),
                group.create_task(self._watch.run(), name="disk"),
                group.create_task(keeper.run(), name="cluster time"),
                group.create_task(self.copies.run(), name="replication"),
                group.create_task(
                    hosted_kinds.publish(
                        self.objects.kinds, self._watcher, cluster.etcd, cluster.keys, membership
                    ),
                    name="kinds",
                ),
            ]
            if cluster.certificates is not None:
                tasks.append(group.create_task(cluster.certificates.watch(), name="certificates"))
            if self._replication is not None:
                meter = shard_load.LoadMeter(self.shards)
                tasks.append(
                    group.create_task(
                        shard_load.publish(meter, cluster.etcd, cluster.keys, membership),
                        name="shard load",
                    )
                )
            with contextlib.suppress(Stopped):
                await unless_stopped(stop, self._mark.check())
                await unless_stopped(stop, membership.join())
            tasks.append(group.create_task(self._mark.run(), name="disk mark"))
            tasks.append(group.create_task(membership.run(), name="membership"))
            told = [
                group.create_task(
                    self._watched.follow(lambda: membership.member is not None), name="readiness"
                ),
                group.create_task(disk.run(), name="disk state"),
            ]
            log.info("node %s serves at %s", self._id, address)
            await _first_of(stop, disk.no_room)
            for task in told:
                task.cancel()
            await asyncio.wait(told)  # so that they cannot overwrite what the node tells now
            await self._drain(membership)
            for task in tasks:
                task.cancel()

    async def _tick(self) -> None:
        """Do the work that follows the clock, until cancelled."""
        memory_max = self._config.memory_max_bytes
        saved_at = boottime()
        while True:
            await asyncio.sleep(_TICK_S)
            self.objects.tick()
            if memory_max and rss_bytes() > memory_max:
                self._engine.eviction.evict_share(0.05)
            if boottime() - saved_at > _SAVE_TIMES_S:
                saved_at = boottime()
                self.copies.save_times()

    async def _drain(self, membership: Membership) -> None:
        """Tell the cluster that the node stops, have other nodes take its shards, and let running
        turns end."""
        await self._watched.say(False)
        until = boottime() + self._config.drain_timeout_s
        if self._replication is not None:
            await self._give_up_shards(membership, until)
        log.info("stopping: finishing %d calls", self._engine.in_flight)
        self._peer.accepting = False
        await self._engine.drain(max(0.5, until - boottime()))

    async def _give_up_shards(self, membership: Membership, until: float) -> None:
        """Have other nodes take over this node's shards, and go on without its copies, so that
        callers do not notice its stop."""
        me = membership.member
        if me is None:
            return
        try:
            await membership.announce("stopping")
        except EtcdError as error:
            log.warning("cannot tell the cluster that this node stops: %s", error)
            return
        log.info("stopping: handing over %d shards", len(self.shards.owned()))
        while boottime() < until and others_could_take_over(self._watcher.view, me.id):
            await asyncio.sleep(0.02)

    async def _close(self, membership: Membership) -> None:
        await membership.leave()
        await self._server.stop(_STOP_GRACE_S)
        await self._streams.close()
        await self._watched.close()
        await self._dispatcher.close()
        await self._nodes.close()
        await self.copies.close()
        await self._engine.close()
        await self._flusher.close()
        self._watchdog.stop()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    def stats(self) -> admin_pb2.StatsResponse:
        """Return the counters since the start, and the present values of gauges."""
        engine = self._engine
        return admin_pb2.StatsResponse(
            process=process_stats(),
            turns=engine.turns,
            turns_failed=engine.outcomes.failed,
            entries=self._committer.entries,
            fsyncs=self._flusher.store.syncs,
            activations=len(self.objects.activations),
            evictions=engine.eviction.count,
            calls_in_flight=engine.in_flight,
            shards_serving=len(self.shards.serving(boottime())),
            cache_bytes=self.objects.cached_bytes,
            kinds=sorted(self._app.kinds),
            notice=self._controller.notice,
            clock_ahead_s=self._time.wall_ahead_s,
            **self.objects.counts(),
            **self.copies.stats(),
            slow_nodes=sorted(self.copies.slow),
        )


async def _first_of(*events: asyncio.Event) -> None:
    """Return when one of the events is set."""
    tasks = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
