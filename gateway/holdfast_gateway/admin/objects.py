"""The part of the Admin service for objects: it shows them, and changes their stored state."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from typing import Any

import grpc
from holdfast.admin_limits import top_rows
from holdfast.errors import CODES
from holdfast.v1 import admin_pb2
from holdfast_cluster.placement.ring import shard_of

from holdfast_gateway.admin.part import (
    WHOLE_PATIENCE_S,
    WHOLE_RETRY_S,
    AdminPart,
    merged,
    shard_status,
)

log = logging.getLogger(__name__)

_DELETE_PAGE = 200
_DELETE_PATIENCE_S = 30.0
_PASSING = frozenset(("WRONG_OWNER", "UNAVAILABLE"))
"""The codes of deletions that fail while a shard moves. The gateway tries them again for some
seconds."""
_COUNT_NONE = admin_pb2.CountObjectsResponse()


class ObjectAdmin(AdminPart):
    """The methods of the Admin service for objects. They ask the nodes and merge the answers."""

    async def ListObjects(
        self, request: admin_pb2.ListObjectsRequest, context: Any
    ) -> admin_pb2.ListObjectsResponse:
        """Return a page of a kind's objects, by key."""
        await self._view(context)
        if not request.kind:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "name a kind")
        return await self._page(request)

    async def _page(self, request: admin_pb2.ListObjectsRequest) -> admin_pb2.ListObjectsResponse:
        answers, unserved = await self._ask_whole(
            "ListObjects", request, admin_pb2.ListObjectsResponse
        )
        pages = [(answer.keys, answer.more) for answer in answers.values() if answer is not None]
        keys, more = merged(pages, request.limit, lambda key: key)
        return admin_pb2.ListObjectsResponse(
            keys=keys,
            more=more,
            silent=[node for node, answer in answers.items() if answer is None],
            unserved=unserved,
        )

    async def CountObjects(
        self, request: admin_pb2.CountObjectsRequest, context: Any
    ) -> admin_pb2.CountObjectsResponse:
        """Return the number of objects, by kind."""
        await self._view(context)
        if request.prefix and not request.kind:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "a prefix needs a kind: name it too"
            )
        answers, unserved = await self._ask_whole(
            "CountObjects", request, admin_pb2.CountObjectsResponse
        )
        counts: Counter[str] = Counter()
        for answer in answers.values():
            counts.update((answer or _COUNT_NONE).objects)
        silent = [node for node, answer in answers.items() if answer is None]
        return admin_pb2.CountObjectsResponse(objects=counts, silent=silent, unserved=unserved)

    async def ShowObject(
        self, request: admin_pb2.ShowObjectRequest, context: Any
    ) -> admin_pb2.ShowObjectResponse:
        """Return a page of an object's stored rows, from its owner."""
        await self._check_object(request, context)
        return await self._nodes.ask_owner(
            context, request.kind, request.key, "ShowObject", request, admin_pb2.ShowObjectResponse
        )

    async def Explain(
        self, request: admin_pb2.ExplainRequest, context: Any
    ) -> admin_pb2.ExplainResponse:
        """Describe one object, by the gateway's view and the owner's answer."""
        view = await self._check_object(request, context)
        assert view.settings is not None
        shard = shard_of(request.kind, request.key, view.settings.shards)
        owner = view.owner_of(shard)
        response = admin_pb2.ExplainResponse()
        if owner is not None:
            try:
                response = await self._nodes.ask(
                    owner, "Explain", request, admin_pb2.ExplainResponse, 5.0
                )
            except grpc.aio.AioRpcError as error:
                response.unserved = f"its owner {owner.id} does not answer: {error.details()}"
            response.address = owner.address
        versioned = view.assignments.get(shard)
        response.shard.shard = shard
        if versioned is None:
            response.unserved = f"shard {shard} is not assigned yet"
            return response
        now = versioned.assignment
        response.shard.CopyFrom(shard_status(shard, now))
        if owner is None:
            there = [name for name in now.in_sync if name in view.members]
            response.unserved = (
                f"its owner {now.owner} is absent; copies are on"
                f" {', '.join(there) or 'no present node'}"
            )
        elif owner.missing((request.kind,)):
            hosts = ", ".join(
                sorted(
                    member.id for member in view.members.values() if request.kind in member.kinds
                )
            )
            where = (
                f"calls wait until a node that has it owns the shard ({hosts})"
                if hosts
                else "no present node has it"
            )
            response.unserved = f"its owner {owner.id} lacks kind {request.kind}; {where}"
        known = {copy.node: copy for copy in response.copies}
        for name in (*now.in_sync, *now.joining):
            copy = known.get(name)
            if copy is None:
                copy = response.copies.add(node=name)
            copy.in_sync, copy.owner, copy.present = (
                name in now.in_sync,
                name == now.owner,
                name in view.members,
            )
        response.paused = (request.kind, request.key) in view.pauses or (
            request.kind,
            "",
        ) in view.pauses
        return response

    async def Top(self, request: admin_pb2.TopRequest, context: Any) -> admin_pb2.TopResponse:
        """Return the busiest objects and shards of the cluster, and the load of each node."""
        view = await self._view(context)
        limit = top_rows(request.limit)
        answers = await self._nodes.ask_all(
            view, "Top", admin_pb2.TopRequest(limit=limit), admin_pb2.NodeTopResponse
        )
        response = admin_pb2.TopResponse()
        objects = []
        for node, answer in sorted(answers.items()):
            response.nodes.append(admin_pb2.NodeTop(id=node) if answer is None else answer.node)
            objects += [] if answer is None else list(answer.objects)
        response.objects.extend(
            sorted(objects, key=lambda one: (-one.turns_per_s, one.kind, one.key))[:limit]
        )
        for shard in sorted(view.assignments, key=lambda shard: (-view.load_of(shard), shard))[
            :limit
        ]:
            if loads := view.load_of(shard):
                response.shards.add(
                    shard=shard, turns_per_s=loads, owner=view.assignments[shard].assignment.owner
                )
        return response

    async def EvictObject(
        self, request: admin_pb2.EvictObjectRequest, context: Any
    ) -> admin_pb2.EvictObjectResponse:
        """Have the owner evict an object from memory."""
        await self._check_object(request, context)
        log.warning(
            "eviction of %s/%s, asked for by %s", request.kind, request.key, self.asked_by(context)
        )
        return await self._nodes.ask_owner(
            context,
            request.kind,
            request.key,
            "EvictObject",
            request,
            admin_pb2.EvictObjectResponse,
            self.asked_by(context),
        )

    async def AbortTurn(
        self, request: admin_pb2.AbortTurnRequest, context: Any
    ) -> admin_pb2.AbortTurnResponse:
        """Have the owner abort the running turn of an object."""
        await self._check_object(request, context)
        log.warning(
            "abort of the running turn of %s/%s, asked for by %s",
            request.kind,
            request.key,
            self.asked_by(context),
        )
        return await self._nodes.ask_owner(
            context,
            request.kind,
            request.key,
            "AbortTurn",
            request,
            admin_pb2.AbortTurnResponse,
            self.asked_by(context),
        )

    async def DeleteObject(
        self, request: admin_pb2.DeleteObjectRequest, context: Any
    ) -> admin_pb2.DeleteObjectResponse:
        """Have the owner delete all of an object, in one commit."""
        await self._check_object(request, context)
        log.warning(
            "deletion of %s/%s, asked for by %s", request.kind, request.key, self.asked_by(context)
        )
        these = admin_pb2.DeleteTheseRequest(kind=request.kind, keys=[request.key])
        loop = asyncio.get_running_loop()
        until = loop.time() + WHOLE_PATIENCE_S
        while True:
            answer = await self._nodes.ask_owner(
                context,
                request.kind,
                request.key,
                "DeleteThese",
                these,
                admin_pb2.DeleteTheseResponse,
                self.asked_by(context),
            )
            why = answer.failed.get(request.key, "")
            code = why.partition(":")[0]
            if code not in _PASSING or loop.time() > until:
                break
            await asyncio.sleep(WHOLE_RETRY_S)
        if why:
            await context.abort(CODES[code][1] if code in CODES else grpc.StatusCode.INTERNAL, why)
        return admin_pb2.DeleteObjectResponse(existed=bool(answer.deleted))

    async def DeleteObjects(
        self, request: admin_pb2.DeleteObjectsRequest, context: Any
    ) -> AsyncIterator[admin_pb2.DeleteObjectsProgress]:
        """Delete all objects of a kind whose keys begin with a prefix, and yield the progress.

        Objects that are created meanwhile may stay.
        """
        await self._view(context)
        if not request.kind or bool(request.prefix) == request.all:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                "name a kind, and either a prefix of keys or `all`",
            )
        by = self.asked_by(context)
        what = f"{request.kind}/{request.prefix}*"
        if not request.dry_run:
            log.warning("deletion of %s, asked for by %s", what, by)
        progress = admin_pb2.DeleteObjectsProgress()
        after = ""
        silent: set[str] = set()
        unserved: set[int] = set()  # on any page: their objects may come before a later page
        while True:
            page = await self._page(
                admin_pb2.ListObjectsRequest(
                    kind=request.kind, prefix=request.prefix, after=after, limit=_DELETE_PAGE
                )
            )
            silent |= set(page.silent)
            unserved |= set(page.unserved)
            progress.matched += len(page.keys)
            progress.failed.clear()
            if not request.dry_run and page.keys:
                deleted, failed = await self._delete_page(request.kind, list(page.keys), by)
                progress.deleted += deleted
                progress.failures += len(failed)
                progress.failed.update(failed)
            progress.done = not page.more or not page.keys
            del progress.silent[:], progress.unserved[:]
            progress.silent.extend(sorted(silent))
            progress.unserved.extend(sorted(unserved))
            yield progress
            if progress.done:
                break
            after = page.keys[-1]
        if not request.dry_run:
            log.warning(
                "deletion of %s: %d deleted, %d failed", what, progress.deleted, progress.failures
            )

    async def _delete_page(self, kind: str, keys: list[str], by: str) -> tuple[int, dict[str, str]]:
        """Delete these objects at their owners, for 30 s also at new owners, when shards move.

        Return how many were deleted, and, by key, why the others were not.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + _DELETE_PATIENCE_S
        failed = await self._delete_once(kind, keys, by)
        while loop.time() < until and (
            again := [key for key, why in failed.items() if why.partition(":")[0] in _PASSING]
        ):
            await asyncio.sleep(WHOLE_RETRY_S)
            still = await self._delete_once(kind, again, by)
            failed = {key: why for key, why in failed.items() if key not in again} | still
        return len(keys) - len(failed), failed  # all of them existed when they were listed

    async def _delete_once(self, kind: str, keys: list[str], by: str) -> dict[str, str]:
        """Delete these objects at their present owners. Return, by key, why some were not
        deleted."""
        view = self._watcher.view
        assert view.settings is not None
        by_owner: dict[str, list[str]] = defaultdict(list)
        failed: dict[str, str] = {}
        for key in keys:
            owner = view.owner_of(shard_of(kind, key, view.settings.shards))
            if owner is None:
                failed[key] = "UNAVAILABLE: its shard has no owner at the moment"
            else:
                by_owner[owner.id].append(key)

        async def delete(node: str, those: list[str]) -> None:
            these = admin_pb2.DeleteTheseRequest(kind=kind, keys=those)
            answer = (
                await self._nodes.ask_all(
                    view, "DeleteThese", these, admin_pb2.DeleteTheseResponse, node, by
                )
            )[node]
            if answer is None:
                failed.update(
                    dict.fromkeys(
                        those,
                        "UNAVAILABLE: its node did not answer, or not in time: look at the list"
                        " again",
                    )
                )
            else:
                failed.update(answer.failed)

        await asyncio.gather(*(delete(node, those) for node, those in by_owner.items()))
        return failed
