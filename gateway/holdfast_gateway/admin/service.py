"""The Admin service of a gateway: it uses the gateway's view, and the answers of nodes."""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from typing import Any

import grpc
from google.protobuf import message_factory
from holdfast.ids import dead_letter_place
from holdfast.processes import process_stats
from holdfast.v1 import admin_pb2, admin_pb2_grpc
from holdfast_cluster.clocks.cluster_time import FAR_MS
from holdfast_cluster.membership.etcd import EtcdError, delete, put, unchanged
from holdfast_cluster.membership.guarded import GuardedEtcd
from holdfast_cluster.membership.view_watcher import ViewWatcher
from holdfast_cluster.placement.model import Assignment, Drain, Keys, Member, Pause, View, encode
from holdfast_cluster.placement.ring import shard_of
from holdfast_cluster.routing.dispatch import KEY_BYTES_MAX, Dispatcher
from holdfast_cluster.routing.nodes import Nodes

from holdfast_gateway.admin.inspection import ObjectAdmin, asked_by, shard_status
from holdfast_gateway.admission.auth import Authenticator, permit

log = logging.getLogger(__name__)

_PAGE_MAX = 1_000


class AdminService(ObjectAdmin, admin_pb2_grpc.AdminServicer):
    """The service `holdfast.v1.Admin`."""

    def __init__(
        self,
        watcher: ViewWatcher,
        dispatcher: Dispatcher,
        etcd: GuardedEtcd,
        keys: Keys,
        cluster: str,
        nodes: Nodes,
        authenticator: Authenticator | None,
        refused: Counter[str],
    ) -> None:
        """Set up the service. `refused` counts the refused callers, by reason."""
        self._watcher = watcher
        self._door = authenticator
        self._refused = refused
        self._etcd = etcd
        self._keys = keys
        self._dispatcher = dispatcher
        self._cluster = cluster
        self._nodes = nodes

    async def close(self) -> None:
        await self._nodes.close()

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
        response.problems.extend(await self._etcd_problems())
        response.problems.extend(self._problems(view, stats, owned))
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
        if view.settings.replication == 1:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                "the cluster keeps single copies: a node that has one may return",
            )
        keep = request.keep
        wanted = (
            f"keep the copy of {keep} of shard {request.shard}"
            if keep
            else f"give up the data of shard {request.shard}"
        )
        if request.confirmation != wanted:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"the confirmation has to be: {wanted}"
            )
        there = [name for name in now.in_sync if name in view.members]
        if keep and keep not in now.forked:
            differing = (
                f"its copies on {', '.join(now.forked)} differ"
                if now.forked
                else "its copies do not differ"
            )
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the copy of {keep} cannot be chosen: {differing}",
            )
        if keep and keep not in view.members:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION, f"node {keep} is absent: start it first"
            )
        if not keep and now.forked:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"copies on {', '.join(now.forked)} differ: choose one with `keep`",
            )
        if not keep and there:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the data is on {', '.join(there)}, so it is not given up",
            )
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

    async def DeadLetters(
        self, request: admin_pb2.DeadLettersRequest, context: Any
    ) -> admin_pb2.DeadLettersResponse:
        """Return a page of the dead letters of all nodes, by shard and age."""
        await self._view(context)
        answers, unserved = await self._ask_whole(
            "DeadLetters", request, admin_pb2.DeadLettersResponse
        )
        pages = [(answer.letters, answer.more) for answer in answers.values() if answer is not None]
        letters, more = _merged(pages, request.limit)
        silent = [node for node, answer in answers.items() if answer is None]
        return admin_pb2.DeadLettersResponse(
            letters=letters, more=more, silent=silent, unserved=unserved
        )

    async def Alarms(
        self, request: admin_pb2.AlarmsRequest, context: Any
    ) -> admin_pb2.AlarmsResponse:
        """Return a page of the alarms of all nodes, by shard and time."""
        await self._view(context)
        answers, unserved = await self._ask_whole("Alarms", request, admin_pb2.AlarmsResponse)
        pages = [(answer.alarms, answer.more) for answer in answers.values() if answer is not None]
        alarms, more = _merged(pages, request.limit)
        silent = [node for node, answer in answers.items() if answer is None]
        return admin_pb2.AlarmsResponse(alarms=alarms, more=more, silent=silent, unserved=unserved)

    async def ChangeDeadLetters(
        self, request: admin_pb2.ChangeDeadLettersRequest, context: Any
    ) -> admin_pb2.ChangeDeadLettersResponse:
        """Replay or drop dead letters where they are."""
        view = await self._view(context)
        if bool(request.ids) == request.all:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                "give the ids of dead letters, or `all` and the fields that they have to match",
            )
        response = admin_pb2.ChangeDeadLettersResponse()
        log.warning(
            "%s of dead letters %s, asked for by %s",
            "replay" if request.replay else "drop",
            ", ".join(request.ids)
            or f"to {request.kind}/{request.key} of {request.sender_kind}/{request.sender_key}",
            self.asked_by(context),
        )
        if request.all:
            answers = await self._nodes.ask_all(
                view,
                "ChangeDeadLetters",
                request,
                admin_pb2.ChangeDeadLettersResponse,
                asked_by=self.asked_by(context),
            )
        else:
            by_owner: dict[str, list[str]] = defaultdict(list)
            for text in request.ids:
                try:
                    owner = view.owner_of(int.from_bytes(dead_letter_place(text)[:2], "big"))
                except ValueError as error:
                    response.refused[text] = str(error)
                    continue
                if owner is None:
                    response.refused[text] = "no node owns its shard at the moment"
                else:
                    by_owner[owner.id].append(text)
            answers = {}
            for node, ids in by_owner.items():
                part = admin_pb2.ChangeDeadLettersRequest(ids=ids, replay=request.replay)
                answers |= await self._nodes.ask_all(
                    view,
                    "ChangeDeadLetters",
                    part,
                    admin_pb2.ChangeDeadLettersResponse,
                    node,
                    self.asked_by(context),
                )
        for node, answer in answers.items():
            if answer is None:
                response.refused[node] = (
                    "the node did not answer, or not in time: look at the list again"
                )
            else:
                response.changed += answer.changed
                response.refused.update(answer.refused)
        return response

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

    async def _etcd_problems(self) -> list[admin_pb2.Problem]:
        unreadable = [
            admin_pb2.Problem(
                what=f"etcd's key {key}",
                why=f"its value cannot be read ({why}): the value before it stays in force",
            )
            for key, why in sorted(self._watcher.view.unreadable.items())
        ]
        return unreadable + await self._etcd_itself()

    async def _etcd_itself(self) -> list[admin_pb2.Problem]:
        if self._watcher.foreign:
            return [admin_pb2.Problem(what="etcd", why=self._watcher.foreign)]
        if self._watcher.disconnected_s:
            why = (
                f"this gateway's watch has been down for {self._watcher.disconnected_s:.0f} s;"
                " calls go on with known routes. If a node dies meanwhile, shards with a copy there"
                " take no writes until etcd is back"
            )
            return [admin_pb2.Problem(what="etcd", why=why)]
        try:
            alarms = await self._etcd.alarms()
        except EtcdError as error:
            return [
                admin_pb2.Problem(
                    what="etcd",
                    why=f"it does not answer whether it takes writes: {error}",
                    minor=True,
                )
            ]
        if not alarms:
            return []
        why = (
            f"it takes no writes (alarm {', '.join(sorted(alarms))}); calls go on. No node joins,"
            " and no shard fails over or moves. If a node dies, shards with a copy there take no"
            " writes. Give etcd space again, and run `etcdctl alarm disarm`"
        )
        return [admin_pb2.Problem(what="etcd", why=why)]

    def _problems(
        self, view: View, stats: dict[str, admin_pb2.StatsResponse], owned: Counter[str]
    ) -> list[admin_pb2.Problem]:
        assert view.settings is not None
        problems = []

        def problem(what: str, why: str, minor: bool = False) -> None:
            problems.append(admin_pb2.Problem(what=what, why=why, minor=minor))

        missing = view.settings.shards - len(view.assignments)
        if missing:
            problem(
                f"{missing} shards",
                "not assigned yet: the controller waits for enough nodes, or there is none",
            )
        if not view.controller:
            problem("controller", "no node is the controller at the moment")
        for node in sorted(set(view.members) - set(stats)):
            problem(f"node {node}", "it is a member but does not answer")
        for node in sorted(view.members):
            if view.state_of(node) == "full":
                problem(
                    f"node {node}",
                    "its disk is full: it gets no copies, and hands its shards to other nodes; a"
                    " shard that no other node can own takes no writes",
                )
        for node, by in _found_slow(stats):
            if node in by:
                why = (
                    "its disk is slow: it hands its shards to other nodes that have copies of them"
                )
            else:
                why = (
                    f"it is slow: nodes {', '.join(by)} go on without its copies, until it keeps up"
                    " again"
                )
            problem(f"node {node}", why)
        for node, answer in sorted(stats.items()):
            if abs(answer.clock_ahead_s) * 1000 > FAR_MS:
                off = (
                    f"{abs(answer.clock_ahead_s):.0f} s"
                    f" {'ahead of' if answer.clock_ahead_s > 0 else 'behind'} the cluster's time"
                )
                problem(
                    f"node {node}",
                    f"its machine's clock is {off}: alarms and requests do not use this clock",
                    minor=True,
                )
        for answer in stats.values():
            if answer.notice:
                problem("members", answer.notice)
        kinds = {kind for member in view.members.values() for kind in member.kinds}
        for node, member in sorted(view.members.items()):
            if member.missing(kinds):
                why, waiting = what_lacks(view, member, kinds)
                problem(f"node {node}", why, minor=not waiting)
        for shard, versioned in sorted(view.assignments.items()):
            if versioned.assignment.forked:
                problem(
                    f"shard {shard}",
                    f"copies on nodes {', '.join(versioned.assignment.forked)} hold different"
                    " acknowledged writes: no node serves it until you choose one copy with"
                    f" `holdfast reset-shard {shard} --keep NODE`",
                )
        lost: dict[tuple[str, ...], list[int]] = defaultdict(list)
        few: Counter[int] = Counter()
        for shard, versioned in view.assignments.items():
            now = versioned.assignment
            if not any(name in view.members for name in now.in_sync):
                lost[now.in_sync].append(shard)
            elif len(now.in_sync) < view.settings.replication:
                few[len(now.in_sync)] += 1
        for nodes, shards in sorted(lost.items()):
            if len(nodes) == 1:
                why = (
                    f"their only copy is on node {nodes[0]}, which is absent; calls to them wait"
                    " for that node"
                )
            else:
                why = (
                    f"their copies are on nodes {', '.join(nodes)}, which are all absent; calls to"
                    " them wait for one of these nodes"
                )
            problem(f"{len(shards)} shards", why)
        for copies, count in sorted(few.items()):
            what = f"{copies} of {view.settings.replication} copies are in sync"
            problem(
                f"{count} shards",
                what if copies >= view.settings.writable_from else f"{what}: they take no writes",
            )
        stale = Counter(
            versioned.assignment.owner
            for shard, versioned in view.assignments.items()
            if versioned.assignment.owner in view.members and view.owner_of(shard) is None
        )
        for node, count in sorted(stale.items()):
            problem(
                f"{count} shards",
                f"node {node} was started again and has not been assigned them yet",
            )
        for node, answer in sorted(stats.items()):
            if answer.shards_serving < owned[node] - stale[node]:
                problem(
                    f"{owned[node] - stale[node] - answer.shards_serving} shards",
                    f"node {node} owns them but does not serve them; its log says why",
                )
        return problems


