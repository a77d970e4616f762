"""A gateway process: it puts the parts together, and starts and stops them in order."""

from __future__ import annotations

import asyncio
import logging
import socket

import grpc
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection, reflection_pb2
from holdfast.channels import SERVER_OPTIONS, bind
from holdfast.processes import Stopped, unless_stopped
from holdfast.tracing import start as trace_process
from holdfast_cluster.clocks.cluster_time import Time
from holdfast_cluster.membership.guarded import GuardedEtcd
from holdfast_cluster.membership.lineage import Memory
from holdfast_cluster.membership.member import agree_on_settings
from holdfast_cluster.membership.view_watcher import ViewWatcher
from holdfast_cluster.placement.model import Keys
from holdfast_cluster.process.time_keeper import TimeKeeper, Voter
from holdfast_cluster.process.watched import Watched, settle_garbage
from holdfast_cluster.routing.dispatch import Dispatcher
from holdfast_cluster.routing.nodes import Nodes

from holdfast_gateway.admin.cluster import ClusterAdmin
from holdfast_gateway.admin.dead_letters import DeadLetterAdmin
from holdfast_gateway.admin.objects import ObjectAdmin
from holdfast_gateway.admin.service import AdminService
from holdfast_gateway.admission.access import AccessFile
from holdfast_gateway.admission.auth import Authenticator
from holdfast_gateway.edges.grpc import ObjectsService
from holdfast_gateway.process.config import GatewayConfig
from holdfast_gateway.process.metrics import GatewayMetrics

log = logging.getLogger(__name__)


class GatewayServer:
    """One gateway. It keeps no state, so a cluster can have any number of gateways."""

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then finish the calls under way.

        Raise AddressInUse. Raise NotAccepted when the given settings differ from the cluster's.
        Raise AccessError when the access file is wrong at the start.
        """
        config = self._config
        config.validate()
        access = None if config.access is None else AccessFile(config.access)
        certificates = config.certificates
        keys = Keys(config.cluster)
        etcd = GuardedEtcd(config.etcd_endpoints, keys, tls=config.etcd_tls)
        server = grpc.aio.server(options=SERVER_OPTIONS)
        credentials = (
            None if certificates is None else certificates.server_credentials(for_clients=True)
        )
        # Bind before waiting for the cluster, so that a port in use is reported at once.
        port = bind(server, config.listen, credentials)
        try:
            settings = await unless_stopped(
                stop, agree_on_settings(etcd, keys, None, config.settings)
            )
            await self._serve(stop, etcd, keys, settings.id, server, port, access)
        except Stopped:
            log.info("stopped before the cluster was formed")
        finally:
            await server.stop(None)
            await etcd.close()

    async def _serve(
        self,
        stop: asyncio.Event,
        etcd: GuardedEtcd,
        keys: Keys,
        cluster: str,
        server: grpc.aio.Server,
        port: int,
        access: AccessFile | None,
    ) -> None:
        config = self._config
        watcher = ViewWatcher(
            etcd, keys, Memory(cluster), f"a gateway at {socket.gethostname()}:{port}"
        )
        certificates = config.certificates
        dispatcher = Dispatcher(watcher, config.dispatch, certificates=certificates)
        authenticator = None if access is None else Authenticator(access)
        tracing = (
            None
            if not config.trace
            else trace_process("holdfast-gateway", f"{socket.gethostname()}:{port}", config.trace)
        )
        time = Time()
        objects = ObjectsService(dispatcher, authenticator, tracing, time, config.sessions_max)
        nodes = Nodes(watcher, certificates)
        admin = AdminService(
            (
                ClusterAdmin(watcher, nodes, dispatcher, etcd, keys, config.cluster),
                ObjectAdmin(watcher, nodes),
                DeadLetterAdmin(watcher, nodes),
            ),
            authenticator,
            objects.admission.refused,
        )
        server.add_generic_rpc_handlers((objects.handlers(), admin.handlers()))
        watched = Watched(config.listen.rpartition(":")[0], config.health_port, config.metrics_port)
        watched.serve_health(server)
        await watched.begin()
        if config.reflection:
            _enable_reflection(server)
        settle_garbage()
        try:
            metrics = GatewayMetrics(
                objects, dispatcher, watcher, watched.loop_lag, certificates, access
            )
            await watched.listen(metrics.collect)
            async with asyncio.TaskGroup() as group:
                readiness = group.create_task(watched.follow(dispatcher.ready), name="readiness")
                tasks = [
                    readiness,
                    group.create_task(watcher.run(), name="view watcher"),
                    group.create_task(
                        TimeKeeper(time, Voter(), watcher, nodes).run(), name="cluster time"
                    ),
                    group.create_task(watched.measure(), name="loop lag"),
                    *(
                        []
                        if certificates is None
                        else [group.create_task(certificates.watch(), name="certificates")]
                    ),
                    *([] if access is None else [group.create_task(access.watch(), name="access")]),
                ]
                try:
                    await unless_stopped(
                        stop, watcher.until(lambda view: view.settings is not None)
                    )
                except Stopped:
                    log.info("stopped before the first view of the cluster came")
                else:
                    await server.start()
                    log.info("gateway serves at %s:%d", config.listen.rpartition(":")[0], port)
                    await stop.wait()
                readiness.cancel()
                objects.admission.draining = True
                await watched.say(False)
                await self._finish_calls(dispatcher)
                for task in tasks:
                    task.cancel()
        finally:
            await server.stop(0.2)
            await watched.close()
            await dispatcher.close()
            await nodes.close()
            if tracing is not None:
                await asyncio.to_thread(tracing.close)
        log.info("stopped")

    async def _finish_calls(self, dispatcher: Dispatcher) -> None:
        """Wait for the calls under way, for the drain timeout at most."""
        log.info("stopping: finishing %d calls", dispatcher.in_flight)
        loop = asyncio.get_running_loop()
        until = loop.time() + self._config.drain_timeout_s
        while dispatcher.in_flight and loop.time() < until:
            await asyncio.sleep(0.02)


_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"


def _enable_reflection(server: grpc.aio.Server) -> None:
    names = (
        "holdfast.v1.Objects",
        "holdfast.v1.Admin",
        health.SERVICE_NAME,
        reflection.SERVICE_NAME,
        _REFLECTION_V1,
    )
    reflection.enable_server_reflection(names, server)
    server.add_generic_rpc_handlers((_reflection_v1(names),))


def _reflection_v1(names: tuple[str, ...]) -> grpc.GenericRpcHandler:
    """Return a handler for reflection under its final name, v1, which newer tools use.

    grpcio-reflection serves only v1alpha, which has the same messages.
    """
    servicer = reflection.aio.ReflectionServicer(names)
    return grpc.method_handlers_generic_handler(
        _REFLECTION_V1,
        {
            "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(
                servicer.ServerReflectionInfo,
                request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
                response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
            )
        },
    )
