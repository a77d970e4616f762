"""A cluster of `holdfast dev`, from its start to its end: it waits, watches and reloads."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc

from holdfast.channels import open_blocking_channel
from holdfast.cli.dev_changes import FILES_MAX, Changes
from holdfast.cli.dev_terminal import Terminal
from holdfast.local import READY_S, ClusterFailed, LocalCluster
from holdfast.tls import authorization
from holdfast.v1 import admin_pb2

_LOOK_S = 0.1
_CHANGES_S = 0.5
LOAD_S = 60.0
"""How long, in seconds, the import of new code may take."""
_UNSEEN_S = 3.0  # the wait for a restarted node if the gateway does not say whether it is back


class Session:
    """A cluster for development, from its start to its end.

    `gateway`: the gateway to ask for the cluster's status; `token`: the token to show to it.
    """

    def __init__(
        self, cluster: LocalCluster, told: Terminal, app: str, gateway: str, token: str | None
    ) -> None:
        self._cluster = cluster
        self._told = told
        self._app = app
        self._gateway = gateway
        self._token = token
        self._broken: set[str] = set()  # nodes that newer code has ended
        self.stopping = False

    def stop(self, *_: object) -> None:
        """Ask the session to end soon. Signals call this."""
        self.stopping = True

    def wait_ready(self) -> None:
        """Wait until calls reach a node, or the session must end. Raise ClusterFailed if a process
        ends, or after a minute.
        """
        answers = {"etcd": self._cluster.etcd, "the gateway": self._gateway}
        deadline = time.monotonic() + READY_S
        while not self.stopping and not self._cluster.ready(self._gateway):
            for name in [name for name, address in answers.items() if _listens(address)]:
                self._told.say(f"{name} is at {answers.pop(name)}", timed=True)
            self._told.look()
            if time.monotonic() > deadline:
                raise ClusterFailed(f"the cluster is not ready after {READY_S:.0f} s")

    def run(self, watched: Path | None, data: Path) -> None:
        """Show what the processes log, and reload changes below `watched`, until the session must
        end. Raise ClusterFailed.
        """
        changes = None if watched is None else Changes(watched, data)
        if changes is not None and changes.too_many:
            self._told.say(
                f"{watched} has more than {FILES_MAX} Python files, so changes are not reloaded"
            )
            changes = None
        look_at = 0.0
        while not self.stopping:
            self._told.look()
            self._check()
            if changes is not None and time.monotonic() >= look_at:
                look_at = time.monotonic() + _CHANGES_S
                if changed := changes.settled():
                    self._reload(changed)
            time.sleep(_LOOK_S)

    def _check(self) -> None:
        """Raise ClusterFailed if a process has ended by itself. A node that newer code has ended
        does not count: the user was told already.
        """
        why = self._cluster.ended(self._broken)
        if why is not None:
            raise ClusterFailed(why)

    def _reload(self, changed: list[Path]) -> None:
        names = ", ".join(path.name for path in changed[:3]) + (
            "" if len(changed) <= 3 else f" and {len(changed) - 3} more"
        )
        if why := self._cannot_be_loaded():
            self._told.say(
                f"{names} changed and cannot be loaded: the nodes keep the code that they have\n"
                f"{why}"
            )
            return
        if self.stopping:
            return
        began = time.monotonic()
        nodes = [name for name in self._cluster.processes if name[0] == "n"]
        self._told.say(f"{names} changed: restarting {', '.join(nodes)}")
        self._told.starting = True
        # Nodes that have ended start first: while they are away, no other node may stop.
        for name in sorted(nodes, key=lambda name: name not in self._broken):
            self._cluster.stop_one(name)
            self._told.look()
            self._broken.discard(name)
            self._cluster.restart(name)
            if not self._is_back(name):
                break
        else:
            self._told.say(f"reloaded in {time.monotonic() - began:.1f} s")
        self._told.look()
        self._told.starting = False

    def _cannot_be_loaded(self) -> str:
        """Return why the code as it is now cannot be loaded. Return an empty text if it can, or if
        the session must end.
        """
        command = [sys.executable, "-P", "-m", "holdfast.loading", self._app]
        with tempfile.TemporaryFile("w+") as said:
            check = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
            self._cluster.reap(check.pid)
            deadline = time.monotonic() + LOAD_S
            while check.poll() is None and not self.stopping and time.monotonic() < deadline:
                time.sleep(_LOOK_S)
            if check.poll() is None:
                check.kill()
                check.wait()
                return "" if self.stopping else f"its import did not end within {LOAD_S:.0f} s"
            said.seek(0)
            return said.read() if check.returncode else ""

    def _is_back(self, name: str) -> bool:
        """Wait until a restarted node has its copies again. Return False if the node or the session
        ends, or after a minute.
        """
        process = self._cluster.processes[name]
        deadline = time.monotonic() + READY_S
        unseen = time.monotonic() + _UNSEEN_S
        while not self.stopping and time.monotonic() < deadline:
            self._told.look()
            if process.poll() is not None:
                self._broken.add(name)
                self._told.say(
                    f"{name} ended with {process.returncode}: the others keep the code that they"
                    " have"
                )
                return False
            whole = self._whole()
            if whole or (whole is None and time.monotonic() > unseen):
                return True
            time.sleep(_LOOK_S)
        if not self.stopping:
            self._told.say(
                f"{name} is back, but not all of its copies after {READY_S:.0f} s: the others keep"
                " the code that they have"
            )
        return False

    def _whole(self) -> bool | None:
        """Return whether every node is there with its copies. Return None if the gateway does not
        allow us to ask.
        """
        with open_blocking_channel(self._gateway, self._cluster.gateway_tls) as channel:
            ask = channel.unary_unary(
                "/holdfast.v1.Admin/Status",
                request_serializer=admin_pb2.StatusRequest.SerializeToString,
                response_deserializer=admin_pb2.StatusResponse.FromString,
            )
            try:
                status = ask(
                    admin_pb2.StatusRequest(), timeout=2.0, metadata=authorization(self._token)
                )
            except grpc.RpcError as error:
                code: Any = error.code()
                return (
                    None
                    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
                    else False
                )
        nodes = sum(name[0] == "n" for name in self._cluster.processes) - len(self._broken)
        there = sum(node.state == "active" for node in status.nodes)
        # Owners may still change: while nodes restart they may have different kinds, and take
        # shards from each other.
        return there >= nodes and not status.moves.joining


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex((host, int(port))) == 0
