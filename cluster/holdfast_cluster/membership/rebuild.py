"""The rebuilding of etcd: it asks the nodes for their knowledge, and writes what `adopt` returns.

The first transaction raises the lineage's generation, and gives it a state that no process follows.
The last transaction removes that state. If a rebuild was cut short, start it again: the result is
the same.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import grpc
import msgspec
from holdfast.channels import open_process_channel
from holdfast.tls import Certificates

from holdfast_cluster.etcdpb import etcd_pb2 as pb
from holdfast_cluster.membership.etcd import TXN_OPS_MAX, EtcdError, delete_prefix, put
from holdfast_cluster.membership.guarded import GuardedEtcd
from holdfast_cluster.membership.lineage import ADOPTING
from holdfast_cluster.membership.view_watcher import apply
from holdfast_cluster.peerpb import peer_pb2
from holdfast_cluster.placement.adopt import Adoption, NotAdoptable, Report
from holdfast_cluster.placement.model import Keys, Lineage, View, encode

_ASK_S = 10.0


@dataclass(slots=True)
class Found:
    """The present content of etcd.

    `incarnations` is by node. `lineage_raw` is None if there is no lineage.
    """

    view: View
    lineage_raw: bytes | None
    incarnations: dict[str, int]


@dataclass(slots=True)
class Gathered:
    """The reports, by node, and, by address, the reasons why other nodes did not report."""

    reports: dict[str, Report] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)


async def look(etcd: GuardedEtcd, keys: Keys) -> Found:
    """Return the content of etcd. Raise EtcdError.

    Raise NotAdoptable when a value cannot be read, or when no process has found that etcd went
    back.
    """
    listing = await etcd.list_prefix(keys.prefix)
    prefix = keys.incarnations.encode()
    try:
        view = apply(View(), listing, keys)
        incarnations = {
            row.key[len(prefix) :].decode(): int(row.value)
            for row in listing.rows
            if bytes(row.key).startswith(prefix)
        }
    except ValueError as error:
        raise NotAdoptable(
            f"a value in etcd cannot be read: {error}. Delete that key first"
        ) from None
    if view.lineage is not None and not view.lineage.state:
        raise NotAdoptable(
            "etcd's lineage is not halted: no process has found that this etcd went back, so there"
            " is nothing to rebuild. Start the nodes: they compare etcd with their disks"
        )
    return Found(view, view.lineage_raw or None, incarnations)


async def gather(addresses: Iterable[str], certificates: Certificates | None) -> Gathered:
    """Ask the nodes at these addresses for reports, and then all the nodes that a report names."""
    gathered = Gathered()
    asked: set[str] = set()
    due = set(addresses)
    while due:
        wave = sorted(due)
        asked |= due
        due = set()
        for address, answer in zip(
            wave, await asyncio.gather(*(_ask(one, certificates) for one in wave)), strict=True
        ):
            if isinstance(answer, str):
                gathered.silent[address] = answer
            else:
                gathered.reports[answer.node] = answer
                due |= {
                    member.address
                    for member in answer.members.values()
                    if member.id not in gathered.reports
                }
        due -= asked
    return gathered


async def _ask(address: str, certificates: Certificates | None) -> Report | str:
    try:
        channel = open_process_channel(address, certificates)
    except ValueError as error:
        return str(error)
    try:
        call: Any = channel.unary_unary(
            "/holdfast.peer.v1.Peer/Known",
            request_serializer=peer_pb2.KnownRequest.SerializeToString,
            response_deserializer=peer_pb2.KnownResponse.FromString,
        )
        return Report.of(await call(peer_pb2.KnownRequest(), timeout=_ASK_S))
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name}: {error.details()}"
    except (msgspec.MsgspecError, ValueError) as error:
        return f"its answer cannot be understood: {error}"
    finally:
        await channel.close()


async def rebuild(etcd: GuardedEtcd, keys: Keys, found: Found, adoption: Adoption) -> None:
    """Write the adoption in place of the content that was found.

    Raise EtcdError. Whatever the outcome was then, the rebuild may be started again.
    """
    adopting = Lineage(adoption.generation, secrets.randbits(53), ADOPTING)
    void = [
        delete_prefix(prefix)
        for prefix in (keys.shards, keys.drains, keys.pauses, keys.incarnations)
    ]
    raw = await etcd.begin(
        [], [*void, put(keys.settings, encode(adoption.settings))], found.lineage_raw, adopting
    )
    if raw is None:
        raise EtcdError("etcd has changed meanwhile: look at the status, and run this again")
    etcd.follow(adopting, raw)
    rows: list[pb.RequestOp] = [
        put(keys.shard(shard), encode(to)) for shard, to in sorted(adoption.assignments.items())
    ]
    rows += [
        put(keys.incarnation(node), str(number).encode())
        for node, number in sorted(adoption.incarnations.items())
    ]
    rows += [
        put(keys.drain(node), encode(drain)) for node, drain in sorted(adoption.drains.items())
    ]
    rows += [
        put(keys.pause(kind, key), encode(pause))
        for (kind, key), pause in sorted(adoption.pauses.items())
    ]
    for i in range(0, len(rows), TXN_OPS_MAX):
        if not await etcd.txn([], rows[i : i + TXN_OPS_MAX]):
            raise AssertionError(
                "a transaction that compares only the lineage raises EtcdForeign when it fails"
            )
    if await etcd.begin([], [], raw, msgspec.structs.replace(adopting, state="")) is None:
        raise EtcdError("etcd has changed meanwhile: run this again")
