"""`holdfast deadletters`, `alarms`, `pause` and `resume`: look at notifications and alarms, and
change them.
"""

from __future__ import annotations

import time
from typing import Any

import click
import msgspec
from rich.table import Table

from holdfast import codec
from holdfast.cli.gateway import ask, gateway_options, json_option
from holdfast.cli.output import make_console, plain, say_missing
from holdfast.cli.pages import ask_pages, gaps
from holdfast.ids import dead_letter_place
from holdfast.options import local_option
from holdfast.v1 import admin_pb2

_CHANGE_TIMEOUT_S = 30.0
_receiver = local_option(
    "--to", default="", metavar="KIND[/KEY]", help="Only those to this kind or object."
)
_sender = local_option(
    "--of",
    "sender",
    default="",
    metavar="KIND[/KEY]",
    help="Only those that this kind or object sent.",
)


@click.group(short_help="List, show, replay and drop dead letters.")
def deadletters() -> None:
    """List, show, replay and drop dead letters.

    A dead letter is a notification or an alarm that failed for too long, or that its receiver
    rejected. The cluster keeps it until you replay or drop it.
    """


@deadletters.command(name="list", short_help="List dead letters.")
@_receiver
@_sender
@local_option("--limit", default=100, type=click.IntRange(1), help="List at most this many.")
@gateway_options
@json_option
def list_dead_letters(to: str, sender: str, limit: int, gateway: str, as_json: bool) -> None:
    """List dead letters, each with its last error, the oldest of each shard first.

    \b
    Examples:
      holdfast deadletters list
      holdfast deadletters list --to Portfolio/north
    """

    def ask_page(after: bytes, rows: int) -> admin_pb2.DeadLettersResponse:
        return _ask_letters(
            gateway,
            admin_pb2.DeadLettersRequest(after=after, limit=rows, **_filters(to, sender)),
        )

    pages = ask_pages(ask_page, lambda page: [row.place for row in page.letters], limit, b"")
    letters = [letter for page in pages for letter in page.letters]
    more, missing = pages[-1].more, gaps(*pages)
    if as_json:
        facts = {"letters": [_shown(letter) for letter in letters], "more": more, **missing}
        click.echo(codec.encode_json(facts).decode())
        return
    table = Table()
    for title in ("id", "of", "to", "method", "attempts", "died", "error"):
        table.add_column(title)
    for letter in letters:
        table.add_row(
            letter.id,
            (
                f"{letter.sender_kind}/{letter.sender_key}"
                if letter.sender_kind
                else f"client {letter.sender_key}".rstrip()
            ),
            f"alarm {letter.alarm}" if letter.alarm else f"{letter.kind}/{letter.key}",
            letter.method,
            str(letter.attempts),
            _ago(letter.died_ms),
            f"{letter.code} {letter.error}"[:100],
        )
    if letters:
        make_console().print(table)
    else:
        click.echo("no dead letters")
    if more:
        click.echo("there are more: narrow the list with --to and --of, or raise --limit")
    say_missing(**missing, what="dead letters")


@deadletters.command(short_help="Show one dead letter with its payload.")
@click.argument("letter_id", metavar="ID")
@gateway_options
@json_option
def show(letter_id: str, gateway: str, as_json: bool) -> None:
    """Show the dead letter ID with its payload, as JSON.

    \b
    Example:
      holdfast deadletters show 0000008000000g000000000004001
    """
    try:
        place = dead_letter_place(letter_id)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    before = max(0, int.from_bytes(place, "big") - 1).to_bytes(len(place), "big")
    answer = _ask_letters(gateway, admin_pb2.DeadLettersRequest(after=before, limit=1))
    if not answer.letters or answer.letters[0].id != letter_id:
        say_missing(answer.silent, answer.unserved, "dead letters")
        raise click.ClickException(f"there is no dead letter {letter_id}")
    shown = codec.encode_json(_shown(answer.letters[0]))
    click.echo((shown if as_json else msgspec.json.format(shown, indent=2)).decode())


