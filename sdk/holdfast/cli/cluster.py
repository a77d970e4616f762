"""`holdfast where`, `status`, `drain` and `reset-shard`: look at a cluster, and change it."""

from __future__ import annotations

import time

import click
from rich.console import Console
from rich.table import Table

from holdfast import codec
from holdfast.cli.gateway import ask, gateway_options, json_option
from holdfast.cli.output import make_console, plain
from holdfast.options import local_option
from holdfast.v1 import admin_pb2


@click.command(short_help="Show where an object lives.")
@click.argument("kind")
@click.argument("key")
@gateway_options
@json_option
def where(kind: str, key: str, gateway: str, as_json: bool) -> None:
    """Show the shard of the object KIND KEY, its owner and epoch, and the nodes that the ring
    prefers for it.

    \b
    Example:
      holdfast where Counter a
    """
    answer = ask(
        gateway, "Where", admin_pb2.WhereRequest(kind=kind, key=key), admin_pb2.WhereResponse
    )
    if as_json:
        click.echo(codec.encode_json(plain(answer)).decode())
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
    make_console().print(table)


@click.command(short_help="Show the members, their shards, and all problems.")
@gateway_options
@json_option
def status(gateway: str, as_json: bool) -> None:
    """Show the members, their shards, copies and epochs, and each problem with its reason. Exit
    status 2 if there is a problem that is not minor.

    \b
    Example:
      holdfast status --gateway 127.0.0.1:7400
    """
    answer = ask(gateway, "Status", admin_pb2.StatusRequest(), admin_pb2.StatusResponse)
    if as_json:
        click.echo(codec.encode_json(plain(answer)).decode())
    else:
        console = make_console()
        console.print(
            f"cluster {answer.cluster}: {answer.shards} shards, {answer.replication} copies"
            f" ({answer.min_in_sync} in sync to write), controller {answer.controller or 'none'}"
        )
        console.print(_nodes(answer))
        _print_work(console, answer)
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


def _nodes(answer: admin_pb2.StatusResponse) -> Table:
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
    return table


def _print_work(console: Console, answer: admin_pb2.StatusResponse) -> None:
    """Print what is under way in the cluster: moves of copies, and notifications that wait."""
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
@gateway_options
@json_option
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
    answer = ask(gateway, "Drain", request, admin_pb2.DrainResponse)
    while wait and not dry_run and not cancel:
        status = ask(gateway, "Status", admin_pb2.StatusRequest(), admin_pb2.StatusResponse)
        left = next((n for n in status.nodes if n.id == node), None)
        if left is None or (
            not left.shards_owned and left.shards_in_sync <= answer.copies_that_stay
        ):
            break
        time.sleep(0.2)
    if as_json:
        click.echo(codec.encode_json(plain(answer)).decode())
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
@gateway_options
@json_option
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
    answer = ask(gateway, "ResetShard", request, admin_pb2.ResetShardResponse)
    if as_json:
        click.echo(codec.encode_json(plain(answer)).decode())
    else:
        how = "goes on" if keep else "begins anew"
        click.echo(f"shard {shard} {how} on {answer.shard.owner} under epoch {answer.shard.epoch}")
