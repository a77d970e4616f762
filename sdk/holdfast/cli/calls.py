"""`holdfast call`, `where`, `status`, `drain` and `reset-shard`: commands that ask a running
cluster.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import click
import grpc
import msgspec
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.table import Table

from holdfast import codec
from holdfast.channels import open_client_channel
from holdfast.client.client import connect
from holdfast.errors import ApplicationError, HoldfastError
from holdfast.options import local_option, option
from holdfast.tls import TLS, authorization
from holdfast.v1 import admin_pb2
from holdfast.v1 import objects_pb2 as pb

_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
_SHOWN = "holdfast.shown"  # where a command's context keeps what it shows to gateways


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    assert parameter.name is not None
    context.meta.setdefault(_SHOWN, {})[parameter.name] = value


def _gateway(command: Any) -> Any:
    """Add the options of every command that asks a gateway: the gateway, and what to show to it.
    The command gets `gateway`.
    """
    for add in (
        option(
            "--token-file",
            type=_FILE,
            callback=_keep,
            expose_value=False,
            help="File with the bearer token to show to the gateway.",
        ),
        option(
            "--client-key",
            type=_FILE,
            callback=_keep,
            expose_value=False,
            help="Key of --client-cert, PEM.",
        ),
        option(
            "--client-cert",
            type=_FILE,
            callback=_keep,
            expose_value=False,
            help="Certificate to show to the gateway, PEM.",
        ),
        option(
            "--server-name",
            callback=_keep,
            expose_value=False,
            help="Name in the gateway's certificate, if it is not its address.",
        ),
        option(
            "--gateway-ca",
            type=_FILE,
            callback=_keep,
            expose_value=False,
            help="CA of the gateway's certificate, PEM; connect with TLS.",
        ),
        option("--gateway", default="127.0.0.1:7400", help="A gateway of the cluster, host:port."),
    ):
        command = add(command)
    return command


def shown() -> tuple[TLS | None, str | None]:
    """Return the TLS and the token that the running command's options name, for `holdfast.connect`.
    Raise ClickException.
    """
    options: dict[str, Any] = click.get_current_context().meta.get(_SHOWN, {})
    ca, cert, key = (options.get(name) for name in ("gateway_ca", "client_cert", "client_key"))
    file: Path | None = options.get("token_file")
    try:
        token = None if file is None else file.read_text().strip()
        authorization(token)
    except (OSError, ValueError) as error:
        raise click.ClickException(f"--token-file {file}: {error}") from None
    if ca is None:
        if cert is not None or key is not None:
            raise click.ClickException("--client-cert and --client-key need --gateway-ca")
        return None, token
    tls = TLS(ca, cert, key, options.get("server_name"))
    try:
        tls.credentials()
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    return tls, token


_json = local_option("--json", "as_json", is_flag=True, default=False, help="Print JSON.")
_TIMEOUT_S = 5.0
_REACH_S = 3.0


@click.command(short_help="Call a method of an object.")
@click.argument("kind")
@click.argument("key")
@click.argument("method")
@click.argument("arguments", default="")
@local_option("--timeout", default=30.0, help="Deadline of the call, in seconds.")
@_gateway
@_json
def call(
    kind: str, key: str, method: str, arguments: str, timeout: float, gateway: str, as_json: bool
) -> None:
    """Call METHOD of the object KIND KEY, and print the result as JSON.

    ARGUMENTS are JSON: an object with named arguments, or an array.

    \b
    Examples:
      holdfast call Counter a increment '{"by": 2}'
      holdfast call Counter a value
    """

    tls, token = shown()

    async def run() -> bytes:
        await _reach(gateway, tls)
        async with connect(gateway, tls=tls, token=token) as client:
            return await client.call(
                kind, key, method, arguments.encode(), timeout=timeout, codec=pb.CODEC_JSON
            )

    try:
        result = asyncio.run(run())
    except HoldfastError as error:
        if as_json:
            facts: dict[str, Any] = {"code": error.code, "message": error.message}
            facts |= {
                "definite": error.definite,
                "retryable": error.retryable,
                "request_id": error.request_id.hex(),
            }
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
    """Show the shard of the object KIND KEY, its owner and epoch, and the nodes that the ring
    prefers for it.

    \b
    Example:
      holdfast where Counter a
    """
    answer = _ask(
        gateway, "Where", admin_pb2.WhereRequest(kind=kind, key=key), admin_pb2.WhereResponse
    )
    if as_json:
        click.echo(codec.encode_json(_plain(answer)).decode())
        return
    table = Table(show_header=False, box=None)
    table.add_row("object", f"{kind}/{key}")
    table.add_row("shard", str(answer.shard.shard))
    table.add_row(
        "owner",
        (
            f"{answer.shard.owner or 'none yet'} at {answer.address}"
            if answer.address
            else f"{answer.shard.owner}, absent"
        ),
    )
    table.add_row("epoch", str(answer.shard.epoch))
    table.add_row("copies", ", ".join(answer.shard.in_sync))
    table.add_row("ring", ", ".join(answer.preference))
    _console().print(table)


@click.command(short_help="Show the members, their shards, and all problems.")
@_gateway
@_json
def status(gateway: str, as_json: bool) -> None:
    """Show the members, their shards, copies and epochs, and each problem with its reason. Exit
    status 2 if there is a problem that is not minor.

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
            f"cluster {answer.cluster}: {answer.shards} shards, {answer.replication} copies"
            f" ({answer.min_in_sync} in sync to write), controller {answer.controller or 'none'}"
        )
        table = Table()
        for title in (
            "node",
            "address",
            "state",
            "owns",
            "in sync",
            "joining",
            "lag",
            "epoch",
            "start",
            "active",
            "turns",
            "MiB",
        ):
            table.add_column(title)
        for node in answer.nodes:
            stats = node.stats
            known = node.HasField("stats")
            table.add_row(
                node.id,
                node.address or "-",
                node.state,
                str(node.shards_owned),
                str(node.shards_in_sync),
                str(node.shards_joining),
                str(stats.replica_lag) if known else "-",
                str(node.epoch_max),
                str(node.incarnation),
                str(stats.activations) if known else "-",
                str(stats.turns) if known else "-",
                str(stats.process.rss_bytes >> 20) if known else "-",
            )
        console.print(table)
        moves = answer.moves
        if moves.joining or moves.handovers or moves.leaving:
            console.print(
                f"moving: {moves.joining} copies are being made ({moves.bytes_sent / 1e6:,.0f} MB"
                f" sent so far), {moves.handovers} shards change their owner, {moves.leaving}"
                " copies are about to go"
            )
        letters = sum(node.stats.dead_letters for node in answer.nodes)
        waiting = sum(node.stats.outbox for node in answer.nodes)
        if waiting or letters:
            console.print(
                f"notifications: {waiting} wait to be delivered, {letters} dead letters (holdfast"
                " deadletters list)"
            )
        for one in answer.paused:
            console.print(
                f"paused: {f'{one.kind}/{one.key}' if one.key else one.kind} (holdfast resume)"
            )
        for problem in answer.problems:
            colour = "yellow" if problem.minor else "red"
            console.print(f"[{colour}]{problem.what}[/{colour}]: {problem.why}")
        if not answer.problems:
            console.print("[green]healthy[/green]")
    if not all(problem.minor for problem in answer.problems):
        raise SystemExit(2)