def _changing(name: str, replay: bool, help_text: str, short: str) -> click.Command:
    @deadletters.command(name=name, short_help=short, help=help_text)
    @click.argument("ids", nargs=-1, metavar="[ID]...")
    @click.option(
        "--all",
        "all_",
        is_flag=True,
        default=False,
        help="Take all dead letters, or all that match --to and --of.",
    )
    @_receiver
    @_sender
    @gateway_options
    @json_option
    def change(
        ids: tuple[str, ...], all_: bool, to: str, sender: str, gateway: str, as_json: bool
    ) -> None:
        if bool(ids) == all_ or (not all_ and (to or sender)):
            raise click.ClickException(
                "give the ids of dead letters, or --all (with --to and --of to narrow it)"
            )
        request = admin_pb2.ChangeDeadLettersRequest(
            ids=ids, all=all_, replay=replay, **_filters(to, sender)
        )
        answer = ask(
            gateway,
            "ChangeDeadLetters",
            request,
            admin_pb2.ChangeDeadLettersResponse,
            _CHANGE_TIMEOUT_S,
        )
        if as_json:
            click.echo(codec.encode_json(plain(answer)).decode())
        else:
            click.echo(f"{answer.changed} {'sent again' if replay else 'dropped'}")
            for letter_id, why in sorted(answer.refused.items()):
                click.echo(f"{letter_id}: {why}", err=True)
        if answer.refused:
            raise SystemExit(1)

    return change


_changing(
    "replay",
    True,
    "Send dead letters again, as new notifications behind those that wait already. Alarms fire once"
    " more.\n\nIf the outcome of a dead letter is unknown (an error like UNAVAILABLE), it may have"
    " taken effect before.\n\n\b\nExamples:\n  holdfast deadletters replay"
    " 0000008000000g000000000004001\n  holdfast deadletters replay --all --to Portfolio/north",
    "Send dead letters again.",
)
_changing(
    "drop",
    False,
    "Delete dead letters for good.\n\n\b\nExample:\n  holdfast deadletters drop --all --to"
    " Portfolio",
    "Delete dead letters for good.",
)


@click.command(short_help="List pending alarms.")
@click.argument("kind", default="")
@click.argument("prefix", default="")
@local_option("--limit", default=100, type=click.IntRange(1), help="List at most this many.")
@gateway_options
@json_option
def alarms(kind: str, prefix: str, limit: int, gateway: str, as_json: bool) -> None:
    """List the pending alarms of all objects, of the objects of KIND, or of those whose key begins
    with PREFIX.

    \b
    Example:
      holdfast alarms Viewing 2026-
    """

    def ask_page(after: bytes, rows: int) -> admin_pb2.AlarmsResponse:
        request = admin_pb2.AlarmsRequest(kind=kind, prefix=prefix, after=after, limit=rows)
        page: admin_pb2.AlarmsResponse = ask(
            gateway, "Alarms", request, admin_pb2.AlarmsResponse, _CHANGE_TIMEOUT_S
        )
        return page

    pages = ask_pages(ask_page, lambda page: [row.place for row in page.alarms], limit, b"")
    more, missing = pages[-1].more, gaps(*pages)
    rows = [
        {
            "kind": alarm.kind,
            "key": alarm.key,
            "name": alarm.name,
            "due_ms": alarm.due_ms,
            "scheduled_ms": alarm.scheduled_ms,
            "every": alarm.every,
            "attempt": alarm.attempt,
            "payload": _payload(alarm.payload),
        }
        for page in pages
        for alarm in page.alarms
    ]
    if as_json:
        facts = {"alarms": rows, "more": more, **missing}
        click.echo(codec.encode_json(facts).decode())
        return
    table = Table()
    for title in ("object", "name", "due", "every", "attempt"):
        table.add_column(title)
    for row in rows:
        table.add_row(
            f"{row['kind']}/{row['key']}",
            row["name"],
            _ago(row["due_ms"]),
            row["every"] or "-",
            str(row["attempt"]),
        )
    if rows:
        make_console().print(table)
    else:
        click.echo("no alarms")
    if more:
        click.echo("there are more: narrow the list with KIND and PREFIX, or raise --limit")
    say_missing(**missing, what="alarms")


