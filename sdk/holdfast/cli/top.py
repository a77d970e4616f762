"""`holdfast top`: the busiest nodes, kinds, objects and shards."""

from __future__ import annotations

import time
from typing import Any

import click
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from holdfast import codec
from holdfast.cli.gateway import ask, gateway_options, json_option
from holdfast.cli.output import make_console
from holdfast.options import local_option
from holdfast.v1 import admin_pb2

_TIMEOUT_S = 30.0


@click.command(short_help="Show the busiest nodes, kinds, objects and shards.")
@local_option(
    "--interval",
    default=2.0,
    type=click.FloatRange(0.2, 3600),
    help="Seconds between two measurements.",
)
@local_option(
    "--limit", default=10, type=click.IntRange(1, 100), help="How many objects and shards to show."
)
@local_option(
    "--once", is_flag=True, default=False, help="Measure one interval, print it, and end."
)
@gateway_options
@json_option
def top(interval: float, limit: int, once: bool, gateway: str, as_json: bool) -> None:
    """Show the busiest nodes, kinds, objects and shards, until Ctrl-C.

    Rates of nodes and kinds are those of the last interval. Rates of objects are estimates over
    about a minute: a little too high for a steady load, and lower than the peak of a burst. Rates
    of shards are at most ten seconds old.

    \b
    Examples:
      holdfast top
      holdfast top --once --json
    """
    before = _look(gateway, limit)
    if as_json or once:
        time.sleep(interval)
        now = _look(gateway, limit)
        if as_json:
            click.echo(codec.encode_json(_rates(before, now)).decode())
        else:
            make_console().print(_tables(_rates(before, now)))
        return
    with Live(
        console=make_console(), auto_refresh=False, screen=make_console().is_terminal
    ) as live:
        try:
            while True:
                time.sleep(interval)
                try:
                    now = _look(gateway, limit)
                except click.ClickException as error:  # the gateway may be back in a moment
                    live.update(Text(error.message, style="red"), refresh=True)
                    continue
                live.update(_tables(_rates(before, now)), refresh=True)
                before = now
        except KeyboardInterrupt:
            return


def _look(gateway: str, limit: int) -> tuple[float, Any]:
    return time.monotonic(), ask(
        gateway, "Top", admin_pb2.TopRequest(limit=limit), admin_pb2.TopResponse, _TIMEOUT_S
    )


def _rates(before: tuple[float, Any], now: tuple[float, Any]) -> dict[str, Any]:
    """Return the rates a second between two looks."""
    seconds = max(now[0] - before[0], 1e-3)
    earlier = {node.id: node for node in before[1].nodes}
    nodes: list[dict[str, Any]] = []
    kinds: dict[str, dict[str, float]] = {}
    for node in now[1].nodes:
        if not node.HasField("stats"):
            nodes.append({"node": node.id, "answers": False})
            continue
        old = earlier.get(node.id)
        # the node was started meanwhile, so its counters began anew
        if old is None or old.stats.process.pid != node.stats.process.pid:
            old = admin_pb2.NodeTop()
        nodes.append(_node_rates(old, node, seconds))
        _add_kinds(kinds, old, node)
    return {
        "nodes": nodes,
        "kinds": [
            _kind_rates(name, sums, seconds)
            for name, sums in sorted(kinds.items(), key=lambda item: (-item[1]["calls"], item[0]))
        ],
        "objects": [
            {"kind": one.kind, "key": one.key, "node": one.node, "turns_per_s": one.turns_per_s}
            for one in now[1].objects
        ],
        "shards": [
            {"shard": one.shard, "owner": one.owner, "turns_per_s": one.turns_per_s}
            for one in now[1].shards
        ],
    }