@click.command(short_help="Move everything from a node to other nodes.")
@click.argument("node")
@local_option(
    "--dry-run",
    is_flag=True,
    default=False,
    help="Change nothing; say what would move, and about how many seconds it would take.",
)
@local_option("--cancel", is_flag=True, default=False, help="End the drain of the node.")
@local_option(
    "--wait",
    is_flag=True,
    default=False,
    help="Wait until the node has given up everything that other nodes can take.",
)
@_gateway
@_json
def drain(node: str, dry_run: bool, cancel: bool, wait: bool, gateway: str, as_json: bool) -> None:
    """Move all shards that NODE owns, and all its copies, to other nodes. Calls go on. When the
    node has nothing left, you can stop its process.

    To restart a node you need no drain: on SIGTERM the node hands its shards over, and its copies
    stay.

    \b
    Examples:
      holdfast drain n2-3f9a1c --dry-run
      holdfast drain n2-3f9a1c --wait
    """
    request = admin_pb2.DrainRequest(node=node, cancel=cancel, dry_run=dry_run)
    answer = _ask(gateway, "Drain", request, admin_pb2.DrainResponse)
    while wait and not dry_run and not cancel:
        status = _ask(gateway, "Status", admin_pb2.StatusRequest(), admin_pb2.StatusResponse)
        left = next((n for n in status.nodes if n.id == node), None)
        if left is None or (
            not left.shards_owned and left.shards_in_sync <= answer.copies_that_stay
        ):
            break
        time.sleep(0.2)
    if as_json:
        click.echo(codec.encode_json(_plain(answer)).decode())
    elif cancel:
        click.echo(f"{node} takes part again")
    else:
        would = "would move" if dry_run else "moved" if wait else "move"
        size = (
            f", about {answer.bytes / 1e6:,.1f} MB, {answer.seconds:.0f} s" if answer.bytes else ""
        )
        click.echo(
            f"{answer.owned} owned shards and {answer.copies} copies{size} {would} from {node} to"
            " other nodes"
        )
        if answer.copies_that_stay:
            click.echo(
                f"{answer.copies_that_stay} copies stay: too few other nodes are there to take them"
            )


