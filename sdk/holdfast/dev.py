"""`holdfast dev`: a whole cluster on this machine, for development."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from pathlib import Path

import click

from holdfast.loading import AppError, load_app
from holdfast.local import READY_S, LocalCluster
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
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    folder = data or Path(tempfile.mkdtemp(prefix="holdfast-dev-"))
    cluster = LocalCluster(folder)
    try:
        cluster.start_etcd()
        for i in range(1, nodes + 1):
            cluster.start_node(f"n{i}", app, "--members-min", str(nodes))
        for i in range(gateways):
            cluster.start_gateway(f"gateway{i + 1}", port + i)
        deadline = time.monotonic() + READY_S
        while not stopping and not cluster.ready(f"127.0.0.1:{port}"):
            if time.monotonic() > deadline:
                raise click.ClickException(f"not ready after {READY_S:.0f} s; look into {folder / 'logs'}")
        if not stopping:
            click.echo(f"ready: {nodes} nodes, gateway at 127.0.0.1:{port}, etcd at {cluster.etcd}, logs in {folder / 'logs'}")
        while not stopping:
            if why := cluster.ended():
                raise click.ClickException(why)
            time.sleep(0.1)
    finally:
        cluster.stop()
        if data is None:
            shutil.rmtree(folder, ignore_errors=True)