def _node_rates(old: Any, node: Any, seconds: float) -> dict[str, Any]:
    was, is_ = old.stats, node.stats
    return {
        "node": node.id,
        "answers": True,
        "cpu": (
            max(0.0, is_.process.cpu_s - was.process.cpu_s) / seconds if was.process.pid else 0.0
        ),
        "mib": is_.process.rss_bytes >> 20,
        "owns": node.shards_owned,
        "serves": is_.shards_serving,
        "active": is_.activations,
        "in_flight": is_.calls_in_flight,
        "turns_per_s": (is_.turns - was.turns) / seconds,
        "entries_per_s": (is_.entries - was.entries) / seconds,
        "fsyncs_per_s": (is_.fsyncs - was.fsyncs) / seconds,
        "lag": is_.replica_lag,
        "outbox": is_.outbox,
    }


def _add_kinds(kinds: dict[str, dict[str, float]], old: Any, node: Any) -> None:
    """Add what each kind did on a node between two looks to the sums of the kinds."""
    old_kinds = {kind.kind: kind for kind in old.kinds}
    for kind in node.kinds:
        then = old_kinds.get(kind.kind) or admin_pb2.TopKind()
        sums = kinds.setdefault(
            kind.kind, dict.fromkeys(("calls", "failed", "call_s", "turn_s", "active"), 0.0)
        )
        for name in ("calls", "failed", "call_s", "turn_s"):
            sums[name] += getattr(kind, name) - getattr(then, name)
        sums["active"] += kind.active


def _kind_rates(name: str, sums: dict[str, float], seconds: float) -> dict[str, Any]:
    return {
        "kind": name,
        "active": int(sums["active"]),
        "calls_per_s": sums["calls"] / seconds,
        "failed_per_s": sums["failed"] / seconds,
        "call_ms": 1000 * sums["call_s"] / sums["calls"] if sums["calls"] else 0.0,
        "turn_ms": 1000 * sums["turn_s"] / sums["calls"] if sums["calls"] else 0.0,
    }


def _tables(rates: dict[str, Any]) -> Group:
    nodes = Table(title="nodes", title_justify="left")
    for title in (
        "node",
        "cpu",
        "MiB",
        "owns",
        "serves",
        "active",
        "in flight",
        "turns/s",
        "entries/s",
        "fsyncs/s",
        "lag",
        "outbox",
    ):
        nodes.add_column(title, justify="left" if title == "node" else "right")
    for node in rates["nodes"]:
        if not node["answers"]:
            nodes.add_row(node["node"], "does not answer")
            continue
        nodes.add_row(
            node["node"],
            f"{node['cpu']:.2f}",
            str(node["mib"]),
            str(node["owns"]),
            str(node["serves"]),
            f"{node['active']:,}",
            f"{node['in_flight']:,}",
            f"{node['turns_per_s']:,.0f}",
            f"{node['entries_per_s']:,.0f}",
            f"{node['fsyncs_per_s']:,.0f}",
            f"{node['lag']:,}",
            f"{node['outbox']:,}",
        )
    kinds = Table(title="kinds", title_justify="left")
    for title in ("kind", "active", "calls/s", "failed/s", "ms a call", "ms a turn"):
        kinds.add_column(title, justify="left" if title == "kind" else "right")
    for kind in rates["kinds"]:
        kinds.add_row(
            kind["kind"],
            f"{kind['active']:,}",
            f"{kind['calls_per_s']:,.0f}",
            f"{kind['failed_per_s']:,.1f}",
            f"{kind['call_ms']:.2f}",
            f"{kind['turn_ms']:.2f}",
        )
    busy = Table(title="busiest objects", title_justify="left")
    for title in ("object", "turns/s", "node"):
        busy.add_column(title, justify="right" if title == "turns/s" else "left")
    for one in rates["objects"]:
        busy.add_row(f"{one['kind']}/{one['key']}"[:80], f"{one['turns_per_s']:,.0f}", one["node"])
    shards = Table(title="busiest shards", title_justify="left")
    for title in ("shard", "turns/s", "owner"):
        shards.add_column(title, justify="right" if title == "turns/s" else "left")
    for one in rates["shards"]:
        shards.add_row(str(one["shard"]), f"{one['turns_per_s']:,.0f}", one["owner"])
    return Group(nodes, kinds, busy, shards)