def _found_slow(stats: dict[str, admin_pb2.StatsResponse]) -> list[tuple[str, list[str]]]:
    """Return the slow nodes, each with the nodes that found it slow."""
    by: dict[str, list[str]] = defaultdict(list)
    for name, answer in sorted(stats.items()):
        for slow in answer.slow_nodes:
            by[slow].append(name)
    return sorted(by.items())


def what_lacks(view: View, member: Member, kinds: set[str]) -> tuple[str, int]:
    """Return a text for operators on the kinds that a member lacks, and a number.

    The number counts the member's shards that wait for another owner because of these kinds.
    """
    lacked = sorted(kinds.difference(member.kinds))
    asks = view.hosting_of(member).asks
    waiting = sum(
        versioned is not None and versioned.assignment.owner == member.id
        for versioned in map(view.assignments.get, asks)
    )
    what = (
        f"it lacks kind {', '.join(lacked)}: calls to it are held, and their shards handed to nodes"
        " that have it"
    )
    return (f"{what}; {waiting} of its shards wait for that" if waiting else what), waiting


def _merged(pages: list[tuple[Any, bool]], limit: int) -> tuple[list[Any], bool]:
    """Merge the pages of several nodes, each ordered by place, into one page.

    Return the page, and whether there are more rows behind it.
    """
    # A node whose page is not its last has rows right behind that page. They come before later rows
    # of other nodes. So the merged page must end where the first such page ends.
    until = min((rows[-1].place for rows, more in pages if more), default=None)
    # If a shard moved meanwhile, two nodes may return the same row: keep one.
    by_place = {
        row.place: row for rows, _ in pages for row in rows if until is None or row.place <= until
    }
    found = [by_place[place] for place in sorted(by_place)]
    limit = min(limit or _PAGE_MAX, _PAGE_MAX)
    return found[:limit], until is not None or len(found) > limit


