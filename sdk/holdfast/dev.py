"""`holdfast dev`: a whole cluster on this machine, for development."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
from pathlib import Path

import click

from holdfast.loading import AppError, load_app
from holdfast.local import LocalCluster
from holdfast.options import option


@click.command(short_help="Run a whole cluster on this machine.")
@click.argument("app")
@option("--nodes", default=3, type=click.IntRange(1, 20), help="Nodes to run.")
@option("--gateways", default=1, type=click.IntRange(1, 20), help="Gateways to run, at PORT and the ports after it.")
@option("--port", default=7400, help="The first gateway's port.")
@option("--data", type=click.Path(path_type=Path, file_okay=False), help="Where data stays. Default: a temporary folder.")
def dev(app: str, nodes: int, gateways: int, port: int, data: Path | None) -> None:
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
    try:
        asyncio.run(_run(LocalCluster(folder), app, nodes, gateways, port))
    finally:
        if data is None:
            shutil.rmtree(folder, ignore_errors=True)


async def _run(cluster: LocalCluster, app: str, nodes: int, gateways: int, port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        cluster.start_etcd()
        for i in range(1, nodes + 1):
            cluster.start_node(f"n{i}", app, "--members-min", str(nodes))
        for i in range(gateways):
            cluster.start_gateway(f"gateway{i + 1}", port + i)
        ready = asyncio.create_task(cluster.ready(f"127.0.0.1:{port}"))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({ready, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            await ready
            logs = cluster.folder / "logs"
            click.echo(f"ready: {nodes} nodes, gateway at 127.0.0.1:{port}, etcd at {cluster.etcd}, logs in {logs}")
        while not stop.is_set():
            if why := cluster.ended():
                raise click.ClickException(why)
            await asyncio.wait({stopped}, timeout=0.1)
        ready.cancel()
    finally:
        cluster.stop()
