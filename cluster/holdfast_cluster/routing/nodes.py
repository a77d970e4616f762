"""Requests to the nodes' Peer services, such as those that operators make through a gateway."""

from __future__ import annotations

import asyncio
import logging
import string
from collections.abc import Iterable
from typing import Any, TypeVar
from urllib.parse import quote

import grpc
from holdfast.channels import open_process_channel
from holdfast.tls import Certificates
from holdfast.v1 import admin_pb2

from holdfast_cluster.membership.view_watcher import ViewWatcher
from holdfast_cluster.placement.model import Member, View
from holdfast_cluster.placement.ring import shard_of

log = logging.getLogger(__name__)

ASKED_BY_METADATA = "holdfast-asked-by"
"""The metadata that names the person who wants a change, for the node's log. The name is
percent-encoded, because gRPC metadata takes only printable ASCII."""
_PLAIN = " " + string.punctuation.replace("%", "")
TIMEOUT_S = 20.0
_STATS_TIMEOUT_S = 1.0
_OWNER_PATIENCE_S = 5.0
_OWNER_RETRY_S = 0.1

R = TypeVar("R")


class Nodes:
    """The members' Peer services, by the newest view."""

    def __init__(self, watcher: ViewWatcher, certificates: Certificates | None = None) -> None:
        self._watcher = watcher
        self._certificates = certificates
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._version = 0
        self._closing: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        for task in self._closing:
            task.cancel()
        for channel in self._channels.values():
            await channel.close()

    async def ask(
        self,
        member: Member,
        method: str,
        request: Any,
        answer: type[R],
        timeout: float,
        asked_by: str = "",
    ) -> R:
        """Ask one member, and return its answer. `timeout` is in seconds. Raise AioRpcError."""
        call: Any = self._channel(member.address).unary_unary(
            f"/holdfast.peer.v1.Peer/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,  # type: ignore[attr-defined]
        )
        by = ((ASKED_BY_METADATA, quote(asked_by, _PLAIN)),) if asked_by else None
        return await call(request, timeout=timeout, metadata=by)  # type: ignore[no-any-return]

    async def ask_all(
        self,
        view: View,
        method: str,
        request: Any,
        answer: type[R],
        only: str | None = None,
        asked_by: str = "",
    ) -> dict[str, R | None]:
        """Ask every member, or only one, and return the answers by node id.

        The answer is None for a member that does not answer within 20 s.
        """

        async def ask(member: Member) -> R | None:
            try:
                return await self.ask(member, method, request, answer, TIMEOUT_S, asked_by)
            except grpc.aio.AioRpcError as error:
                log.warning("%s of %s: %s", method, member.id, error.details())
                return None

        members = [member for member in view.members.values() if only in (None, member.id)]
        answers = await asyncio.gather(*(ask(member) for member in members))
        return {member.id: one for member, one in zip(members, answers, strict=True)}

    async def ask_owner(
        self,
        context: Any,
        kind: str,
        key: str,
        method: str,
        request: Any,
        answer: type[R],
        asked_by: str = "",
    ) -> R:
        """Ask the owner of an object, and return its answer.

        While the owner is unavailable, for example because the shard moves, ask again for 5 s, the
        next owner too. After that, or on any other error, abort `context` with the last error.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + _OWNER_PATIENCE_S
        while True:
            view = self._watcher.view
            assert view.settings is not None
            shard = shard_of(kind, key, view.settings.shards)
            owner = view.owner_of(shard)
            try:
                if owner is not None:
                    return await self.ask(owner, method, request, answer, TIMEOUT_S, asked_by)
                code, why = grpc.StatusCode.UNAVAILABLE, f"shard {shard} has no owner at the moment"
            except grpc.aio.AioRpcError as error:
                code, why = error.code(), error.details() or ""
            if code != grpc.StatusCode.UNAVAILABLE or loop.time() > until:
                await context.abort(code, why)
            await asyncio.sleep(_OWNER_RETRY_S)

    async def stats(self, view: View) -> dict[str, admin_pb2.StatsResponse]:
        """Return the counters of the members that answer within a second, by node id."""

        async def ask(member: Member) -> admin_pb2.StatsResponse | None:
            try:
                return await self.ask(
                    member,
                    "Stats",
                    admin_pb2.StatsRequest(),
                    admin_pb2.StatsResponse,
                    _STATS_TIMEOUT_S,
                )
            except grpc.aio.AioRpcError:
                return None

        members = list(view.members.values())
        self.forget_others(members)
        answers = await asyncio.gather(*(ask(member) for member in members))
        return {
            member.id: answer
            for member, answer in zip(members, answers, strict=True)
            if answer is not None
        }

    def forget_others(self, members: Iterable[Member]) -> None:
        """Close the channels to all nodes other than these members."""
        for address in set(self._channels) - {member.address for member in members}:
            self._retire(address)

    def _retire(self, address: str) -> None:
        """Send no new request on a channel; requests under way on it may end."""
        channel = self._channels.pop(address)
        task = asyncio.create_task(channel.close(TIMEOUT_S))
        self._closing.add(task)
        task.add_done_callback(self._retired)

    def _retired(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a channel to a node could not be closed", exc_info=error)

    def _channel(self, address: str) -> grpc.aio.Channel:
        if self._certificates is not None and self._certificates.version != self._version:
            self._version = self._certificates.version
            for each in list(self._channels):  # they use a certificate that was replaced
                self._retire(each)
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = open_process_channel(address, self._certificates)
        return channel
