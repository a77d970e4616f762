"""Real processes: etcd, nodes and a gateway on free ports of 127.0.0.1, stopped by process id."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import holdfast
from holdfast.local import LocalCluster, free_port

APP = str(Path(__file__).parent / "cluster_app.py")
BENCH_APP = "holdfast.bench_app"


class Processes(LocalCluster):
    """A cluster of real processes that a test starts, kills and reads the logs of."""

    def __init__(self, folder: Path, replication: int = 1) -> None:
        super().__init__(folder)
        self.replication = replication
        self.gateway_port = free_port()

    @property
    def gateway(self) -> str:
        return f"127.0.0.1:{self.gateway_port}"

    def start_all(self, *node_options: str, nodes: int = 1, app: str = APP) -> None:
        """etcd, nodes n1 and on, and a gateway."""
        self.start_etcd()
        for i in range(1, nodes + 1):
            self.node(f"n{i}", "--members-min", str(nodes), *node_options, app=app)
        self.front()

    def node(self, name: str, *options: str, app: str = APP) -> None:
        self.start_node(name, app, "--replication", str(self.replication), *options)

    def front(self, *options: str) -> None:
        self.start_gateway("gateway", self.gateway_port, *options)

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        process = self.processes.pop(name)
        process.send_signal(number)
        process.wait(30)

    def said(self, name: str) -> str:
        """What a process has logged."""
        return self.log(name).read_text()

    def exit_code(self, name: str, timeout_s: float = 30) -> int:
        code = self.processes[name].wait(timeout_s)
        del self.processes[name]  # only now: one that does not end is to be stopped with the others
        return code

    def connect(self, timeout: float = 40) -> holdfast.Client:
        return holdfast.connect(self.gateway, timeout=timeout)

    def ask(self, *arguments: str) -> tuple[int, Any]:
        """Run a command against the gateway with --json: its exit code and what it printed."""
        command = (
            sys.executable,
            "-m",
            "holdfast",
            *arguments,
            "--gateway",
            self.gateway,
            "--json",
        )
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.returncode, json.loads(done.stdout)

    def stats(self, node: str = "n1") -> Any:
        """What a node counts, as Status shows it. A node that is busy may not answer at once."""
        for _ in range(20):
            _, status = self.ask("status")
            found = next(n["stats"] for n in status["nodes"] if n["id"].startswith(f"{node}-"))
            if int(found["process"]["pid"]):
                return found
            time.sleep(0.5)
        raise AssertionError(f"{node} does not tell its counts: {status}")

    def stop(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
        super().stop()


def run(
    *arguments: str, timeout: float = 60, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a holdfast command to its end."""
    command = (sys.executable, "-m", "holdfast", *arguments)
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env={**os.environ, **environment}
    )


def bare_call(
    channel: grpc.aio.Channel, path: str
) -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
    """A unary method that takes and returns bytes as they are."""
    return channel.unary_unary(path)


def bare_stream(
    channel: grpc.aio.Channel, path: str
) -> grpc.aio.StreamStreamMultiCallable[bytes, bytes]:
    """A method with a stream each way, of bytes as they are."""
    return channel.stream_stream(path)
