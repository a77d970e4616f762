"""Command-line options that every command declares in one way: those of processes and connections
also as HOLDFAST_<NAME>."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from holdfast.tls import CertificateError, Certificates

_file = click.Path(path_type=Path, dir_okay=False, exists=True)


def option(name: str, *rest: Any, **attributes: Any) -> Callable[[Any], Any]:
    """`click.option` with an environment variable named after it and its default shown in
    the help."""
    variable = "HOLDFAST_" + name.removeprefix("--").split("/")[0].replace("-", "_").upper()
    attributes.setdefault("show_default", attributes.get("default") not in (None, "", False))
    return click.option(name, *rest, envvar=variable, show_envvar=True, **attributes)


def local_option(name: str, *rest: Any, **attributes: Any) -> Callable[[Any], Any]:
    """An option of one question or one change, which nobody wants to have left in an environment:
    it is read from nowhere else."""
    attributes.setdefault("show_default", attributes.get("default") not in (None, "", False))
    return click.option(name, *rest, **attributes)


def common_options(command: Any) -> Any:
    """What nodes and gateways share: which etcd, which cluster, the cluster's settings, logging,
    metrics."""
    for add in reversed(
        [
            option(
                "--etcd-endpoints",
                default="127.0.0.1:2379",
                help="etcd's client addresses, host:port, comma-separated.",
            ),
            option(
                "--etcd-ca",
                type=_file,
                help="CA of etcd's certificates; with it etcd is asked with TLS.",
            ),
            option("--etcd-cert", type=_file, help="Certificate to show to etcd."),
            option("--etcd-key", type=_file, help="Its key."),
            option(
                "--tls-cert",
                type=_file,
                help=(
                    "This process's certificate, PEM; followed when it changes. See"
                    " docs/security.md."
                ),
            ),
            option("--tls-key", type=_file, help="Its key."),
            option(
                "--tls-ca", type=_file, help="CA of the certificates of the cluster's processes."
            ),
            option(
                "--tls-name", help="The DNS name that all of those have. Default: CLUSTER.holdfast."
            ),
            option(
                "--insecure",
                is_flag=True,
                default=False,
                help="Listen beyond loopback although nothing is encrypted.",
            ),
            option(
                "--health-port",
                type=click.IntRange(0, 65_535),
                help=(
                    "Port, at the host of --listen, that serves health checks only, without TLS:"
                    " for probes. Default: none."
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
                    "Number of shards, 256 at formation; must be what the cluster was formed with."
                ),
            ),
            option(
                "--replication",
                type=int,
                help=(
                    "Copies of each shard, 1 to 7, 3 at formation; must be what the cluster was"
                    " formed with."
                ),
            ),
            option(
                "--min-in-sync",
                type=int,
                help=(
                    "Copies that must be in sync for writes, 0 (a majority) at formation; must be"
                    " what the cluster was formed with."
                ),
            ),
            option(
                "--points",
                type=int,
                help=(
                    "Ring points per unit of weight, 128 at formation; must be what the cluster was"
                    " formed with."
                ),
            ),
            option(
                "--metrics-port",
                type=click.IntRange(0, 65_535),
                help=(
                    "Port of the page for Prometheus, at the host of --listen; 0: any free one."
                    " Default: no page."
                ),
            ),
            option(
                "--trace",
                default=0.0,
                type=click.FloatRange(0.0, 1.0),
                help=(
                    "Share of the traces that begin here to send to OpenTelemetry; those that"
                    " callers begin are followed. 0: off."
                ),
            ),
            option(
                "--log-level",
                default="info",
                type=click.Choice(["debug", "info", "warning", "error"]),
                help="Least level logged.",
            ),
            option(
                "--log-format",
                default="auto",
                type=click.Choice(["auto", "text", "json"]),
                help="auto: text on a terminal, else JSON.",
            ),
        ]
    ):
        command = add(command)
    return command


def certificates(
    cluster: str,
    cert: Path | None,
    key: Path | None,
    ca: Path | None,
    name: str | None,
    client_ca: Path | None = None,
) -> Certificates | None:
    """What the options say of TLS; None when they do not. Raises ClickException when that is half
    of it, or wrong."""
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
    """The cluster settings that were given, without those that were not."""
    return {name: value for name, value in given.items() if value is not None}
