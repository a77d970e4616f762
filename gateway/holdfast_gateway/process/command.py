"""`holdfast gateway`: runs one gateway."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import uvloop
from holdfast import logs
from holdfast.channels import AddressInUse
from holdfast.options import certificates, common_options, explicit_settings, option
from holdfast.processes import raise_file_limit, told_as_refusal, use_batch_scheduling
from holdfast.tracing import TracingMissing
from holdfast_cluster.membership.etcd import etcd_tls
from holdfast_cluster.membership.member import Refused
from holdfast_cluster.routing.dispatch import DispatchLimits

from holdfast_gateway.admission.access import AccessError
from holdfast_gateway.edges.grpc import SESSIONS_MAX
from holdfast_gateway.process.config import GatewayConfig
from holdfast_gateway.process.server import GatewayServer


@dataclass(frozen=True)
class GatewayOptions:
    """What `holdfast gateway` is told, as its options are named."""

    listen: str
    reflection: bool
    in_flight_max: int
    sessions_max: int
    held_max: int
    client_ca: Path | None
    access: Path | None
    drain_timeout: float
    etcd_endpoints: str
    etcd_ca: Path | None
    etcd_cert: Path | None
    etcd_key: Path | None
    tls_cert: Path | None
    tls_key: Path | None
    tls_ca: Path | None
    tls_name: str | None
    insecure: bool
    health_port: int | None
    cluster: str
    shards: int | None
    replication: int | None
    min_in_sync: int | None
    points: int | None
    metrics_port: int | None
    trace: float
    log_level: str
    log_format: str


@click.command(short_help="Run a gateway: clients connect to it.")
@option("--listen", default="127.0.0.1:7400", help="Address for clients.")
@option("--reflection/--no-reflection", default=False, help="Serve gRPC server reflection.")
@option(
    "--in-flight-max", default=10_000, type=click.IntRange(1), help="Calls that may be under way."
)
@option(
    "--sessions-max",
    default=SESSIONS_MAX,
    type=click.IntRange(1),
    help="Sessions of clients that may be open.",
)
@option(
    "--held-max",
    default=10_000,
    type=click.IntRange(0),
    help="Calls that may wait for shards that are not served.",
)
@option(
    "--client-ca",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="CA of clients' certificates: each client has to show one.",
)
@option(
    "--access",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help=(
        "File that says who may call what (docs/security.md); followed when it changes. Default:"
        " everybody may everything."
    ),
)
@option("--drain-timeout", default=10.0, help="Seconds that calls get when the gateway is stopped.")
@common_options
def gateway(**given: Any) -> None:
    """Run a gateway. It keeps no state: run as many as you like.

    \b
    Example:
      holdfast gateway --listen 0.0.0.0:7400 --etcd-endpoints etcd-0:2379,etcd-1:2379
    """
    options = GatewayOptions(**given)
    try:
        config = GatewayConfig(
            etcd_endpoints=tuple(options.etcd_endpoints.split(",")),
            etcd_tls=etcd_tls(options.etcd_ca, options.etcd_cert, options.etcd_key),
            insecure=options.insecure,
            health_port=options.health_port,
            cluster=options.cluster,
            listen=options.listen,
            settings=explicit_settings(
                shards=options.shards,
                replication=options.replication,
                min_in_sync=options.min_in_sync,
                points=options.points,
            ),
            reflection=options.reflection,
            metrics_port=options.metrics_port,
            trace=options.trace,
            certificates=certificates(
                options.cluster,
                options.tls_cert,
                options.tls_key,
                options.tls_ca,
                options.tls_name,
                options.client_ca,
            ),
            access=options.access,
            drain_timeout_s=options.drain_timeout,
            sessions_max=options.sessions_max,
            dispatch=DispatchLimits(in_flight_max=options.in_flight_max, held_max=options.held_max),
        )
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    raise_file_limit()
    use_batch_scheduling()
    logs.configure("gateway", options.log_level, options.log_format)
    try:
        uvloop.run(_run(config))
    except Exception as error:
        raise told_as_refusal(
            error, (Refused, AddressInUse, AccessError, ValueError, TracingMissing)
        ) from None


async def _run(config: GatewayConfig) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await GatewayServer(config).run(stop)
