"""What all parts of the Admin service share."""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import grpc
from holdfast.admin_limits import page_rows
from holdfast.v1 import admin_pb2
from holdfast_cluster.membership.view_watcher import ViewWatcher
from holdfast_cluster.placement.model import Assignment, View
from holdfast_cluster.routing.nodes import Nodes
from holdfast_cluster.routing.pending import KEY_BYTES_MAX

WHOLE_PATIENCE_S = 3.0
WHOLE_RETRY_S = 0.1
asked_by: ContextVar[str] = ContextVar("asked_by", default="")
"""The operator who makes the present request, for logs."""

R = TypeVar("R")


class AdminPart:
    """Some methods of the Admin service, which use the gateway's view and the answers of nodes."""

    def __init__(self, watcher: ViewWatcher, nodes: Nodes) -> None:
        self._watcher = watcher
        self._nodes = nodes

    async def _ask_whole(
        self, method: str, request: Any, answer: type[R]
    ) -> tuple[dict[str, R | None], list[int]]:
        """Ask all members, for up to 3 s, until each shard that has an owner is in just one answer.

        A shard that moves may be in no answer for a moment, or in two. Return the answers by node,
        and the shards that are in none.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + WHOLE_PATIENCE_S
        while True:
            view = self._watcher.view
            assert view.settings is not None
            answers = await self._nodes.ask_all(view, method, request, answer)
            heard = [one for one in answers.values() if one is not None]
            served = Counter(shard for one in heard for shard in one.served)  # type: ignore[attr-defined]
            missing = [shard for shard in range(view.settings.shards) if not served[shard]]
            whole = served.total() == len(served) and all(
                view.owner_of(shard) is None for shard in missing
            )
            if whole or loop.time() > until:
                return answers, missing
            await asyncio.sleep(WHOLE_RETRY_S)

    async def _check_object(self, request: Any, context: Any) -> View:
        view = await self._view(context)
        if not request.kind or not 0 < len(request.key.encode()) <= KEY_BYTES_MAX:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"name a kind, and a key of 1 to {KEY_BYTES_MAX} bytes",
            )
        return view

    async def _view(self, context: Any) -> View:
        if self._watcher.view.settings is None:
            await context.abort(
                grpc.StatusCode.UNAVAILABLE, "the cluster's routes are not loaded yet"
            )
        return self._watcher.view

    def asked_by(self, context: Any) -> str:
        """Return the operator who makes a request, for logs."""
        return str(asked_by.get() or context.peer())


def merged(
    pages: Sequence[tuple[Sequence[R], bool]], limit: int, place: Callable[[R], Any]
) -> tuple[list[R], bool]:
    """Merge the pages of several nodes into one page.

    A page is its rows, in the order of `place`, and whether there are more rows behind them.
    `limit`: the request's limit; 0: none.
    """
    # A node whose page is not its last has rows right behind that page. They come before later rows
    # of other nodes. So the merged page must end where the first such page ends.
    until = min((place(rows[-1]) for rows, more in pages if more), default=None)
    limit = page_rows(limit)
    found: list[R] = []
    last = None
    for row in heapq.merge(*(rows for rows, _ in pages), key=place):
        where = place(row)
        if where == last:
            continue  # the row's shard moved meanwhile, so two nodes returned the row
        if len(found) >= limit or (until is not None and where > until):
            return found, True
        found.append(row)
        last = where
    return found, until is not None


def shard_status(shard: int, assignment: Assignment) -> admin_pb2.ShardStatus:
    """Return an assignment in the form that operators see."""
    return admin_pb2.ShardStatus(
        shard=shard,
        epoch=assignment.epoch,
        owner=assignment.owner,
        in_sync=assignment.in_sync,
        joining=assignment.joining,
        handover=assignment.handover,
        leaving=assignment.leaving,
        forked=assignment.forked,
    )
