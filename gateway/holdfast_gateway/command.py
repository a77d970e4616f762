"""`holdfast gateway`: runs one gateway."""

from __future__ import annotations

import asyncio
import signal

import click
import uvloop
from holdfast import logs
from holdfast.channels import AddressInUse
from holdfast.options import common_options, explicit_settings, option
from holdfast_cluster.dispatch import DispatchLimits
from holdfast_cluster.membership import Refused

from holdfast_gateway.config import GatewayConfig
from holdfast_gateway.server import GatewayServer


@click.command(short_help="Run a gateway: clients connect to it.")
@option("--listen", default="127.0.0.1:7400", help="Address for clients.")
@option("--reflection/--no-reflection", default=False, help="Serve gRPC server reflection.")
@option("--in-flight-max", default=10_000, help="Calls that may be under way.")
@option("--held-max", default=10_000, help="Calls that may wait for shards that are not served.")
@option("--drain-timeout", default=10.0, help="Seconds that calls get when the gateway is stopped.")
@common_options
def gateway(
    listen: str,
    reflection: bool,
    in_flight_max: int,
    held_max: int,
    drain_timeout: float,
    etcd_endpoints: str,
    cluster: str,
    shards: int | None,
    replication: int | None,
    min_in_sync: int | None,
    points: int | None,
    metrics_port: int | None,
    log_level: str,
    log_format: str,
) -> None:
    """Run a gateway. It keeps no state: run as many as you like.

    \b
    Example:
      holdfast gateway --listen 0.0.0.0:7400 --etcd-endpoints etcd-0:2379,etcd-1:2379
    """
    config = GatewayConfig(
        etcd_endpoints=tuple(etcd_endpoints.split(",")),
        cluster=cluster,
        listen=listen,
        settings=explicit_settings(shards=shards, replication=replication, min_in_sync=min_in_sync, points=points),
        reflection=reflection,
        metrics_port=metrics_port,
        drain_timeout_s=drain_timeout,
        dispatch=DispatchLimits(in_flight_max=in_flight_max, held_max=held_max),
    )
    logs.configure("gateway", log_level, log_format)
    try:
        uvloop.run(_run(config))
    except* (Refused, AddressInUse, ValueError) as group:
        raise click.ClickException("; ".join(str(error) for error in group.exceptions)) from None


async def _run(config: GatewayConfig) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await GatewayServer(config).run(stop)