@click.command(name="reset-shard", short_help="Give up the data of a shard that has no copy left.")
@click.argument("shard", type=int)
@click.option(
    "--keep",
    metavar="NODE",
    default="",
    help="If the copies of the shard differ: go on with this node's copy; the others are void.",
)
@click.option(
    "--confirm",
    help=(
        'The confirmation, instead of a prompt: "give up the data of shard SHARD", or with --keep'
        ' "keep the copy of NODE of shard SHARD".'
    ),
)
@_gateway
@_json
def reset_shard(shard: int, keep: str, confirm: str | None, gateway: str, as_json: bool) -> None:
    """Begin SHARD anew, EMPTY, if every node that has its data is gone for good. All data of the
    shard is lost.

    The cluster refuses this while one of the shard's in-sync nodes is there. If such a node comes
    back later, its copy is thrown away.

    With --keep, SHARD goes on with the copy of one node. Use it if the copies of a shard hold
    different acknowledged writes; `holdfast status` says so. Writes that only the other copies hold
    are lost.

    \b
    Examples:
      holdfast reset-shard 17
      holdfast reset-shard 17 --keep node-1-3f9a2c
    """
    wanted = (
        f"keep the copy of {keep} of shard {shard}"
        if keep
        else f"give up the data of shard {shard}"
    )
    if confirm is None:
        what = (
            f"Writes of shard {shard} that only other nodes hold will be lost"
            if keep
            else f"All objects of shard {shard} will be empty"
        )
        confirm = click.prompt(f"{what}. To go on, type: {wanted}\n", prompt_suffix="> ")
    request = admin_pb2.ResetShardRequest(shard=shard, confirmation=confirm, keep=keep)
    answer = _ask(gateway, "ResetShard", request, admin_pb2.ResetShardResponse)
    if as_json:
        click.echo(codec.encode_json(_plain(answer)).decode())
    else:
        how = "goes on" if keep else "begins anew"
        click.echo(f"shard {shard} {how} on {answer.shard.owner} under epoch {answer.shard.epoch}")


