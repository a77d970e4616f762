"""`holdfast objects`: look into objects, and change their stored data."""

from __future__ import annotations

import time

import click
import msgspec

from holdfast import codec
from holdfast.cli.gateway import ask, ask_stream, gateway_options, json_option
from holdfast.cli.output import plain, say_missing, say_unknown
from holdfast.cli.pages import ask_pages, gaps
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
@gateway_options
@json_option
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

    def ask_page(after: str, rows: int) -> admin_pb2.ListObjectsResponse:
        request = admin_pb2.ListObjectsRequest(kind=kind, prefix=prefix, after=after, limit=rows)
        page: admin_pb2.ListObjectsResponse = ask(
            gateway, "ListObjects", request, admin_pb2.ListObjectsResponse, _TIMEOUT_S
        )
        return page

    pages = ask_pages(ask_page, lambda page: page.keys, limit, after)
    keys = [key for page in pages for key in page.keys]
    more, missing = pages[-1].more, gaps(*pages)
    if as_json:
        facts = {"keys": keys, "more": more, **missing}
        click.echo(codec.encode_json(facts).decode())
    else:
        for key in keys:
            click.echo(key)
        if more:
            click.echo("there are more: raise --limit, or go on with --after", err=True)
        say_missing(**missing, what="objects")
    if not keys:
        say_unknown(gateway, kind)


@objects.command(short_help="Count objects by kind.")
@click.argument("kind", default="")
@click.argument("prefix", default="")
@gateway_options
@json_option
def count(kind: str, prefix: str, gateway: str, as_json: bool) -> None:
    """Count objects: of every kind, of KIND, or of KIND with a key that begins with PREFIX.

    A node counts about 100,000 objects a second.

    \b
    Example:
      holdfast objects count Property
    """
    request = admin_pb2.CountObjectsRequest(kind=kind, prefix=prefix)
    answer = ask(gateway, "CountObjects", request, admin_pb2.CountObjectsResponse, _COUNT_TIMEOUT_S)
    counts = dict(sorted(answer.objects.items())) or ({kind: 0} if kind else {})
    if as_json:
        facts = {"objects": counts, **gaps(answer)}
        click.echo(codec.encode_json(facts).decode())
    else:
        for name, objects in counts.items():
            click.echo(f"{name} {objects}")
        say_missing(answer.silent, answer.unserved, "objects")
    if kind and not counts[kind]:
        say_unknown(gateway, kind)


@objects.command(short_help="Show what an object has stored.")
@click.argument("kind")
@click.argument("key")
@click.argument("prefix", default="")
@local_option("--limit", default=1000, type=click.IntRange(1), help="Show at most this many rows.")
@gateway_options
@json_option
def show(kind: str, key: str, prefix: str, limit: int, gateway: str, as_json: bool) -> None:
    """Show the stored keys and values of the object KIND KEY as one JSON object. With PREFIX, show
    only keys that begin with it.

    Values are shown in plain types, as they are stored: bytes as base64, times as text.

    \b
    Example:
      holdfast objects show Property p-1
    """

    def ask_page(after: str, rows: int) -> admin_pb2.ShowObjectResponse:
        request = admin_pb2.ShowObjectRequest(
            kind=kind, key=key, prefix=prefix, after=after, limit=rows
        )
        page: admin_pb2.ShowObjectResponse = ask(
            gateway, "ShowObject", request, admin_pb2.ShowObjectResponse, _TIMEOUT_S
        )
        return page

    pages = ask_pages(ask_page, lambda page: [row.key for row in page.rows], limit, "")
    rows = {row.key: codec.decode(row.value) for page in pages for row in page.rows}
    shown = codec.encode_json(rows)
    click.echo((shown if as_json else msgspec.json.format(shown, indent=2)).decode())
    if pages[-1].more:
        click.echo("there are more rows: raise --limit", err=True)
    if not rows:
        say_unknown(gateway, kind)