def _paused(view: View) -> list[admin_pb2.Paused]:
    return [
        admin_pb2.Paused(kind=kind, key=key, at=pause.at, by=pause.by)
        for (kind, key), pause in sorted(view.pauses.items())
    ]


CHANGES = frozenset({"ResetShard", "ChangeDeadLetters", "EvictObject", "AbortTurn", "DeleteObject"})
"""Methods that change something, whatever the request says."""


def _is_change(method: str, request: Any) -> bool:
    match method:
        case "Drain":
            return not request.dry_run
        case "Pause":
            return bool(request.kind)
        case "DeleteObjects":
            return not request.dry_run
    return method in CHANGES


def guarded(admin: AdminService) -> grpc.GenericRpcHandler:
    """Return the handlers to register with the server.

    Each method first checks the caller's permission.
    """
    handlers = {}
    for method in admin_pb2.DESCRIPTOR.services_by_name["Admin"].methods:
        behavior = getattr(admin, method.name)
        types = [
            message_factory.GetMessageClass(kind)
            for kind in (method.input_type, method.output_type)
        ]
        make = (
            grpc.unary_stream_rpc_method_handler
            if method.server_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        guard = _guarded_stream if method.server_streaming else _guarded
        handlers[method.name] = make(
            guard(admin, method.name, behavior),
            request_deserializer=types[0].FromString,
            response_serializer=types[1].SerializeToString,
        )
    return grpc.method_handlers_generic_handler("holdfast.v1.Admin", handlers)


def _guarded(admin: AdminService, name: str, behavior: Any) -> Any:
    async def serve(request: Any, context: Any) -> Any:
        asked_by.set(await permit(admin._door, context, _is_change(name, request), admin._refused))
        return await behavior(request, context)

    return serve


def _guarded_stream(admin: AdminService, name: str, behavior: Any) -> Any:
    async def serve(request: Any, context: Any) -> Any:
        asked_by.set(await permit(admin._door, context, _is_change(name, request), admin._refused))
        async for answer in behavior(request, context):
            yield answer

    return serve
