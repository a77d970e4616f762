"""`holdfast explain`: where one object is, and what it does."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import click
from rich.table import Table

from holdfast import codec
from holdfast.cli.gateway import ask, gateway_options, json_option
from holdfast.cli.output import make_console, plain, say_unknown
from holdfast.v1 import admin_pb2


@click.command(short_help="Explain one object: where it is and what it does.")
@click.argument("kind")
@click.argument("key")
@gateway_options
@json_option
def explain(kind: str, key: str, gateway: str, as_json: bool) -> None:
    """Explain the object KIND KEY: where it is, what it does, and what it has stored.

    The answer has its owner and epoch, its copies and how far they are behind, and whether it is in
    memory. It has the running turn, the calls that wait, the last error, the stored rows, the
    alarms and the notifications.

    \b
    Example:
      holdfast explain Property p-1
    """
    answer = ask(
        gateway,
        "Explain",
        admin_pb2.ExplainRequest(kind=kind, key=key),
        admin_pb2.ExplainResponse,
        10.0,
    )
    if as_json:
        click.echo(codec.encode_json(plain(answer)).decode())
        return
    table = Table(show_header=False, box=None)
    for name, text in _explained(kind, key, answer):
        table.add_row(name, text)
    make_console().print(table)
    if not answer.rows and not answer.active:
        say_unknown(gateway, kind)


def _explained(kind: str, key: str, answer: Any) -> Iterator[tuple[str, str]]:
    """Yield the rows of the table: what each is called, and its text."""
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
    yield from _copies(answer)
    if answer.shard.handover:
        yield "moving", f"to {answer.shard.handover}"
    if answer.paused:
        yield "paused", "notifications to it and its alarms wait (holdfast resume)"
    if answer.unserved and not answer.rows:
        return
    yield from _turns(answer)
    yield from _stored(answer)
    if answer.HasField("last_error"):
        error = answer.last_error
        yield (
            "last error",
            f"{error.code} in {error.method} at {_time(error.at_ms)}: {error.message}",
        )


def _copies(answer: Any) -> Iterator[tuple[str, str]]:
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


def _turns(answer: Any) -> Iterator[tuple[str, str]]:
    """Yield what the object does in memory."""
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


def _stored(answer: Any) -> Iterator[tuple[str, str]]:
    """Yield what the object has stored, and what it will do later."""
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


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds")
