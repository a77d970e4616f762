"""`holdfast dev`: a whole cluster on this machine, for development. It shows what the processes
log, and reloads changed code.
"""

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
"""How long, in seconds, the import of new code may take."""
_UNSEEN_S = 3.0  # the wait for a restarted node if the gateway does not say whether it is back
_COLORS = {"warning": "yellow", "error": "red", "critical": "red"}
_OWN = ("holdfast", "etcd")


@dataclass(frozen=True)
class DevOptions:
    """The options of `holdfast dev`."""

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
@option("--nodes", default=3, type=click.IntRange(1, 20), help="How many nodes to run.")
@option(
    "--replication",
    type=click.IntRange(1, 7),
    help="Copies of each shard. Default: 3, or as many as there are nodes.",
)
@option(
    "--gateways",
    default=1,
    type=click.IntRange(1, 20),
    help="How many gateways to run, at --port and the ports after it.",
)
@option("--port", default=7400, type=click.IntRange(1, 65_515), help="The first gateway's port.")
@option(
    "--metrics-port",
    type=click.IntRange(1, 65_515),
    help=(
        "First port of the metrics pages for Prometheus. The gateways take this port and the next"
        " ones, then the nodes. Default: no pages."
    ),
)
@option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that keeps data and logs. Default: a temporary folder.",
)
@option(
    "--reload/--no-reload",
    default=True,
    help="Restart the nodes, one after the other, if a Python file of the app changes.",
)
@option(
    "--verbose",
    is_flag=True,
    default=False,
    help="Show all that Holdfast and etcd log, not only problems.",
)
@option(
    "--access",
    type=_FILE,
    help="Access file for the gateways: callers and their rights. See docs/security.md.",
)
@option(
    "--token-file",
    type=_FILE,
    help="File with a token that may ask for the cluster's status; needed if --access demands one.",
)
@option("--tls-cert", type=_FILE, help="Certificate of all processes, PEM. See docs/security.md.")
@option("--tls-key", type=_FILE, help="Key of --tls-cert, PEM.")
@option(
    "--tls-ca",
    type=_FILE,
    help="CA of the certificates of all processes, PEM; this command connects with it too.",
)
@option(
    "--tls-name",
    help="DNS name that the certificates of all processes have. Default: default.holdfast.",
)
@option("--client-ca", type=_FILE, help="CA of clients' certificates, for the gateways, PEM.")
def dev(**given: Any) -> None:
    """Run etcd, nodes and gateways for APP on loopback, until Ctrl-C ends all of them.

    APP is a file or a module. All that handlers log and print, and all errors, are shown as they
    come, and kept in files. When a Python file in the app's folder is saved, the nodes restart one
    after the other. They keep their state. If the new code cannot be loaded, the error is shown,
    and the nodes keep the code that they have.

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
        raise click.ClickException(f"{data} has the data of {known} nodes: use --nodes {known}")
    # raise now if a certificate is wrong
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
        where, data = folder / "logs", folder  # the logs stay, so that the user finds the reason
        raise click.ClickException(f"{failed}\n(logs: {where})") from None
    finally:
        told.look()
        told.starting = True  # all processes end at once, and warn that others are gone
        cluster.stop()
        told.look()
        if data is None:
            shutil.rmtree(folder, ignore_errors=True)


class _Session:
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
                f"{watched} has more than {_FILES_MAX} Python files, so changes are not reloaded"
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


class Changes:
    """Changes of the Python files below a folder, without those in hidden folders, virtual
    environments and `data`.
    """

    def __init__(self, folder: Path, data: Path) -> None:
        self._folder = folder
        self._data = data.resolve()
        self._known = self._files()
        self._seen = self._known
        self.too_many = len(self._known) > _FILES_MAX

    def settled(self) -> list[Path]:
        """Return the files that have changed since the last time. Return nothing while files are
        still changing.
        """
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
    """Shows the logs of a cluster's processes, as they come."""

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
        """While a cluster starts, its processes wait for each other, so their warnings are not
        shown.
        """

    def say(self, text: str, timed: bool = False) -> None:
        """Print a text of this command's own. `timed`: add the seconds since the command began."""
        self._echo(f"{text} ({time.monotonic() - self._began:.1f} s)" if timed else text)

    def look(self) -> None:
        """Show all lines since the last look."""
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
        """Return a line of a process's log as people read it. Return None if it must not be
        shown.
        """
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
    """Return those options for another command that were given."""
    return tuple(part for name, value in given if value is not None for part in (name, str(value)))


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _page(ports: Iterator[int]) -> tuple[str, ...]:
    port = next(ports, None)
    return () if port is None else ("--metrics-port", str(port))


def _nodes_of(data: Path) -> int:
    """Return with how many nodes a folder was used; 0 if it is new."""
    return sum(1 for entry in data.glob("n*") if entry.name[1:].isdigit())
