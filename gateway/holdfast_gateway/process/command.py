"""`holdfast gateway`: runs one gateway."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
from holdfast.channels import AddressInUse
from holdfast.options import common_options, option
from holdfast.processes import told_as_refusal
from holdfast.tracing import TracingMissing
from holdfast_cluster.membership.member import NotAccepted
from holdfast_cluster.process.run import ProcessOptions, run_until_signalled
from holdfast_cluster.routing.pending import DispatchLimits

from holdfast_gateway.admission.access import AccessError
from holdfast_gateway.edges.session import SESSIONS_MAX
from holdfast_gateway.process.config import GatewayConfig
from holdfast_gateway.process.server import GatewayServer


@dataclass(frozen=True, kw_only=True)
class GatewayOptions(ProcessOptions):
    """The options of `holdfast gateway`, under the options' names."""

    listen: str
    reflection: bool
    in_flight_max: int
    sessions_max: int
    held_max: int
    client_ca: Path | None
    access: Path | None
    drain_timeout: float


@click.command(short_help="Run a gateway: clients connect to it.")
@option("--listen", default="127.0.0.1:7400", help="Address for clients.")
@option("--reflection/--no-reflection", default=False, help="Serve gRPC server reflection.")
@option(
    "--in-flight-max",
    default=10_000,
    type=click.IntRange(1),
    help="How many calls may be under way.",
)
@option(
    "--sessions-max",
    default=SESSIONS_MAX,
    type=click.IntRange(1),
    help="How many sessions of clients may be open.",
)
@option(
    "--held-max",
    default=10_000,
    type=click.IntRange(0),
    help="How many calls may wait for shards that no node serves.",
)
@option(
    "--client-ca",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="CA of clients' certificates; with it each client has to show a certificate.",
)
@option(
    "--access",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help=(
        "File that says who may call what (docs/security.md). The gateway follows its changes."
        " Default: every caller may do everything."
    ),
)
@option(
    "--drain-timeout",
    default=10.0,
    help="Seconds that calls under way get to end when the gateway stops.",
)
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
            etcd_endpoints=options.endpoints,
            etcd_tls=options.etcd_tls(),
            insecure=options.insecure,
            health_port=options.health_port,
            cluster=options.cluster,
            listen=options.listen,
            settings=options.settings(),
            reflection=options.reflection,
            metrics_port=options.metrics_port,
            trace=options.trace,
            certificates=options.certificates(options.client_ca),
            access=options.access,
            drain_timeout_s=options.drain_timeout,
            sessions_max=options.sessions_max,
            dispatch=DispatchLimits(in_flight_max=options.in_flight_max, held_max=options.held_max),
        )
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    options.configure("gateway")
    try:
        run_until_signalled(partial(_serve, config))
    except Exception as error:
        raise told_as_refusal(
            error, (NotAccepted, AddressInUse, AccessError, ValueError, TracingMissing)
        ) from None


async def _serve(config: GatewayConfig, stop: asyncio.Event) -> None:
    await GatewayServer(config).run(stop)
