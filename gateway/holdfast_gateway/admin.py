"""The admin service of a gateway: what it knows from its routes, and what nodes tell when asked."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from typing import Any

import grpc
from holdfast.channels import open_channel
from holdfast.processes import process_stats
from holdfast.v1 import admin_pb2, admin_pb2_grpc
from holdfast_cluster.dispatch import KEY_BYTES_MAX, Dispatcher
from holdfast_cluster.feed import ViewFeed
from holdfast_cluster.model import Assignment, View
from holdfast_cluster.ring import shard_of

_STATS_TIMEOUT_S = 1.0


class AdminService(admin_pb2_grpc.AdminServicer):
    """Serves `holdfast.v1.Admin`."""

    def __init__(self, feed: ViewFeed, dispatcher: Dispatcher, cluster: str) -> None:
        self._feed = feed
        self._dispatcher = dispatcher
        self._cluster = cluster
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()

    async def Status(self, request: admin_pb2.StatusRequest, context: Any) -> admin_pb2.StatusResponse:
        """The whole cluster, as this gateway sees it."""
        view = self._feed.view
        if view.settings is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the cluster's routes are not loaded yet")
            raise AssertionError
        response = admin_pb2.StatusResponse(
            cluster=self._cluster,
            shards=view.settings.shards,
            replication=view.settings.replication,
            controller=view.controller,
            gateway=admin_pb2.GatewayStatus(
                routes_revision=view.revision,
                etcd_connected=self._feed.disconnected_s == 0,
                calls_in_flight=self._dispatcher.in_flight,
                calls_held=self._dispatcher.held,
                process=process_stats(),
            ),
        )
        stats = await self._all_stats(view)
        owned = Counter(versioned.assignment.owner for versioned in view.assignments.values())
        epochs: dict[str, int] = defaultdict(int)
        for versioned in view.assignments.values():
            epochs[versioned.assignment.owner] = max(epochs[versioned.assignment.owner], versioned.assignment.epoch)
        for node in sorted(set(view.members) | set(owned)):
            member = view.members.get(node)
            status = admin_pb2.NodeStatus(id=node, state="absent", shards_owned=owned[node], epoch_max=epochs[node])
            if member is not None:
                status.address, status.host, status.zone = member.address, member.host, member.zone
                status.weight, status.state, status.incarnation = member.weight, member.state, member.incarnation
            if node in stats:
                status.stats.CopyFrom(stats[node])
            response.nodes.append(status)
        response.problems.extend(self._problems(view, stats, owned))
        for shard in sorted(view.assignments):
            response.assignments.append(_shard_status(shard, view.assignments[shard].assignment))
        return response

    async def Where(self, request: admin_pb2.WhereRequest, context: Any) -> admin_pb2.WhereResponse:
        """The shard of an object, its owner, and what the ring says."""
        view = self._feed.view
        if not 0 < len(request.key.encode()) <= KEY_BYTES_MAX or not request.kind:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"name a kind, and a key of 1 to {KEY_BYTES_MAX} bytes")
        if view.settings is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the cluster's routes are not loaded yet")
            raise AssertionError
        shard = shard_of(request.kind, request.key, view.settings.shards)
        response = admin_pb2.WhereResponse(preference=view.ring.preference_list(shard, len(view.members)))
        response.shard.shard = shard
        versioned = view.assignments.get(shard)
        if versioned is not None:
            response.shard.CopyFrom(_shard_status(shard, versioned.assignment))
        owner = view.owner_of(shard)
        if owner is not None:
            response.address = owner.address
        return response

    async def _all_stats(self, view: View) -> dict[str, admin_pb2.StatsResponse]:
        async def ask(address: str) -> admin_pb2.StatsResponse | None:
            channel = self._channels.get(address)
            if channel is None:
                channel = self._channels[address] = open_channel(address)
            call = channel.unary_unary(
                "/holdfast.v1.Peer/Stats",
                request_serializer=admin_pb2.StatsRequest.SerializeToString,
                response_deserializer=admin_pb2.StatsResponse.FromString,
            )
            try:
                return await call(admin_pb2.StatsRequest(), timeout=_STATS_TIMEOUT_S)
            except grpc.aio.AioRpcError:
                return None

        members = list(view.members.values())
        for address in set(self._channels) - {member.address for member in members}:
            if (channel := self._channels.pop(address, None)) is not None:
                await channel.close()
        answers = await asyncio.gather(*(ask(member.address) for member in members))
        return {member.id: answer for member, answer in zip(members, answers, strict=True) if answer is not None}

    def _problems(self, view: View, stats: dict[str, admin_pb2.StatsResponse], owned: Counter[str]) -> list[admin_pb2.Problem]:
        assert view.settings is not None
        problems = []

        def problem(what: str, why: str) -> None:
            problems.append(admin_pb2.Problem(what=what, why=why))

        if self._feed.disconnected_s:
            problem(
                "etcd",
                f"this gateway's watch has been down for {self._feed.disconnected_s:.0f} s; calls go on with known routes",
            )
        missing = view.settings.shards - len(view.assignments)
        if missing:
            problem(f"{missing} shards", "not assigned yet: the controller waits for enough nodes, or there is none")
        if not view.controller:
            problem("controller", "no node is the controller at the moment")
        for node, count in sorted(owned.items()):
            if node not in view.members:
                problem(f"{count} shards", f"their only copy is on node {node}, which is absent; calls to them wait for it")
            elif node not in stats:
                problem(f"node {node}", "it is a member but does not answer")
        stale = Counter(
            versioned.assignment.owner
            for shard, versioned in view.assignments.items()
            if versioned.assignment.owner in view.members and view.owner_of(shard) is None
        )
        for node, count in sorted(stale.items()):
            problem(f"{count} shards", f"node {node} was started again and has not been assigned them yet")
        for node, answer in sorted(stats.items()):
            if answer.shards_serving < owned[node] - stale[node]:
                problem(
                    f"{owned[node] - stale[node] - answer.shards_serving} shards",
                    f"node {node} owns them but does not serve them; its log says why",
                )
        return problems


def _shard_status(shard: int, assignment: Assignment) -> admin_pb2.ShardStatus:
    return admin_pb2.ShardStatus(
        shard=shard,
        epoch=assignment.epoch,
        owner=assignment.owner,
        in_sync=assignment.in_sync,
        joining=assignment.joining,
    )
