"""What the commands print: tables, messages as plain JSON, and hints about what is missing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click
from google.protobuf.json_format import MessageToDict
from rich.console import Console

from holdfast.cli.gateway import ask
from holdfast.v1 import admin_pb2


def make_console() -> Console:
    """Return a console. It is wide if the output is no terminal, so that piped lines are not
    cut.
    """
    console = Console()
    if not console.is_terminal:
        console.width = 200
    return console


def plain(message: Any) -> Any:
    """Return a message as JSON has it: all numbers as numbers, also those of 64 bits, and bytes as
    base64.
    """
    shown = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return _with_numbers(shown, message.DESCRIPTOR)


def _with_numbers(shown: Any, of: Any) -> Any:
    """Replace the text by which protobuf's JSON shows 64-bit numbers by numbers, in a message of
    this type.
    """
    for field in of.fields:
        if field.name not in shown:
            continue
        value = shown[field.name]
        entry = (
            field.message_type
            if field.message_type is not None and field.message_type.GetOptions().map_entry
            else None
        )
        if entry is not None:
            shown[field.name] = {
                key: _number(each, entry.fields_by_name["value"]) for key, each in value.items()
            }
        elif isinstance(value, list):
            shown[field.name] = [_number(each, field) for each in value]
        else:
            shown[field.name] = _number(value, field)
    return shown


def _number(value: Any, field: Any) -> Any:
    if field.message_type is not None:
        return _with_numbers(value, field.message_type)
    return int(value) if field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64) else value


def say_missing(silent: Iterable[str], unserved: Iterable[int], what: str) -> None:
    """Tell the user which shards and nodes the answer lacks. `what`: what the answer lists."""
    shards = len(list(unserved))
    if shards:
        click.echo(
            f"the {what} of {shards} shards are missing: no node serves these shards now (holdfast"
            " status)",
            err=True,
        )
    for node in silent:
        click.echo(f"node {node} did not answer: the {what} of its shards are missing", err=True)


def say_unknown(gateway: str, kind: str) -> None:
    """Tell the user if the kind is unknown to all nodes, after nothing was found."""
    try:
        status = ask(gateway, "Status", admin_pb2.StatusRequest(), admin_pb2.StatusResponse)
    except click.ClickException:
        return  # this is only a hint; the answer itself was printed
    kinds = sorted({name for node in status.nodes for name in node.stats.kinds})
    if kinds and kind not in kinds:
        click.echo(f"no node has a kind {kind!r}; there are {', '.join(kinds)}", err=True)
