"""`holdfast dev`: a whole cluster on this machine, for development. It shows what the processes
log, and reloads changed code.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from holdfast.cli.dev_session import Session
from holdfast.cli.dev_terminal import Terminal
from holdfast.loading import AppError, load_app, source_folder
from holdfast.local import ClusterFailed, LocalCluster
from holdfast.options import certificates, option
from holdfast.tls import TLS

_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)


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
    try:
        kinds = load_app(options.app).kinds
    except AppError as error:
        raise click.ClickException(str(error)) from None
    folder = options.data or Path(tempfile.mkdtemp(prefix="holdfast-dev-"))
    if options.data is not None and (known := _nodes_of(folder)) and known != options.nodes:
        raise click.ClickException(f"{folder} has the data of {known} nodes: use --nodes {known}")
    tls = _gateway_tls(options)
    cluster = LocalCluster(folder)
    cluster.gateway_tls = tls
    told = Terminal(cluster, options.verbose)
    session = Session(
        cluster,
        told,
        options.app,
        f"127.0.0.1:{options.port}",
        None if options.token_file is None else options.token_file.read_text().strip(),
    )
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, session.stop)
    temporary = options.data is None
    try:
        what = f"etcd, {_number(options.gateways, 'gateway')} and {_number(options.nodes, 'node')}"
        told.say(f"starting {what} for {options.app}: {', '.join(sorted(kinds))}")
        _start(cluster, options)
        session.wait_ready()
        if not session.stopping:
            what = f"{_number(options.nodes, 'node')}, {_copies(options)} copies of each shard"
            told.say(
                f"ready: {what}, gateway at 127.0.0.1:{options.port}, etcd at {cluster.etcd},"
                f" logs in {folder / 'logs'}",
                timed=True,
            )
        told.look()
        told.starting = False
        session.run(source_folder(options.app) if options.reload else None, folder)
    except ClusterFailed as failed:
        temporary = False  # the logs stay, so that the user finds the reason
        raise click.ClickException(f"{failed}\n(logs: {folder / 'logs'})") from None
    finally:
        told.look()
        told.starting = True  # all processes end at once, and warn that others are gone
        cluster.stop()
        told.look()
        if temporary:
            shutil.rmtree(folder, ignore_errors=True)


def _gateway_tls(options: DevOptions) -> TLS | None:
    """Return with which TLS to connect to the gateways. Raise ClickException if a certificate is
    wrong.
    """
    certificates(
        "default",
        options.tls_cert,
        options.tls_key,
        options.tls_ca,
        options.tls_name,
        options.client_ca,
    )
    if options.tls_ca is None:
        return None
    shown = (options.tls_cert, options.tls_key) if options.client_ca is not None else (None, None)
    return TLS(options.tls_ca, *shown, options.tls_name or "default.holdfast")


def _start(cluster: LocalCluster, options: DevOptions) -> None:
    """Start etcd, the gateways and the nodes."""
    cluster.start_etcd()
    tls = _options(
        ("--tls-cert", options.tls_cert),
        ("--tls-key", options.tls_key),
        ("--tls-ca", options.tls_ca),
        ("--tls-name", options.tls_name),
    )
    pages = iter(
        ()
        if options.metrics_port is None
        else range(options.metrics_port, options.metrics_port + options.gateways + options.nodes)
    )
    own = _options(("--access", options.access), ("--client-ca", options.client_ca))
    for i in range(options.gateways):
        cluster.start_gateway(f"gateway{i + 1}", options.port + i, *tls, *own, *_page(pages))
    settings = ("--members-min", str(options.nodes), "--replication", str(_copies(options)))
    for i in range(1, options.nodes + 1):
        cluster.start_node(f"n{i}", options.app, *settings, *tls, *_page(pages))


def _copies(options: DevOptions) -> int:
    return options.replication or min(options.nodes, 3)


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
