"""`holdfast dev`: a whole cluster on this machine, for development: what its processes say, and the
newest code, reloaded."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import grpc
import msgspec

from holdfast.channels import open_blocking_channel
from holdfast.loading import AppError, load_app, source_folder
from holdfast.local import READY_S, ClusterFailed, LocalCluster
from holdfast.options import certificates, option
from holdfast.tls import TLS, authorization
from holdfast.v1 import admin_pb2

_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
_LOOK_S = 0.1
_CHANGES_S = 0.5
_FILES_MAX = 10_000
LOAD_S = 60.0
"""How long new code may take to be imported."""
_UNSEEN_S = 3.0  # how long a restarted node is given when nobody tells whether it is back
_COLORS = {"warning": "yellow", "error": "red", "critical": "red"}
_OWN = ("holdfast", "etcd")


@dataclass(frozen=True)
class DevOptions:
    """What `holdfast dev` is told, as its options are named."""

    app: str
    nodes: int
    replication: int | None
    gateways: int
    port: int
    metrics_port: int | None
    data: Path | None
    reload: bool
    verbose: bool
    access: Path | None
    token_file: Path | None
    tls_cert: Path | None
    tls_key: Path | None
    tls_ca: Path | None
    tls_name: str | None
    client_ca: Path | None


@click.command(short_help="Run a whole cluster on this machine.")
@click.argument("app")
@option("--nodes", default=3, type=click.IntRange(1, 20), help="Nodes to run.")
@option(
    "--replication",
    type=click.IntRange(1, 7),
    help="Copies of each shard. Default: 3, or as many as there are nodes.",
)
@option(
    "--gateways",
    default=1,
    type=click.IntRange(1, 20),
    help="Gateways to run, at PORT and the ports after it.",
)
@option("--port", default=7400, type=click.IntRange(1, 65_515), help="The first gateway's port.")
@option(
    "--metrics-port",
    type=click.IntRange(1, 65_515),
    help=(
        "Pages for Prometheus: the gateways' at this port and those after it, then the nodes'."
        " Default: none."
    ),
)
@option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where data stays. Default: a temporary folder.",
)
@option(
    "--reload/--no-reload",
    default=True,
    help="Restart the nodes, one after the other, when a Python file of the app changes.",
)
@option(
    "--verbose",
    is_flag=True,
    default=False,
    help="Show all that Holdfast and etcd log, not only what is wrong.",
)
@option(
    "--access",
    type=_FILE,
    help="File that says who may call what, for the gateways; see docs/security.md.",
)
@option(
    "--token-file",
    type=_FILE,
    help="File with a token that may ask for the cluster's status, where --access asks for one.",
)
@option("--tls-cert", type=_FILE, help="Certificate of all processes, PEM. See docs/security.md.")
@option("--tls-key", type=_FILE, help="Its key.")
@option(
    "--tls-ca",
    type=_FILE,
    help="CA of the certificates of the cluster's processes, and of this command's connections.",
)
@option("--tls-name", help="The DNS name that those have. Default: default.holdfast.")
@option("--client-ca", type=_FILE, help="CA of clients' certificates, for the gateways.")
def dev(**given: Any) -> None:
    """Run etcd, nodes and gateways for APP on loopback until Ctrl-C, which ends every process that
    was started.

    What handlers log and print, and what fails, is shown as it happens, and kept in files. When a
    Python file in the app's folder is saved, the nodes are restarted one after the other. They keep
    their state. Code that cannot be loaded is shown, and not taken.

    \b
    Examples:
      holdfast dev shop/app.py --nodes 3 --data ./dev-data
      holdfast dev shop.app --no-reload
    """
    options = DevOptions(**given)
    data = options.data
    try:
        kinds = load_app(options.app).kinds
    except AppError as error:
        raise click.ClickException(str(error)) from None
    folder = data or Path(tempfile.mkdtemp(prefix="holdfast-dev-"))
    if data is not None and (known := _nodes_of(data)) and known != options.nodes:
        raise click.ClickException(
            f"{data} has {known} nodes, and what they own is with them: use --nodes {known}"
        )
    # what is wrong with them is told now
    certificates(
        "default",
        options.tls_cert,
        options.tls_key,
        options.tls_ca,
        options.tls_name,
        options.client_ca,
    )
    tls = _options(
        ("--tls-cert", options.tls_cert),
        ("--tls-key", options.tls_key),
        ("--tls-ca", options.tls_ca),
        ("--tls-name", options.tls_name),
    )
    copies = options.replication or min(options.nodes, 3)
    cluster = LocalCluster(folder)
    if options.tls_ca is not None:
        shown = (
            (options.tls_cert, options.tls_key) if options.client_ca is not None else (None, None)
        )
        cluster.gateway_tls = TLS(options.tls_ca, *shown, options.tls_name or "default.holdfast")
    told = Terminal(cluster, options.verbose)
    session = _Session(
        cluster,
        told,
        options.app,
        f"127.0.0.1:{options.port}",
        None if options.token_file is None else options.token_file.read_text().strip(),
    )
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, session.stop)
    try:
        what = f"etcd, {_number(options.gateways, 'gateway')} and {_number(options.nodes, 'node')}"
        told.say(f"starting {what} for {options.app}: {', '.join(sorted(kinds))}")
        cluster.start_etcd()
        pages = iter(
            ()
            if options.metrics_port is None
            else range(
                options.metrics_port, options.metrics_port + options.gateways + options.nodes
            )
        )
        own = _options(("--access", options.access), ("--client-ca", options.client_ca))
        for i in range(options.gateways):
            cluster.start_gateway(f"gateway{i + 1}", options.port + i, *tls, *own, *_page(pages))
        for i in range(1, options.nodes + 1):
            settings = ("--members-min", str(options.nodes), "--replication", str(copies))
            cluster.start_node(f"n{i}", options.app, *settings, *tls, *_page(pages))
        session.wait_ready()
        if not session.stopping:
            what = f"{_number(options.nodes, 'node')}, {copies} copies of each shard"
            told.say(
                f"ready: {what}, gateway at 127.0.0.1:{options.port}, etcd at {cluster.etcd},"
                f" logs in {folder / 'logs'}",
                timed=True,
            )
        told.look()
        told.starting = False
        session.run(source_folder(options.app) if options.reload else None, folder)
    except ClusterFailed as failed:
        where, data = folder / "logs", folder  # they stay, for whoever looks for the reason
        raise click.ClickException(f"{failed}\n(logs: {where})") from None
    finally:
        told.look()
        told.starting = True  # all end at once, and cannot take leave of each other
        cluster.stop()
        told.look()
        if data is None:
            shutil.rmtree(folder, ignore_errors=True)


class _Session:
    """A cluster for development, from its start to its end. `gateway`: where to ask how it is;
    `token`: what to show there."""

    def __init__(
        self, cluster: LocalCluster, told: Terminal, app: str, gateway: str, token: str | None
    ) -> None:
        self._cluster = cluster
        self._told = told
        self._app = app
        self._gateway = gateway
        self._token = token
        self._broken: set[str] = set()  # nodes that ended by themselves with newer code
        self.stopping = False

    def stop(self, *_: object) -> None:
        """End soon; called by signals."""
        self.stopping = True

    def wait_ready(self) -> None:
        """Return when calls reach a node, or the session is to end. Raises ClusterFailed when a
        process ends, or after a minute."""
        answers = {"etcd": self._cluster.etcd, "the gateway": self._gateway}
        deadline = time.monotonic() + READY_S
        while not self.stopping and not self._cluster.ready(self._gateway):
            for name in [name for name, address in answers.items() if _listens(address)]:
                self._told.say(f"{name} is at {answers.pop(name)}", timed=True)
            self._told.look()
            if time.monotonic() > deadline:
                raise ClusterFailed(f"not ready after {READY_S:.0f} s")

    def run(self, watched: Path | None, data: Path) -> None:
        """Show what is said, and reload what is changed below `watched`, until the session is to
        end. Raises ClusterFailed."""
        changes = None if watched is None else Changes(watched, data)
        if changes is not None and changes.too_many:
            self._told.say(
                f"{watched} has more than {_FILES_MAX} Python files: they are not watched"
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
        """Raises ClusterFailed when a process has ended by itself, but for a node that newer code
        has ended: that is told once."""
        why = self._cluster.ended(self._broken)
        if why is not None:
            raise ClusterFailed(why)

    def _reload(self, changed: list[Path]) -> None:
        names = ", ".join(path.name for path in changed[:3]) + (
            "" if len(changed) <= 3 else f" and {len(changed) - 3} more"
        )
        if why := self._cannot_be_loaded():
            self._told.say(
                f"{names} changed, and cannot be loaded: the nodes go on with what they have\n{why}"
            )
            return
        if self.stopping:
            return
        began = time.monotonic()
        nodes = [name for name in self._cluster.processes if name[0] == "n"]
        self._told.say(f"{names} changed: restarting {', '.join(nodes)}")
        self._told.starting = True
        # What has ended is started first: with it, the others can be spared.
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
        """Why the code as it is now cannot be loaded; empty when it can, or the session is
        to end."""
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
                return (
                    "" if self.stopping else f"it has not ended being imported after {LOAD_S:.0f} s"
                )
            said.seek(0)
            return said.read() if check.returncode else ""

    def _is_back(self, name: str) -> bool:
        """Wait until a node that was restarted has its copies again; False when it ends, or the
        session does."""
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
        """Whether every node is there with its copies; None when we may not ask."""
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
        # Nodes may differ in their kinds while they are restarted, and ask shards of each other:
        # that need not end.
        return there >= nodes and not status.moves.joining


class Changes:
    """The Python files below a folder, without those in hidden folders, virtual environments and
    `data`: what becomes of them."""

    def __init__(self, folder: Path, data: Path) -> None:
        self._folder = folder
        self._data = data.resolve()
        self._known = self._files()
        self._seen = self._known
        self.too_many = len(self._known) > _FILES_MAX

    def settled(self) -> list[Path]:
        """What has changed since it was asked last; nothing while it is still changing."""
        now = self._files()
        before, self._seen = self._seen, now
        if now != before or now == self._known:
            return []
        changed = sorted({path for path, _ in set(now.items()) ^ set(self._known.items())})
        self._known = now
        return changed

    def _files(self) -> dict[Path, tuple[int, int]]:
        found: dict[Path, tuple[int, int]] = {}
        for folder, below, files in os.walk(self._folder):
            below[:] = [name for name in below if self._is_source(Path(folder, name), name)]
            for name in files:
                if name.endswith(".py"):
                    path = Path(folder, name)
                    try:
                        about = path.stat()
                    except OSError:
                        continue
                    found[path] = about.st_mtime_ns, about.st_size
            if len(found) > _FILES_MAX:
                break
        return found

    def _is_source(self, path: Path, name: str) -> bool:
        return (
            not name.startswith(".")
            and name not in ("__pycache__", "node_modules")
            and not (path / "pyvenv.cfg").exists()
            and path != self._data
        )


class Terminal:
    """Shows what the processes of a cluster say, from their logs, as it comes."""

    def __init__(
        self, cluster: LocalCluster, verbose: bool, echo: Callable[[str], None] = click.echo
    ) -> None:
        self._cluster = cluster
        self._verbose = verbose
        self._echo = echo
        self._began = time.monotonic()
        self._read: dict[str, int] = {}
        self._rest: dict[str, bytes] = {}
        self.starting = True
        """While a cluster starts its processes wait for each other, which is no reason to warn."""

    def say(self, text: str, timed: bool = False) -> None:
        """Say something of this command's own; `timed`: with how long it took to come so far."""
        self._echo(f"{text} ({time.monotonic() - self._began:.1f} s)" if timed else text)

    def look(self) -> None:
        """Show what came since the last look."""
        for name in list(self._cluster.processes):
            start = self._read.get(name, self._cluster.log_from(name))
            try:
                with self._cluster.log(name).open("rb") as log:
                    log.seek(start)
                    said = log.read()
            except OSError:
                continue
            self._read[name] = start + len(said)
            *lines, rest = (self._rest.get(name, b"") + said).split(b"\n")
            self._rest[name] = rest
            for line in lines:
                if (shown := self._shown(name, line.decode(errors="replace"))) is not None:
                    self._echo(shown)

    def _shown(self, name: str, line: str) -> str | None:
        """A line of a process's log as people read it; None when it is not to be shown."""
        head = click.style(f"{name:<8}", fg="cyan")
        try:
            record = msgspec.json.decode(line)
            level, message = (
                str(record["level"]).lower(),
                str(record.get("message", record.get("msg", ""))),
            )
        except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
            return None if name == "etcd" and not self._verbose else f"{head} | {line}"  # printed
        least = ("error", "critical") if self.starting else _COLORS
        logger = str(record.get("logger"))
        own = name == "etcd" or (logger.startswith(_OWN) and logger != "holdfast.objects")
        if (
            not self._verbose
            and own
            and level not in (("error", "fatal", "panic") if name == "etcd" else least)
        ):
            return None
        where = "/".join(str(record[field]) for field in ("kind", "key") if field in record)
        if where and "method" in record:
            where = f"{where}.{record['method']}"
        if where and not message.startswith(where):
            message = f"{where}: {message}"
        if "request_id" in record:
            message += click.style(f" (request {record['request_id']})", dim=True)
        if level in _COLORS:
            message = f"{click.style(level.upper(), fg=_COLORS[level])} {message}"
        trace = str(record.get("traceback", ""))
        return "\n".join(
            [
                f"{head} {_clock(record)} {message}",
                *(f"{head} | {one}" for one in trace.splitlines()),
            ]
        )


def _clock(record: dict[str, Any]) -> str:
    try:
        return (
            datetime.fromisoformat(str(record.get("time", record.get("ts"))))
            .astimezone()
            .strftime("%H:%M:%S")
        )
    except ValueError:
        return "--:--:--"


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex((host, int(port))) == 0


def _options(*given: tuple[str, Any]) -> tuple[str, ...]:
    """Options for another command: those that were given."""
    return tuple(part for name, value in given if value is not None for part in (name, str(value)))


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _page(ports: Iterator[int]) -> tuple[str, ...]:
    port = next(ports, None)
    return () if port is None else ("--metrics-port", str(port))


def _nodes_of(data: Path) -> int:
    """How many nodes a folder was used with; 0 when it is new."""
    return sum(1 for entry in data.glob("n*") if entry.name[1:].isdigit())
