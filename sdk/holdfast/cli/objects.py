"""`holdfast objects`, `explain` and `top`: look into objects, and change their stored data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import click
import msgspec
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from holdfast import codec
from holdfast.cli.calls import (
    _ask,
    _ask_stream,
    _console,
    _gateway,
    _json,
    _plain,
    _say_missing,
    _say_unknown,
)
from holdfast.options import local_option
from holdfast.v1 import admin_pb2

_TIMEOUT_S = 30.0
_COUNT_TIMEOUT_S = 600.0


@click.group(short_help="List, count, show, delete, evict and abort objects.")
def objects() -> None:
    """List, count, show, delete, evict and abort objects.

    These commands find all objects that have stored something, also those that are not in memory.
    """


@objects.command(name="list", short_help="List objects of a kind.")
@click.argument("kind")
@click.argument("prefix", default="")
@local_option("--limit", default=100, type=click.IntRange(1), help="List at most this many.")
@local_option(
    "--after", default="", help="List only keys after this one: the last key of the page before."
)
@_gateway
@_json
def list_objects(
    kind: str, prefix: str, limit: int, after: str, gateway: str, as_json: bool
) -> None:
    """List the keys of the objects of KIND, or of those whose key begins with PREFIX: one key a
    line, in key order.

    \b
    Examples:
      holdfast objects list Property
      holdfast objects list Property p-10 --limit 1000
    """
    keys: list[str] = []
    while True:
        request = admin_pb2.ListObjectsRequest(
            kind=kind, prefix=prefix, after=after, limit=min(1_000, limit - len(keys))
        )
        answer = _ask(gateway, "ListObjects", request, admin_pb2.ListObjectsResponse, _TIMEOUT_S)
        keys += answer.keys
        if not answer.more or not answer.keys or len(keys) >= limit:
            break
        after = answer.keys[-1]
    if as_json:
        facts = {
            "keys": keys,
            "more": answer.more,
            "silent": list(answer.silent),
            "unserved": list(answer.unserved),
        }
        click.echo(codec.encode_json(facts).decode())
    else:
        for key in keys:
            click.echo(key)
        if answer.more:
            click.echo("there are more: raise --limit, or go on with --after", err=True)
        _say_missing(answer.silent, answer.unserved)
    if not keys:
        _say_unknown(gateway, kind)


@objects.command(short_help="Count objects by kind.")
@click.argument("kind", default="")
@click.argument("prefix", default="")
@_gateway
@_json
def count(kind: str, prefix: str, gateway: str, as_json: bool) -> None:
    """Count objects: of every kind, of KIND, or of KIND with a key that begins with PREFIX.

    A node counts about 100,000 objects a second.

    \b
    Example:
      holdfast objects count Property
    """
    request = admin_pb2.CountObjectsRequest(kind=kind, prefix=prefix)
    answer = _ask(
        gateway, "CountObjects", request, admin_pb2.CountObjectsResponse, _COUNT_TIMEOUT_S
    )
    counts = dict(sorted(answer.objects.items())) or ({kind: 0} if kind else {})
    if as_json:
        facts = {
            "objects": counts,
            "silent": list(answer.silent),
            "unserved": list(answer.unserved),
        }
        click.echo(codec.encode_json(facts).decode())
    else:
        for name, objects in counts.items():
            click.echo(f"{name} {objects}")
        _say_missing(answer.silent, answer.unserved)
    if kind and not counts[kind]:
        _say_unknown(gateway, kind)


@objects.command(short_help="Show what an object has stored.")
@click.argument("kind")
@click.argument("key")
@click.argument("prefix", default="")
@local_option("--limit", default=1000, type=click.IntRange(1), help="Show at most this many rows.")
@_gateway
@_json
def show(kind: str, key: str, prefix: str, limit: int, gateway: str, as_json: bool) -> None:
    """Show the stored keys and values of the object KIND KEY as one JSON object. With PREFIX, show
    only keys that begin with it.

    Values are shown in plain types, as they are stored: bytes as base64, times as text.

    \b
    Example:
      holdfast objects show Property p-1
    """
    rows: dict[str, Any] = {}
    after = ""
    while True:
        request = admin_pb2.ShowObjectRequest(
            kind=kind, key=key, prefix=prefix, after=after, limit=min(1_000, limit - len(rows))
        )
        answer = _ask(gateway, "ShowObject", request, admin_pb2.ShowObjectResponse, _TIMEOUT_S)
        for row in answer.rows:
            rows[row.key] = codec.decode(row.value)
        if not answer.more or not answer.rows or len(rows) >= limit:
            break
        after = answer.rows[-1].key
    shown = codec.encode_json(rows)
    click.echo((shown if as_json else msgspec.json.format(shown, indent=2)).decode())
    if answer.more:
        click.echo("there are more rows: raise --limit", err=True)
    if not rows:
        _say_unknown(gateway, kind)


@objects.command(short_help="Take an object out of memory.")
@click.argument("kind")
@click.argument("key")
@_gateway
@_json
def evict(kind: str, key: str, gateway: str, as_json: bool) -> None:
    """Take the object KIND KEY out of memory when it has no turn to run. Stored data stays; the
    next call loads the object again.

    \b
    Example:
      holdfast objects evict Property p-1
    """
    request = admin_pb2.EvictObjectRequest(kind=kind, key=key)
    answer = _ask(gateway, "EvictObject", request, admin_pb2.EvictObjectResponse, _TIMEOUT_S + 30)
    if as_json:
        click.echo(codec.encode_json(_plain(answer)).decode())
    else:
        click.echo(
            "the object left memory" if answer.was_active else "the object was not in memory"
        )
    if not answer.was_active:
        _say_unknown(gateway, kind)


@objects.command(short_help="Cancel the running turn of an object.")
@click.argument("kind")
@click.argument("key")
@_gateway
@_json
def abort(kind: str, key: str, gateway: str, as_json: bool) -> None:
    """Cancel the running turn of the object KIND KEY, and roll it back. Its caller gets ABORTED,
    and the calls that wait come next.

    If the turn is an alarm or a notification, the cluster tries it again later. Writes that are
    committed already stay.

    \b
    Example:
      holdfast objects abort Property p-1
    """
    answer = _ask(
        gateway,
        "AbortTurn",
        admin_pb2.AbortTurnRequest(kind=kind, key=key),
        admin_pb2.AbortTurnResponse,
        _TIMEOUT_S,
    )
    if as_json:
        click.echo(codec.encode_json(_plain(answer)).decode())
    elif answer.method:
        click.echo(
            f"{answer.method}() was aborted after {answer.ran_s:.1f} s; {answer.waiting} calls wait"
        )
    else:
        click.echo("no turn runs")
    if not answer.method:
        _say_unknown(gateway, kind)


@objects.command(short_help="Delete an object, or all objects of a kind or a prefix.")
@click.argument("kind")
@click.argument("key", default="")
@local_option("--prefix", default="", help="Delete all objects of KIND whose keys begin with this.")
@click.option("--all", "all_", is_flag=True, default=False, help="Delete all objects of KIND.")
@local_option(
    "--dry-run",
    is_flag=True,
    default=False,
    help="Change nothing; say how many objects would be deleted.",
)
@click.option("--yes", is_flag=True, default=False, help="Delete without a prompt.")
@_gateway
@_json
def delete(
    kind: str,
    key: str,
    prefix: str,
    all_: bool,
    dry_run: bool,
    yes: bool,
    gateway: str,
    as_json: bool,
) -> None:
    """Delete the stored data of the object KIND KEY, its alarms, and its notifications that wait,
    in one commit. This cannot be undone.

    Answered requests stay answered: if one is sent again, it does not run again. Dead letters stay
    until they are replayed or dropped. Later calls make the object anew.

    \b
    Examples:
      holdfast objects delete Property p-1
      holdfast objects delete PropertySession --prefix 2024- --dry-run
    """
    if (bool(key) + bool(prefix) + all_) != 1:
        raise click.ClickException(
            "give the KEY of one object, or --prefix for several objects, or --all"
        )
    if key:
        if dry_run:
            raise click.ClickException(
                "--dry-run needs --prefix or --all; `holdfast objects show` shows the stored data"
                " of one object"
            )
        if not yes:
            click.confirm(f"Delete {kind}/{key} for good?", abort=True, err=True)
        one = _ask(
            gateway,
            "DeleteObject",
            admin_pb2.DeleteObjectRequest(kind=kind, key=key),
            admin_pb2.DeleteObjectResponse,
            _TIMEOUT_S,
        )
        if as_json:
            click.echo(codec.encode_json(_plain(one)).decode())
        else:
            click.echo("deleted" if one.existed else "the object had stored nothing")
        if not one.existed:
            _say_unknown(gateway, kind)
        return
    if not dry_run and not yes:
        click.confirm(f"Delete every object {kind}/{prefix}* for good?", abort=True, err=True)
    request = admin_pb2.DeleteObjectsRequest(kind=kind, prefix=prefix, all=all_, dry_run=dry_run)
    progress = admin_pb2.DeleteObjectsProgress()
    failed: dict[str, str] = {}
    told = time.monotonic()
    for progress in _ask_stream(gateway, "DeleteObjects", request, admin_pb2.DeleteObjectsProgress):
        failed.update(progress.failed)
        if not as_json and not progress.done and time.monotonic() - told >= 1.0:
            told = time.monotonic()
            click.echo(f"{progress.matched if dry_run else progress.deleted} so far", err=True)
    if as_json:
        click.echo(codec.encode_json({**_plain(progress), "failed": failed}).decode())
    else:
        click.echo(
            f"{progress.matched} would be deleted" if dry_run else f"{progress.deleted} deleted"
        )
        for name, why in sorted(failed.items())[:100]:
            click.echo(f"{name}: {why}", err=True)
        _say_missing(progress.silent, progress.unserved)
    if not progress.matched:
        _say_unknown(gateway, kind)
    if failed or not progress.done or progress.silent or progress.unserved:
        raise SystemExit(1)


@click.command(short_help="Explain one object: where it is and what it does.")
@click.argument("kind")
@click.argument("key")
@_gateway
@_json
def explain(kind: str, key: str, gateway: str, as_json: bool) -> None:
    """Explain the object KIND KEY: where it is, what it does, and what it has stored.

    The answer has its owner and epoch, its copies and how far they are behind, and whether it is in
    memory. It has the running turn, the calls that wait, the last error, the stored rows, the
    alarms and the notifications.

    \b
    Example:
      holdfast explain Property p-1
    """
    answer = _ask(
        gateway,
        "Explain",
        admin_pb2.ExplainRequest(kind=kind, key=key),
        admin_pb2.ExplainResponse,
        10.0,
    )
    if as_json:
        click.echo(codec.encode_json(_plain(answer)).decode())
        return
    table = Table(show_header=False, box=None)
    for name, text in _explained(kind, key, answer):
        table.add_row(name, text)
    _console().print(table)
    if not answer.rows and not answer.active:
        _say_unknown(gateway, kind)


def _explained(kind: str, key: str, answer: Any) -> Iterator[tuple[str, str]]:
    yield "object", f"{kind}/{key}"
    yield "shard", f"{answer.shard.shard}, epoch {answer.shard.epoch}"
    yield (
        "owner",
        (
            f"{answer.shard.owner} at {answer.address}"
            if answer.address
            else f"{answer.shard.owner or 'none'}, absent"
        ),
    )
    if answer.unserved:
        yield "not served", answer.unserved
    if answer.read_only:
        yield "read-only", answer.read_only
    for copy in answer.copies:
        what = ["in sync" if copy.in_sync else "joining"]
        if copy.owner:
            what.append("owner")
        if not copy.present:
            what.append("ABSENT")
        if copy.behind:
            what.append(f"{copy.behind} entries behind")
        if copy.heard_s > 2:
            what.append(f"silent for {copy.heard_s:.0f} s")
        yield "copy", f"{copy.node}: {', '.join(what)}"
    if answer.shard.handover:
        yield "moving", f"to {answer.shard.handover}"
    if answer.paused:
        yield "paused", "notifications to it and its alarms wait (holdfast resume)"
    if answer.unserved and not answer.rows:
        return
    if answer.active:
        yield (
            "in memory",
            f"yes, {answer.cache_bytes} bytes cached, last used {answer.idle_s:.1f} s ago",
        )
    else:
        yield "in memory", "no"
    if answer.running:
        yield (
            "running",
            (
                f"{answer.running} for {answer.running_s:.1f} s (request"
                f" {answer.running_request_id.hex()})"
            ),
        )
    yield "waiting calls", str(answer.waiting)
    if answer.reads:
        yield "reads", f"{answer.reads} run beside its turns"
    if answer.committing:
        yield "commit", "it has writes that are not committed yet"
    more = " at least" if answer.rows_more else ""
    yield "stored", f"{answer.rows} rows,{more} {answer.bytes} bytes" if answer.rows else "nothing"
    if answer.expires_ms:
        yield "expires", _time(answer.expires_ms)
    yield (
        "alarms",
        f"{answer.alarms}, the next at {_time(answer.next_alarm_ms)}" if answer.alarms else "none",
    )
    if answer.outbox:
        error = f"; last error: {answer.outbox_error}" if answer.outbox_error else ""
        yield (
            "notifications",
            f"{answer.outbox} wait, the oldest since {_time(answer.outbox_oldest_ms)}{error}",
        )
    else:
        yield "notifications", "none wait"
    if answer.sent_by_clients:
        yield "sent by clients", f"{answer.sent_by_clients} calls wait"
    if answer.HasField("last_error"):
        error = answer.last_error
        yield (
            "last error",
            f"{error.code} in {error.method} at {_time(error.at_ms)}: {error.message}",
        )


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds")


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
@_gateway
@_json
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
            _console().print(_tables(_rates(before, now)))
        return
    with Live(console=_console(), auto_refresh=False, screen=_console().is_terminal) as live:
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
    return time.monotonic(), _ask(
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
        was, is_ = old.stats, node.stats
        nodes.append(
            {
                "node": node.id,
                "answers": True,
                "cpu": (
                    max(0.0, is_.process.cpu_s - was.process.cpu_s) / seconds
                    if was.process.pid
                    else 0.0
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
        )
        old_kinds = {kind.kind: kind for kind in old.kinds}
        for kind in node.kinds:
            then = old_kinds.get(kind.kind) or admin_pb2.TopKind()
            sums = kinds.setdefault(
                kind.kind, dict.fromkeys(("calls", "failed", "call_s", "turn_s", "active"), 0.0)
            )
            for name in ("calls", "failed", "call_s", "turn_s"):
                sums[name] += getattr(kind, name) - getattr(then, name)
            sums["active"] += kind.active
    return {
        "nodes": nodes,
        "kinds": [
            {
                "kind": name,
                "active": int(sums["active"]),
                "calls_per_s": sums["calls"] / seconds,
                "failed_per_s": sums["failed"] / seconds,
                "call_ms": 1000 * sums["call_s"] / sums["calls"] if sums["calls"] else 0.0,
                "turn_ms": 1000 * sums["turn_s"] / sums["calls"] if sums["calls"] else 0.0,
            }
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
