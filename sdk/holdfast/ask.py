"""`holdfast call`, `where` and `status`: asking a running cluster."""

from __future__ import annotations

import asyncio
from typing import Any

import click
import grpc
import msgspec
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.table import Table

from holdfast import codec
from holdfast.channels import open_channel
from holdfast.client import connect
from holdfast.errors import ApplicationError, HoldfastError
from holdfast.options import option
from holdfast.v1 import admin_pb2
from holdfast.v1 import objects_pb2 as pb

_gateway = option("--gateway", default="127.0.0.1:7400", help="A gateway of the cluster, host:port.")
_json = option("--json", "as_json", is_flag=True, default=False, help="Print JSON.")
_TIMEOUT_S = 5.0
_REACH_S = 3.0


@click.command(short_help="Call a method of an object.")
@click.argument("kind")
@click.argument("key")
@click.argument("method")
@click.argument("arguments", default="")
@option("--timeout", default=30.0, help="Seconds to wait.")
@_gateway
@_json
def call(kind: str, key: str, method: str, arguments: str, timeout: float, gateway: str, as_json: bool) -> None:
    """Call METHOD of the object KIND KEY with ARGUMENTS in JSON: an object of named ones or an array; prints the result as JSON.

    \b
    Examples:
      holdfast call Counter a increment '{"by": 2}'
      holdfast call Counter a value
    """

    async def run() -> bytes:
        await _reach(gateway)
        async with connect(gateway) as client:
            return await client.call(kind, key, method, arguments.encode(), timeout=timeout, codec=pb.CODEC_JSON)

    try:
        result = asyncio.run(run())
    except HoldfastError as error:
        if as_json:
            facts: dict[str, Any] = {"code": error.code, "message": error.message}
            facts |= {"definite": error.definite, "retryable": error.retryable, "request_id": error.request_id.hex()}
            if isinstance(error, ApplicationError):
                facts |= {"type": error.type, "data": error.data}
            click.echo(codec.encode_json({"error": facts}).decode())
            raise SystemExit(1) from None
        what = error.code
        if isinstance(error, ApplicationError):
            what += f" {error.type}"
        text = f"{what}: {error.message}"
        if isinstance(error, ApplicationError) and error.data:
            text += f" {codec.encode_json(error.data).decode()}"
        raise click.ClickException(f"{text} (request {error.request_id.hex()})") from None
    click.echo((result if as_json else msgspec.json.format(result, indent=2)).decode())


@click.command(short_help="Show where an object lives.")
@click.argument("kind")
@click.argument("key")
@_gateway
@_json
def where(kind: str, key: str, gateway: str, as_json: bool) -> None:
    """Show the shard of the object KIND KEY, its owner and epoch, and the nodes that the ring prefers for it.

    \b
    Example:
      holdfast where Counter a
    """
    answer = _ask(gateway, "Where", admin_pb2.WhereRequest(kind=kind, key=key), admin_pb2.WhereResponse)
    if as_json:
        click.echo(codec.encode_json(_plain(answer)).decode())
        return
    table = Table(show_header=False, box=None)
    table.add_row("object", f"{kind}/{key}")
    table.add_row("shard", str(answer.shard.shard))
    table.add_row(
        "owner", f"{answer.shard.owner or 'none yet'} at {answer.address}" if answer.address else f"{answer.shard.owner}, absent"
    )
    table.add_row("epoch", str(answer.shard.epoch))
    table.add_row("copies", ", ".join(answer.shard.in_sync))
    table.add_row("ring", ", ".join(answer.preference))
    _console().print(table)


@click.command(short_help="Show the members, their shards, and what is not healthy.")
@_gateway
@_json
def status(gateway: str, as_json: bool) -> None:
    """Show the members, shards per node, epochs, and what is not healthy and why. Exit status 2 when something is not.

    \b
    Example:
      holdfast status --gateway 127.0.0.1:7400
    """
    answer = _ask(gateway, "Status", admin_pb2.StatusRequest(), admin_pb2.StatusResponse)
    if as_json:
        click.echo(codec.encode_json(_plain(answer)).decode())
    else:
        console = _console()
        console.print(
            f"cluster {answer.cluster}: {answer.shards} shards, {answer.replication} copies, controller {answer.controller or 'none'}"
        )
        table = Table()
        for title in ("node", "address", "state", "shards", "epoch", "incarnation", "active objects", "turns", "MiB"):
            table.add_column(title)
        for node in answer.nodes:
            stats = node.stats
            known = node.HasField("stats")
            table.add_row(
                node.id,
                node.address or "-",
                node.state,
                str(node.shards_owned),
                str(node.epoch_max),
                str(node.incarnation),
                str(stats.activations) if known else "-",
                str(stats.turns) if known else "-",
                str(stats.process.rss_bytes >> 20) if known else "-",
            )
        console.print(table)
        for problem in answer.problems:
            console.print(f"[red]{problem.what}[/red]: {problem.why}")
        if not answer.problems:
            console.print("[green]healthy[/green]")
    if answer.problems:
        raise SystemExit(2)


async def _reach(gateway: str) -> None:
    """Find out soon whether there is a gateway at all."""
    try:
        channel = open_channel(gateway)
    except ValueError as error:
        raise click.ClickException(f"--gateway: {error}") from None
    try:
        await asyncio.wait_for(channel.channel_ready(), _REACH_S)
    except TimeoutError:
        hint = "start one with `holdfast dev APP`, or name another with --gateway"
        raise click.ClickException(f"no gateway at {gateway}: {hint}") from None
    finally:
        await channel.close()


def _console() -> Console:
    """Wide when nobody's terminal limits it: what is piped is not cut."""
    console = Console()
    if not console.is_terminal:
        console.width = 200
    return console


def _plain(message: Any) -> Any:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def _ask(gateway: str, method: str, request: Any, reply_type: Any) -> Any:
    async def run() -> Any:
        await _reach(gateway)
        channel = open_channel(gateway)
        try:
            ask = channel.unary_unary(
                f"/holdfast.v1.Admin/{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=reply_type.FromString,
            )
            return await ask(request, timeout=_TIMEOUT_S)
        finally:
            await channel.close()

    try:
        return asyncio.run(run())
    except grpc.aio.AioRpcError as error:
        raise click.ClickException(f"gateway {gateway}: {error.code().name}: {error.details()}") from None
