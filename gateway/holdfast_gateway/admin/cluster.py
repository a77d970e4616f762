"""The part of the Admin service for the cluster itself: its nodes, shards and pauses."""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from typing import Any

import grpc
from holdfast.processes import process_stats
from holdfast.v1 import admin_pb2
from holdfast_cluster.membership.etcd import EtcdError, delete, put, unchanged
from holdfast_cluster.membership.guarded import GuardedEtcd
from holdfast_cluster.membership.view_watcher import ViewWatcher
from holdfast_cluster.placement.model import Assignment, Drain, Keys, Pause, View, encode
from holdfast_cluster.placement.ring import shard_of
from holdfast_cluster.routing.dispatch import Dispatcher
from holdfast_cluster.routing.nodes import Nodes
from holdfast_cluster.routing.pending import KEY_BYTES_MAX

from holdfast_gateway.admin.part import AdminPart, shard_status
from holdfast_gateway.admin.problems import etcd_problems, problems

log = logging.getLogger(__name__)


class ClusterAdmin(AdminPart):
    """The methods of the Admin service for nodes, shards and pauses."""

    def __init__(
        self,
        watcher: ViewWatcher,
        nodes: Nodes,
        dispatcher: Dispatcher,
        etcd: GuardedEtcd,
        keys: Keys,
        cluster: str,
    ) -> None:
        super().__init__(watcher, nodes)
        self._dispatcher = dispatcher
        self._etcd = etcd
        self._keys = keys
        self._cluster = cluster

    async def Status(
        self, request: admin_pb2.StatusRequest, context: Any
    ) -> admin_pb2.StatusResponse:
        """Describe the whole cluster, as this gateway sees it."""
        view = await self._view(context)
        assert view.settings is not None
        response = admin_pb2.StatusResponse(
            cluster=self._cluster,
            shards=view.settings.shards,
            replication=view.settings.replication,
            min_in_sync=view.settings.writable_from,
            controller=view.controller,
            gateway=admin_pb2.GatewayStatus(
                routes_revision=view.revision,
                etcd_connected=self._watcher.disconnected_s == 0,
                calls_in_flight=self._dispatcher.in_flight,
                calls_held=self._dispatcher.held,
                process=process_stats(),
            ),
        )
        response.paused.extend(_paused(view))
        stats = await self._nodes.stats(view)
        assignments = [versioned.assignment for versioned in view.assignments.values()]
        response.moves.joining = sum(len(now.joining) for now in assignments)
        response.moves.handovers = sum(bool(now.handover) for now in assignments)
        response.moves.leaving = sum(len(now.leaving) for now in assignments)
        response.moves.bytes_sent = sum(answer.snapshot_bytes_sent for answer in stats.values())
        in_sync = Counter(name for now in assignments for name in now.in_sync)
        joining = Counter(name for now in assignments for name in now.joining)
        owned = Counter(versioned.assignment.owner for versioned in view.assignments.values())
        epochs: dict[str, int] = defaultdict(int)
        for versioned in view.assignments.values():
            epochs[versioned.assignment.owner] = max(
                epochs[versioned.assignment.owner], versioned.assignment.epoch
            )
        for node in sorted(set(view.members) | set(in_sync)):
            member = view.members.get(node)
            status = admin_pb2.NodeStatus(
                id=node,
                state=view.state_of(node),
                shards_owned=owned[node],
                epoch_max=epochs[node],
                shards_in_sync=in_sync[node],
                shards_joining=joining[node],
            )
            if member is not None:
                status.address, status.host, status.zone = member.address, member.host, member.zone
                status.weight, status.incarnation = member.weight, member.incarnation
            if node in stats:
                status.stats.CopyFrom(stats[node])
            response.nodes.append(status)
        response.problems.extend(await etcd_problems(self._watcher, self._etcd))
        response.problems.extend(problems(view, stats, owned))
        for shard in sorted(view.assignments):
            response.assignments.append(shard_status(shard, view.assignments[shard].assignment))
        return response

    async def Where(self, request: admin_pb2.WhereRequest, context: Any) -> admin_pb2.WhereResponse:
        """Return an object's shard, its owner, and the ring's preference."""
        view = self._watcher.view
        if not 0 < len(request.key.encode()) <= KEY_BYTES_MAX or not request.kind:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"name a kind, and a key of 1 to {KEY_BYTES_MAX} bytes",
            )
        await self._view(context)
        assert view.settings is not None
        shard = shard_of(request.kind, request.key, view.settings.shards)
        response = admin_pb2.WhereResponse(
            preference=view.ring.preference_list(shard, len(view.members))
        )
        response.shard.shard = shard
        versioned = view.assignments.get(shard)
        if versioned is not None:
            response.shard.CopyFrom(shard_status(shard, versioned.assignment))
        owner = view.owner_of(shard)
        if owner is not None:
            response.address = owner.address
        return response

    async def Drain(self, request: admin_pb2.DrainRequest, context: Any) -> admin_pb2.DrainResponse:
        """Begin or cancel a node's drain in etcd, and tell what it moves.

        With `dry_run` only tell what a drain would move.
        """
        view = await self._view(context)
        assert view.settings is not None
        node = request.node
        if node not in view.members and node not in view.drains:
            known = ", ".join(sorted(view.members))
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no member {node!r}; there are {known}")
        if view.settings.replication == 1:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                "the cluster keeps single copies, which cannot be moved",
            )
        assignments = [versioned.assignment for versioned in view.assignments.values()]
        others = [
            name
            for name in view.members
            if name != node and view.state_of(name) not in ("draining", "full", "slow")
        ]
        here = [now for now in assignments if node in now.in_sync]
        placeable = len(others) >= view.settings.replication
        response = admin_pb2.DrainResponse(
            owned=sum(now.owner == node for now in assignments) if others else 0,
            copies=len(here) if placeable else 0,
            copies_that_stay=0 if placeable else len(here),
        )
        stats = await self._nodes.stats(view)
        if placeable and node in stats:
            response.bytes = stats[node].data_bytes
            rates = [answer.move_rate for name, answer in stats.items() if answer.move_rate]
            response.seconds = response.bytes / min(rates) if rates else 0.0
        if request.dry_run or request.cancel != (node in view.drains):
            return response
        key = self._keys.drain(node)
        try:
            if request.cancel:
                await self._etcd.txn([], [delete(key)])
            else:
                await self._etcd.txn(
                    [], [put(key, encode(Drain(time.time(), self.asked_by(context))))]
                )
        except EtcdError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"etcd: {error}")
        log.warning(
            "%s of node %s, asked for by %s",
            "end of the drain" if request.cancel else "drain",
            node,
            self.asked_by(context),
        )
        return response

    async def ResetShard(
        self, request: admin_pb2.ResetShardRequest, context: Any
    ) -> admin_pb2.ResetShardResponse:
        """Have a shard begin anew, empty, if no node that has its data is present.

        With `keep`, have a forked shard go on with the copy of that node.
        """
        view = await self._view(context)
        assert view.settings is not None
        versioned = view.assignments.get(request.shard)
        if versioned is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no shard {request.shard} is assigned")
            raise AssertionError
        now = versioned.assignment
        keep = request.keep
        if (refusal := _why_no_reset(view, request, now)) is not None:
            await context.abort(*refusal)
        favourites = (
            [keep]
            if keep
            else [
                name for name in view.ring.preference_list(request.shard, 1) if name in view.members
            ]
        )
        if not favourites:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION, "there is no node that could own it"
            )
        owner = view.members[favourites[0]]
        epoch = now.epoch + 1
        fresh = Assignment(
            epoch,
            owner.id,
            owner.incarnation,
            (owner.id,),
            void_before=epoch,
            keeper=keep,
            version=now.version,
            level=now.level,
        ).stamped()
        key = self._keys.shard(request.shard)
        try:
            done = await self._etcd.txn([unchanged(key, versioned.raw)], [put(key, encode(fresh))])
        except EtcdError as error:
            await context.abort(
                grpc.StatusCode.UNAVAILABLE,
                f"etcd: {error}; look at the status before you try again",
            )
        if not done:
            await context.abort(
                grpc.StatusCode.ABORTED, "the assignment has changed meanwhile; look at the status"
            )
        what = (
            f"goes on with the copy of {keep}, all others are void"
            if keep
            else "begins anew, its data is given up"
        )
        log.critical("shard %d %s; asked for by %s", request.shard, what, self.asked_by(context))
        return admin_pb2.ResetShardResponse(shard=shard_status(request.shard, fresh))

    async def Pause(self, request: admin_pb2.PauseRequest, context: Any) -> admin_pb2.PauseResponse:
        """Pause or resume a kind's or an object's notifications and alarms, in etcd.

        Return all pauses. Without a kind, change nothing.
        """
        view = await self._view(context)
        if not request.kind:
            return admin_pb2.PauseResponse(paused=_paused(view))
        if "/" in request.kind or len(request.key.encode()) > KEY_BYTES_MAX:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"name a kind, and a key of at most {KEY_BYTES_MAX} bytes",
            )
        if not request.resume:
            kinds = {
                kind for answer in (await self._nodes.stats(view)).values() for kind in answer.kinds
            }
            if kinds and request.kind not in kinds:
                await context.abort(
                    grpc.StatusCode.NOT_FOUND,
                    f"no kind {request.kind!r}; there are {', '.join(sorted(kinds))}",
                )
        key = self._keys.pause(request.kind, request.key)
        try:
            if request.resume:
                await self._etcd.txn([], [delete(key)])
            else:
                await self._etcd.txn(
                    [], [put(key, encode(Pause(time.time(), self.asked_by(context))))]
                )
        except EtcdError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"etcd: {error}")
        what = f"{request.kind}/{request.key}" if request.key else f"kind {request.kind}"
        log.warning(
            "%s of %s, asked for by %s",
            "resume" if request.resume else "pause",
            what,
            self.asked_by(context),
        )
        target = request.kind, request.key
        paused = [one for one in _paused(view) if (one.kind, one.key) != target]
        if not request.resume:
            paused.append(
                admin_pb2.Paused(
                    kind=request.kind, key=request.key, at=time.time(), by=self.asked_by(context)
                )
            )
        return admin_pb2.PauseResponse(paused=paused)


