"""Command-line options that every command declares in one way: each can also be given as HOLDFAST_<NAME>."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def option(name: str, *rest: Any, **attributes: Any) -> Callable[[Any], Any]:
    """`click.option` with an environment variable named after it and its default shown in the help."""
    variable = "HOLDFAST_" + name.removeprefix("--").split("/")[0].replace("-", "_").upper()
    attributes.setdefault("show_default", attributes.get("default") not in (None, "", False))
    return click.option(name, *rest, envvar=variable, show_envvar=True, **attributes)


def common_options(command: Any) -> Any:
    """What nodes and gateways share: which etcd, which cluster, the cluster's settings, logging, metrics."""
    for add in reversed(
        [
            option(
                "--etcd-endpoints",
                default="127.0.0.1:2379",
                help="etcd's client addresses, host:port, comma-separated.",
            ),
            option("--cluster", default="default", help="The cluster's name; several can share an etcd."),
            option("--shards", type=int, help="Number of shards, 256 at formation; must be what the cluster was formed with."),
            option(
                "--replication",
                type=int,
                help="Copies of each shard, 1 to 7, 3 at formation; must be what the cluster was formed with.",
            ),
            option(
                "--min-in-sync",
                type=int,
                help="Copies that must be in sync for writes, 0 (a majority) at formation; must be what the cluster was formed with.",
            ),
            option(
                "--points",
                type=int,
                help="Ring points per unit of weight, 128 at formation; must be what the cluster was formed with.",
            ),
            option(
                "--metrics-port",
                type=click.IntRange(0, 65_535),
                help="Port of the page for Prometheus, at the host of --listen; 0: any free one. Default: no page.",
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


def explicit_settings(**given: int | None) -> dict[str, int]:
    """The cluster settings that were given, without those that were not."""
    return {name: value for name, value in given.items() if value is not None}
