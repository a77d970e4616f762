"""Real processes: etcd, nodes and a gateway on free ports of 127.0.0.1, stopped by process id."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

APP = Path(__file__).parent / "app.py"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Processes:
    """A cluster of real processes below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.etcd_port, self.gateway_port = free_port(), free_port()
        self.node_ports: dict[str, int] = {}

    @property
    def gateway(self) -> str:
        return f"127.0.0.1:{self.gateway_port}"

    def start(self, name: str, *command: str) -> None:
        log = (self.folder / f"{name}.log").open("ab")
        self.running[name] = subprocess.Popen(command, stdout=log, stderr=log)

    def start_etcd(self) -> None:
        client, peer = f"http://127.0.0.1:{self.etcd_port}", f"http://127.0.0.1:{free_port()}"
        etcd = os.environ.get("HOLDFAST_ETCD") or str(Path(sys.executable).parent / "etcd")
        self.start(
            "etcd", etcd, "--name", "e", "--data-dir", str(self.folder / "etcd"), "--log-level", "warn",
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"e={peer}",
        )  # fmt: skip

    def start_node(self, name: str, *options: str) -> None:
        port = self.node_ports.setdefault(name, free_port())
        self.start(
            name, sys.executable, "-m", "holdfast", "node", str(APP), "--data", str(self.folder / name), "--name", name,
            "--listen", f"127.0.0.1:{port}", "--etcd-endpoints", f"127.0.0.1:{self.etcd_port}", *options,
        )  # fmt: skip

    def start_gateway(self) -> None:
        self.start(
            "gateway", sys.executable, "-m", "holdfast", "gateway", "--listen", self.gateway, "--reflection",
            "--etcd-endpoints", f"127.0.0.1:{self.etcd_port}",
        )  # fmt: skip

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        process = self.running.pop(name)
        process.send_signal(number)
        process.wait(20)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def wait_for_exit(self, name: str, timeout_s: float = 20) -> int:
        process = self.running.pop(name)
        return process.wait(timeout_s)

    def stop(self) -> None:
        for process in self.running.values():
            process.send_signal(signal.SIGCONT)
            process.terminate()
        deadline = time.monotonic() + 15
        for process in self.running.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    cluster = Processes(tmp_path)
    try:
        yield cluster
    finally:
        cluster.stop()