@objects.command(short_help="Take an object out of memory.")
@click.argument("kind")
@click.argument("key")
@gateway_options
@json_option
def evict(kind: str, key: str, gateway: str, as_json: bool) -> None:
    """Take the object KIND KEY out of memory when it has no turn to run. Stored data stays; the
    next call loads the object again.

    \b
    Example:
      holdfast objects evict Property p-1
    """
    request = admin_pb2.EvictObjectRequest(kind=kind, key=key)
    answer = ask(gateway, "EvictObject", request, admin_pb2.EvictObjectResponse, _TIMEOUT_S + 30)
    if as_json:
        click.echo(codec.encode_json(plain(answer)).decode())
    else:
        click.echo(
            "the object left memory" if answer.was_active else "the object was not in memory"
        )
    if not answer.was_active:
        say_unknown(gateway, kind)


@objects.command(short_help="Cancel the running turn of an object.")
@click.argument("kind")
@click.argument("key")
@gateway_options
@json_option
def abort(kind: str, key: str, gateway: str, as_json: bool) -> None:
    """Cancel the running turn of the object KIND KEY, and roll it back. Its caller gets ABORTED,
    and the calls that wait come next.

    If the turn is an alarm or a notification, the cluster tries it again later. Writes that are
    committed already stay.

    \b
    Example:
      holdfast objects abort Property p-1
    """
    answer = ask(
        gateway,
        "AbortTurn",
        admin_pb2.AbortTurnRequest(kind=kind, key=key),
        admin_pb2.AbortTurnResponse,
        _TIMEOUT_S,
    )
    if as_json:
        click.echo(codec.encode_json(plain(answer)).decode())
    elif answer.method:
        click.echo(
            f"{answer.method}() was aborted after {answer.ran_s:.1f} s; {answer.waiting} calls wait"
        )
    else:
        click.echo("no turn runs")
    if not answer.method:
        say_unknown(gateway, kind)


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
@gateway_options
@json_option
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
    if not key:
        _delete_many(kind, prefix, all_, dry_run, yes, gateway, as_json)
        return
    if dry_run:
        raise click.ClickException(
            "--dry-run needs --prefix or --all; `holdfast objects show` shows the stored data"
            " of one object"
        )
    _delete_one(kind, key, yes, gateway, as_json)


def _delete_one(kind: str, key: str, yes: bool, gateway: str, as_json: bool) -> None:
    if not yes:
        click.confirm(f"Delete {kind}/{key} for good?", abort=True, err=True)
    answer = ask(
        gateway,
        "DeleteObject",
        admin_pb2.DeleteObjectRequest(kind=kind, key=key),
        admin_pb2.DeleteObjectResponse,
        _TIMEOUT_S,
    )
    if as_json:
        click.echo(codec.encode_json(plain(answer)).decode())
    else:
        click.echo("deleted" if answer.existed else "the object had stored nothing")
    if not answer.existed:
        say_unknown(gateway, kind)


def _delete_many(
    kind: str, prefix: str, all_: bool, dry_run: bool, yes: bool, gateway: str, as_json: bool
) -> None:
    if not dry_run and not yes:
        click.confirm(f"Delete every object {kind}/{prefix}* for good?", abort=True, err=True)
    request = admin_pb2.DeleteObjectsRequest(kind=kind, prefix=prefix, all=all_, dry_run=dry_run)
    progress = admin_pb2.DeleteObjectsProgress()
    failed: dict[str, str] = {}
    told = time.monotonic()
    for progress in ask_stream(gateway, "DeleteObjects", request, admin_pb2.DeleteObjectsProgress):
        failed.update(progress.failed)
        if not as_json and not progress.done and time.monotonic() - told >= 1.0:
            told = time.monotonic()
            click.echo(f"{progress.matched if dry_run else progress.deleted} so far", err=True)
    if as_json:
        click.echo(codec.encode_json({**plain(progress), "failed": failed}).decode())
    else:
        click.echo(
            f"{progress.matched} would be deleted" if dry_run else f"{progress.deleted} deleted"
        )
        for name, why in sorted(failed.items())[:100]:
            click.echo(f"{name}: {why}", err=True)
        say_missing(progress.silent, progress.unserved, "objects")
    if not progress.matched:
        say_unknown(gateway, kind)
    if failed or not progress.done or progress.silent or progress.unserved:
        raise SystemExit(1)
