"""`holdfast dev`: a whole cluster on this machine, for development."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click

from holdfast.loading import AppError, load_app
from holdfast.local import READY_S, ClusterFailed, LocalCluster
from holdfast.options import option


@click.command(short_help="Run a whole cluster on this machine.")
@click.argument("app")
@option("--nodes", default=3, type=click.IntRange(1, 20), help="Nodes to run.")
@option("--replication", type=click.IntRange(1, 7), help="Copies of each shard. Default: 3, or as many as there are nodes.")
@option("--gateways", default=1, type=click.IntRange(1, 20), help="Gateways to run, at PORT and the ports after it.")
@option("--port", default=7400, type=click.IntRange(1, 65_515), help="The first gateway's port.")
@option(
    "--metrics-port",
    type=click.IntRange(1, 65_515),
    help="Pages for Prometheus: the gateways' at this port and those after it, then the nodes'. Default: none.",
)
@option("--data", type=click.Path(path_type=Path, file_okay=False), help="Where data stays. Default: a temporary folder.")
def dev(app: str, nodes: int, replication: int | None, gateways: int, port: int, metrics_port: int | None, data: Path | None) -> None:
    """Run etcd, nodes and gateways for APP on loopback until Ctrl-C, which ends every process that was started.

    \b
    Example:
      holdfast dev shop/app.py --nodes 3 --data ./dev-data
    """
    try:
        load_app(app)
    except AppError as error:
        raise click.ClickException(str(error)) from None
    folder = data or Path(tempfile.mkdtemp(prefix="holdfast-dev-"))
    if data is not None and (known := _nodes_of(data)) and known != nodes:
        raise click.ClickException(f"{data} has {known} nodes, and what they own is with them: use --nodes {known}")
    copies = replication or min(nodes, 3)
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    cluster = LocalCluster(folder)
    try:
        cluster.start_etcd()
        pages = iter(() if metrics_port is None else range(metrics_port, metrics_port + gateways + nodes))
        for i in range(gateways):
            cluster.start_gateway(f"gateway{i + 1}", port + i, *_page(pages))
        for i in range(1, nodes + 1):
            cluster.start_node(f"n{i}", app, "--members-min", str(nodes), "--replication", str(copies), *_page(pages))
        deadline = time.monotonic() + READY_S
        while not stopping and not cluster.ready(f"127.0.0.1:{port}"):
            if time.monotonic() > deadline:
                raise ClusterFailed(f"not ready after {READY_S:.0f} s")
        if not stopping:
            what = f"{nodes} nodes, {copies} copies of each shard"
            click.echo(f"ready: {what}, gateway at 127.0.0.1:{port}, etcd at {cluster.etcd}, logs in {folder / 'logs'}")
        while not stopping:
            if why := cluster.ended():
                raise ClusterFailed(why)
            time.sleep(0.1)
    except ClusterFailed as failed:
        where, data = folder / "logs", folder  # they stay, for whoever looks for the reason
        raise click.ClickException(f"{failed}\n(logs: {where})") from None
    finally:
        cluster.stop()
        if data is None:
            shutil.rmtree(folder, ignore_errors=True)


def _page(ports: Iterator[int]) -> tuple[str, ...]:
    port = next(ports, None)
    return () if port is None else ("--metrics-port", str(port))


def _nodes_of(data: Path) -> int:
    """How many nodes a folder was used with; 0 when it is new."""
    return sum(1 for entry in data.glob("n*") if entry.name[1:].isdigit())