@click.command(short_help="Pause notifications and alarms of a kind or an object.")
@click.argument("kind", default="")
@click.argument("key", default="")
@gateway_options
@json_option
def pause(kind: str, key: str, gateway: str, as_json: bool) -> None:
    """Pause notifications to KIND, or to the object KIND KEY, and its alarms, until `holdfast
    resume`. They wait meanwhile; calls still run.

    Notifications that are on their way already arrive. Without KIND, the command shows what is
    paused.

    \b
    Examples:
      holdfast pause Portfolio
      holdfast pause Portfolio north
    """
    _pause(admin_pb2.PauseRequest(kind=kind, key=key), gateway, as_json)


@click.command(short_help="Resume paused notifications and alarms.")
@click.argument("kind")
@click.argument("key", default="")
@gateway_options
@json_option
def resume(kind: str, key: str, gateway: str, as_json: bool) -> None:
    """Resume the notifications and alarms that `holdfast pause` stopped for the same KIND or KIND
    KEY.

    Notifications and alarms that waited go at a bounded rate.

    \b
    Example:
      holdfast resume Portfolio north
    """
    _pause(admin_pb2.PauseRequest(kind=kind, key=key, resume=True), gateway, as_json)


def _pause(request: admin_pb2.PauseRequest, gateway: str, as_json: bool) -> None:
    what = f"{request.kind}/{request.key}" if request.key else request.kind
    was = False
    if request.resume:
        before = ask(gateway, "Pause", admin_pb2.PauseRequest(), admin_pb2.PauseResponse)
        was = any((one.kind, one.key) == (request.kind, request.key) for one in before.paused)
    answer = ask(gateway, "Pause", request, admin_pb2.PauseResponse)
    if as_json:
        click.echo(
            codec.encode_json(
                {**plain(answer), **({"resumed": was} if request.resume else {})}
            ).decode()
        )
        return
    if request.resume:
        click.echo(f"resumed: {what}" if was else f"{what} was not paused")
    for one in answer.paused:
        click.echo(
            f"paused: {f'{one.kind}/{one.key}' if one.key else one.kind}, since"
            f" {_ago(int(one.at * 1000))}, by {one.by}"
        )
    if not answer.paused:
        click.echo("nothing is paused")


def _ask_letters(
    gateway: str, request: admin_pb2.DeadLettersRequest
) -> admin_pb2.DeadLettersResponse:
    answer: admin_pb2.DeadLettersResponse = ask(
        gateway, "DeadLetters", request, admin_pb2.DeadLettersResponse, _CHANGE_TIMEOUT_S
    )
    return answer


def _filters(to: str, sender: str) -> dict[str, Any]:
    kind, _, key = to.partition("/")
    sender_kind, _, sender_key = sender.partition("/")
    return {"kind": kind, "key": key, "sender_kind": sender_kind, "sender_key": sender_key}


def _shown(letter: admin_pb2.DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "sender": f"{letter.sender_kind}/{letter.sender_key}",
        "kind": letter.kind,
        "key": letter.key,
        "method": letter.method,
        "alarm": letter.alarm,
        "attempts": letter.attempts,
        "code": letter.code,
        "error": letter.error,
        "created_ms": letter.created_ms,
        "died_ms": letter.died_ms,
        "payload": _payload(letter.arguments),
    }


def _payload(raw: bytes) -> Any:
    """Return a payload in plain types, or as text if JSON cannot carry it."""
    payload = codec.decode(raw) if raw else None
    try:
        codec.encode_json(payload)
    except (TypeError, ValueError):
        return repr(payload)
    return payload


def _ago(ms: int) -> str:
    seconds = time.time() - ms / 1000
    what = next(
        (
            f"{abs(seconds) / size:.0f} {unit}"
            for size, unit in ((86400, "days"), (3600, "h"), (60, "min"))
            if abs(seconds) >= 2 * size
        ),
        "",
    )
    what = what or f"{abs(seconds):.0f} s"
    return f"{what} ago" if seconds >= 0 else f"in {what}"