async def _reach(gateway: str, tls: TLS | None) -> None:
    """Raise ClickException soon if there is no gateway."""
    try:
        channel = open_client_channel(gateway, tls)
    except ValueError as error:
        raise click.ClickException(f"--gateway: {error}") from None
    try:
        await asyncio.wait_for(channel.channel_ready(), _REACH_S)
    except TimeoutError:
        hint = "start one with `holdfast dev APP`, or name another with --gateway"
        if tls is None:
            hint += "; if it speaks TLS, name the CA of its certificate with --gateway-ca"
        else:
            hint += (
                "; or --gateway-ca has not signed its certificate for this address, or it asks for"
                " a client certificate"
            )
        raise click.ClickException(f"no gateway at {gateway}: {hint}") from None
    finally:
        await channel.close()


def _console() -> Console:
    """Return a console. It is wide if the output is no terminal, so that piped lines are not
    cut.
    """
    console = Console()
    if not console.is_terminal:
        console.width = 200
    return console


def _plain(message: Any) -> Any:
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


def _say_missing(silent: Iterable[str], unserved: Iterable[int]) -> None:
    shards = len(list(unserved))
    if shards:
        click.echo(
            f"the objects of {shards} shards are missing: no node serves these shards now (holdfast"
            " status)",
            err=True,
        )
    for node in silent:
        click.echo(f"node {node} did not answer: the objects that it owns are missing", err=True)


def _say_unknown(gateway: str, kind: str) -> None:
    """Tell the user if the kind is unknown to all nodes, after nothing was found."""
    try:
        status = _ask(gateway, "Status", admin_pb2.StatusRequest(), admin_pb2.StatusResponse)
    except click.ClickException:
        return  # this is only a hint; the answer itself was printed
    kinds = sorted({name for node in status.nodes for name in node.stats.kinds})
    if kinds and kind not in kinds:
        click.echo(f"no node has a kind {kind!r}; there are {', '.join(kinds)}", err=True)


def _ask(
    gateway: str, method: str, request: Any, reply_type: Any, timeout_s: float = _TIMEOUT_S
) -> Any:
    tls, token = shown()

    async def run() -> Any:
        await _reach(gateway, tls)
        channel = open_client_channel(gateway, tls)
        try:
            ask = channel.unary_unary(
                f"/holdfast.v1.Admin/{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=reply_type.FromString,
            )
            return await ask(request, timeout=timeout_s, metadata=authorization(token))
        finally:
            await channel.close()

    try:
        return asyncio.run(run())
    except grpc.aio.AioRpcError as error:
        raise _refused(gateway, error, token) from None


def _refused(gateway: str, error: grpc.aio.AioRpcError, token: str | None) -> click.ClickException:
    hint = ""
    if token is None and error.code() in (
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
    ):
        hint = " (show a token with --token-file, or a certificate with --client-cert)"
    return click.ClickException(f"gateway {gateway}: {error.code().name}: {error.details()}{hint}")


def _ask_stream(gateway: str, method: str, request: Any, reply_type: Any) -> Iterator[Any]:
    """Yield the replies of a gateway to one request, as they come."""
    replies: Queue[Any] = Queue()
    tls, token = shown()

    async def run() -> None:
        await _reach(gateway, tls)
        channel = open_client_channel(gateway, tls)
        try:
            ask = channel.unary_stream(
                f"/holdfast.v1.Admin/{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=reply_type.FromString,
            )
            async for reply in ask(request, metadata=authorization(token)):
                replies.put(reply)
        finally:
            await channel.close()

    def work() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:
            replies.put(error)
        else:
            replies.put(None)

    Thread(target=work, daemon=True).start()
    while (reply := replies.get()) is not None:
        if isinstance(reply, grpc.aio.AioRpcError):
            raise _refused(gateway, reply, token) from None
        if isinstance(reply, BaseException):
            raise reply
        yield reply
