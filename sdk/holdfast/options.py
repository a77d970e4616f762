"""Options of the command line that several commands share. Options of processes and connections can
also be set as HOLDFAST_<NAME>.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from holdfast.tls import CertificateError, Certificates

_file = click.Path(path_type=Path, dir_okay=False, exists=True)


def option(name: str, *rest: Any, **attributes: Any) -> Callable[[Any], Any]:
    """Declare a `click.option` that can also be set by an environment variable, and show its
    default in the help.
    """
    variable = "HOLDFAST_" + name.removeprefix("--").split("/")[0].replace("-", "_").upper()
    attributes.setdefault("show_default", attributes.get("default") not in (None, "", False))
    return click.option(name, *rest, envvar=variable, show_envvar=True, **attributes)


def local_option(name: str, *rest: Any, **attributes: Any) -> Callable[[Any], Any]:
    """Declare an option for one question or one change. It has no environment variable, because a
    value left in the environment would apply to later commands.
    """
    attributes.setdefault("show_default", attributes.get("default") not in (None, "", False))
    return click.option(name, *rest, **attributes)


def _together(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a decorator that declares these options, in this order in the help."""

    def declare(command: Any) -> Any:
        for add in reversed(options):
            command = add(command)
        return command

    return declare


etcd_options = _together(
    option(
        "--etcd-endpoints",
        default="127.0.0.1:2379",
        help="etcd's client addresses, host:port, comma-separated.",
    ),
    option(
        "--etcd-ca",
        type=_file,
        help="CA of etcd's certificates, PEM; connect to etcd with TLS.",
    ),
    option("--etcd-cert", type=_file, help="Certificate to show to etcd, PEM."),
    option("--etcd-key", type=_file, help="Key of --etcd-cert, PEM."),
)
"""Declares the options of connections to etcd."""

tls_options = _together(
    option(
        "--tls-cert",
        type=_file,
        help=(
            "This process's certificate, PEM. Nodes and gateways follow changes of the file. See"
            " docs/security.md."
        ),
    ),
    option("--tls-key", type=_file, help="Key of --tls-cert, PEM."),
    option(
        "--tls-ca",
        type=_file,
        help="CA of the certificates of the cluster's processes, PEM.",
    ),
    option(
        "--tls-name",
        help=(
            "DNS name that the certificates of all the cluster's processes have. Default:"
            " CLUSTER.holdfast."
        ),
    ),
)
"""Declares the options of TLS between the cluster's processes."""

_process_options = _together(
    option(
        "--insecure",
        is_flag=True,
        default=False,
        help="Listen on other addresses than loopback without TLS.",
    ),
    option(
        "--health-port",
        type=click.IntRange(0, 65_535),
        help=(
            "Port for health checks by probes, without TLS, at the host of --listen; 0:"
            " any free one. Default: none."
        ),
    ),
    option(
        "--cluster",
        default="default",
        help="The cluster's name; several can share an etcd.",
    ),
    option(
        "--shards",
        type=int,
        help=(
            "Number of shards, fixed when the cluster is formed: another value is refused"
            " later. Default: the cluster's, or 256 for a new cluster."
        ),
    ),
    option(
        "--replication",
        type=int,
        help=(
            "Copies of each shard, 1 to 7, fixed when the cluster is formed: another value"
            " is refused later. Default: the cluster's, or 3 for a new cluster."
        ),
    ),
    option(
        "--min-in-sync",
        type=int,
        help=(
            "Copies of a shard that must be in sync for writes; 0: a majority. It is fixed"
            " when the cluster is formed: another value is refused later. Default: the"
            " cluster's, or 0 for a new cluster."
        ),
    ),
    option(
        "--points",
        type=int,
        help=(
            "Ring points per unit of weight, fixed when the cluster is formed: another"
            " value is refused later. Default: the cluster's, or 128 for a new cluster."
        ),
    ),
    option(
        "--metrics-port",
        type=click.IntRange(0, 65_535),
        help=(
            "Port of the metrics page for Prometheus, at the host of --listen; 0: any free"
            " one. Default: no page."
        ),
    ),
    option(
        "--trace",
        default=0.0,
        type=click.FloatRange(0.0, 1.0),
        help=(
            "Share of the traces that begin here to send to OpenTelemetry, 0 to 1; 0: no"
            " tracing. Traces that callers begin are always continued."
        ),
    ),
    option(
        "--log-level",
        default="info",
        type=click.Choice(["debug", "info", "warning", "error"]),
        help="Lowest level that is logged.",
    ),
    option(
        "--log-format",
        default="auto",
        type=click.Choice(["auto", "text", "json"]),
        help="Format of the log; auto: text on a terminal, else JSON.",
    ),
)


def common_options(command: Any) -> Any:
    """Declare the options that nodes and gateways share: etcd, TLS, the cluster and its settings,
    logging, metrics.
    """
    return etcd_options(tls_options(_process_options(command)))


def certificates(
    cluster: str,
    cert: Path | None,
    key: Path | None,
    ca: Path | None,
    name: str | None,
    client_ca: Path | None = None,
) -> Certificates | None:
    """Return the certificates that the TLS options name; None without such options. Raise
    ClickException if options are missing or files are wrong.
    """
    if cert is None and key is None and ca is None:
        if client_ca is not None:
            raise click.ClickException("--client-ca needs --tls-cert, --tls-key and --tls-ca")
        return None
    if cert is None or key is None or ca is None:
        raise click.ClickException("TLS needs all of --tls-cert, --tls-key and --tls-ca")
    try:
        return Certificates(cert, key, ca, name or f"{cluster}.holdfast", client_ca)
    except CertificateError as error:
        raise click.ClickException(str(error)) from None


def explicit_settings(**given: int | None) -> dict[str, int]:
    """Return the cluster settings that were given, without the others."""
    return {name: value for name, value in given.items() if value is not None}
