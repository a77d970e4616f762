"""`holdfast adopt-etcd`: rebuilds etcd from the nodes' knowledge, when etcd's own data is lost."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from holdfast.options import certificates, etcd_options, local_option, option, tls_options
from holdfast.tls import Certificates

from holdfast_cluster.membership.etcd import EtcdError, etcd_tls
from holdfast_cluster.membership.guarded import GuardedEtcd
from holdfast_cluster.membership.rebuild import Found, Gathered, gather, look, rebuild
from holdfast_cluster.placement.adopt import Adoption, NotAdoptable, adopt
from holdfast_cluster.placement.model import Keys


@dataclass(frozen=True)
class AdoptOptions:
    """The options of `holdfast adopt-etcd`, under the options' names."""

    nodes: tuple[str, ...]
    without: tuple[str, ...]
    dry_run: bool
    confirm: str | None
    etcd_endpoints: str
    etcd_ca: Path | None
    etcd_cert: Path | None
    etcd_key: Path | None
    tls_cert: Path | None
    tls_key: Path | None
    tls_ca: Path | None
    tls_name: str | None
    cluster: str


@click.command(
    name="adopt-etcd",
    short_help="Rebuild etcd from the nodes' knowledge, after it was emptied or put back.",
)
@local_option(
    "--node",
    "nodes",
    multiple=True,
    help="Address of a node, host:port, as in its --listen; the node names the other nodes.",
)
@local_option(
    "--without",
    multiple=True,
    help="Id of a node that cannot report and is gone for good. Knowledge it alone had is lost.",
)
@local_option(
    "--dry-run", is_flag=True, default=False, help="Show the new content of etcd; write nothing."
)
@local_option(
    "--confirm", help='The confirmation, in place of the prompt: "adopt etcd for cluster ID".'
)
@etcd_options
@tls_options
@option("--cluster", default="default", help="The cluster's name.")
def adopt_etcd(**given: Any) -> None:
    """Rebuild etcd from the data on the nodes' disks.

    Use it when etcd's own newest data cannot be put back. The command asks the nodes and etcd; it
    needs no gateway. Every node that was ever in the cluster has to report: it may be running, or
    waiting for etcd. You may run the command again at any time.

    \b
    Examples:
      holdfast adopt-etcd --node 10.0.0.5:7401 --dry-run
      holdfast adopt-etcd --node 10.0.0.5:7401 --without n3-9f31c2
    """
    options = AdoptOptions(**given)
    try:
        keys = Keys(options.cluster)
        etcd = GuardedEtcd(
            options.etcd_endpoints.split(","),
            keys,
            tls=etcd_tls(options.etcd_ca, options.etcd_cert, options.etcd_key),
        )
        shown = certificates(
            options.cluster, options.tls_cert, options.tls_key, options.tls_ca, options.tls_name
        )
        asyncio.run(
            _adopt(
                etcd, keys, options.nodes, options.without, options.dry_run, options.confirm, shown
            )
        )
    except (NotAdoptable, EtcdError, ValueError) as error:
        raise click.ClickException(str(error)) from None


async def _adopt(
    etcd: GuardedEtcd,
    keys: Keys,
    nodes: tuple[str, ...],
    without: tuple[str, ...],
    dry_run: bool,
    confirm: str | None,
    shown: Certificates | None,
) -> None:
    try:
        found = await look(etcd, keys)
        seeds = {*nodes, *(member.address for member in found.view.members.values())}
        if not seeds:
            raise NotAdoptable("etcd names no node: give a node's address with --node")
        gathered = await gather(seeds, shown)
        for address, why in sorted(gathered.silent.items()):
            click.echo(f"no report from {address}: {why}", err=True)
        generation = found.view.lineage.generation if found.view.lineage is not None else 0
        adoption = adopt(list(gathered.reports.values()), without, generation, found.incarnations)
        _tell(found, gathered, adoption)
        if dry_run:
            return
        wanted = f"adopt etcd for cluster {adoption.settings.id[:8]}"
        if confirm is None:
            confirm = await asyncio.to_thread(
                click.prompt, f"To write this, type: {wanted}\n", prompt_suffix="> "
            )
        if confirm != wanted:
            raise NotAdoptable(f"nothing was written: the confirmation has to be: {wanted}")
        await rebuild(etcd, keys, found, adoption)
        click.echo(
            f"etcd is rebuilt as generation {adoption.generation}: every process follows it within"
            " about 8 s"
        )
    finally:
        await etcd.close()


def _tell(found: Found, gathered: Gathered, adoption: Adoption) -> None:
    now = found.view.assignments
    differ = 0
    for shard, to in adoption.assignments.items():
        there = now.get(shard)
        differ += there is None or set(there.assignment.in_sync) != set(to.in_sync)
    click.echo(f"cluster {adoption.settings.id}, generation {adoption.generation}")
    click.echo(f"reports of {len(gathered.reports)} nodes: {', '.join(sorted(gathered.reports))}")
    click.echo(
        f"{len(adoption.assignments)} of {adoption.settings.shards} shards are known; etcd now"
        f" has {differ} of them differently or not at all"
    )
    click.echo(f"{len(adoption.drains)} drains, {len(adoption.pauses)} pauses")
    for note in adoption.notes:
        click.echo(note)