def _why_no_reset(
    view: View, request: admin_pb2.ResetShardRequest, now: Assignment
) -> tuple[grpc.StatusCode, str] | None:
    """Return the refusal of a reset of a shard that is assigned; None if it is allowed."""
    assert view.settings is not None
    refused = grpc.StatusCode.FAILED_PRECONDITION
    keep = request.keep
    if view.settings.replication == 1:
        return refused, "the cluster keeps single copies: a node that has one may return"
    wanted = (
        f"keep the copy of {keep} of shard {request.shard}"
        if keep
        else f"give up the data of shard {request.shard}"
    )
    if request.confirmation != wanted:
        return grpc.StatusCode.INVALID_ARGUMENT, f"the confirmation has to be: {wanted}"
    if keep and keep not in now.forked:
        differing = (
            f"its copies on {', '.join(now.forked)} differ"
            if now.forked
            else "its copies do not differ"
        )
        return refused, f"the copy of {keep} cannot be chosen: {differing}"
    if keep and keep not in view.members:
        return refused, f"node {keep} is absent: start it first"
    if not keep and now.forked:
        return refused, f"copies on {', '.join(now.forked)} differ: choose one with `keep`"
    there = [name for name in now.in_sync if name in view.members]
    if not keep and there:
        return refused, f"the data is on {', '.join(there)}, so it is not given up"
    return None


def _paused(view: View) -> list[admin_pb2.Paused]:
    return [
        admin_pb2.Paused(kind=kind, key=key, at=pause.at, by=pause.by)
        for (kind, key), pause in sorted(view.pauses.items())
    ]
