"""The requests of operators about objects of a node. Each method answers one request of the Peer
service.

All lists and counts are of committed rows, in the shards that the node serves now.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

from holdfast.admin_limits import PAGE_BYTES, page_rows, top_rows
from holdfast.errors import HoldfastError, WrongOwner, error_from_proto
from holdfast.ids import effect_id
from holdfast.v1 import admin_pb2
from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.clocks.boottime import boottime

from holdfast_node.effects.records import decode_alarm
from holdfast_node.effects.sent import ForgetSent
from holdfast_node.log.shards import Shard, Shards
from holdfast_node.objects.activation import Activation
from holdfast_node.objects.eviction import REST_PATIENCE_S
from holdfast_node.objects.handlers import InternalHandler
from holdfast_node.replication.core.replica import Replica
from holdfast_node.services.host import ObjectHost
from holdfast_node.store import keys
from holdfast_node.store.rocks import Store
from holdfast_node.store.values import read_expiry, read_value

log = logging.getLogger(__name__)

_DELETES_AT_ONCE = 16
_STEP = 500  # after so many objects or rows the event loop does other work
_NEVER_MS = 1 << 62
_IDLE_MAX_S = 1e9
_SIZE_ROWS_MAX = 100_000  # the most rows that `explain` counts


class Inspection:
    """Answers requests about objects. `replica`: returns a shard's replication core; None if shards
    have single copies."""

    def __init__(
        self,
        store: Store,
        shards: Shards,
        objects: ObjectHost,
        replica: Callable[[int], Replica | None],
        node: Callable[[], str],
        stats: Callable[[], admin_pb2.StatsResponse],
    ) -> None:
        self._store = store
        self._shards = shards
        self._objects = objects
        self._engine = objects.engine
        self._sent = objects.sent
        self._flush_visible = objects.writes.flush_visible
        self._replica = replica
        self._node = node
        self._stats = stats

    def answers(self) -> dict[str, Callable[[Any], Awaitable[Any]]]:
        """Return the methods of the Peer service by name."""
        return {
            "ListObjects": self.list_objects,
            "CountObjects": self.count_objects,
            "ShowObject": self.show_object,
            "Explain": self.explain,
            "Top": self.top,
            "EvictObject": self.evict_object,
            "AbortTurn": self.abort_turn,
            "DeleteThese": self.delete_these,
        }

    # -- looking

    async def list_objects(
        self, request: admin_pb2.ListObjectsRequest
    ) -> admin_pb2.ListObjectsResponse:
        """Return a page of a kind's objects, by key."""
        limit = page_rows(request.limit)
        self._flush_visible()
        find = self._store.cursor("state").seek
        heap: list[tuple[str, int]] = []

        async def push(shard: int, start: bytes | None) -> None:
            found = None
            while start is not None and found is None:
                found, start = _object_from(find, start, shard, request.kind, request.prefix)
                if start is not None:
                    await asyncio.sleep(0)
            if found is not None:
                heapq.heappush(heap, (found[1], shard))

        serving = self._shards.serving(boottime())
        for number, shard in enumerate(serving):
            start = keys.objects_from(shard.number, request.kind, request.prefix)
            if request.after:
                start = max(start, _behind(shard.number, request.kind, request.after))
            await push(shard.number, start)
            if number % _STEP == _STEP - 1:
                await asyncio.sleep(0)
        response = admin_pb2.ListObjectsResponse()
        while heap and len(response.keys) < limit:
            key, number = heapq.heappop(heap)
            response.keys.append(key)
            await push(number, _behind(number, request.kind, key))
        response.more = bool(heap)
        now = boottime()
        response.served.extend(shard.number for shard in serving if shard.until > now)
        return response

    async def count_objects(
        self, request: admin_pb2.CountObjectsRequest
    ) -> admin_pb2.CountObjectsResponse:
        """Return the number of objects by kind. Raises ValueError for a prefix without a kind."""
        if request.prefix and not request.kind:
            raise ValueError("a prefix needs the kind whose keys begin so")
        response = admin_pb2.CountObjectsResponse()
        counts: Counter[str] = Counter()
        self._flush_visible()
        for shard in self._shards.serving(boottime()):
            start: bytes | None = keys.objects_from(shard.number, request.kind, request.prefix)
            of_shard: Counter[str] = Counter()
            while start is not None:
                find = self._store.cursor("state").seek  # a new one: each keeps old data
                for _ in range(_STEP):
                    found, start = _object_from(
                        find, start, shard.number, request.kind, request.prefix
                    )
                    if found is None:
                        break
                    of_shard[found[0]] += 1
                    start = _behind(shard.number, *found)
                await asyncio.sleep(0)
            if shard.until > boottime():  # this node still serves the shard
                counts += of_shard
                response.served.append(shard.number)
        response.objects.update(counts)
        return response

    async def show_object(
        self, request: admin_pb2.ShowObjectRequest
    ) -> admin_pb2.ShowObjectResponse:
        """Return a page of an object's stored values, by key."""
        shard = self._shard_of(request.kind, request.key)
        self._flush_visible()
        own = keys.row_prefix(shard.number, request.kind, request.key)
        prefix = own + request.prefix.encode()
        start = max(prefix, own + request.after.encode() + b"\0") if request.after else prefix
        limit = page_rows(request.limit)
        response = admin_pb2.ShowObjectResponse()
        if shard.expired(self._expiry(shard, request.kind, request.key) or _NEVER_MS):
            return response
        size = 0
        for key, value in self._store.scan("state", start, keys.after(prefix)):
            if len(response.rows) >= limit or (response.rows and size + len(value) > PAGE_BYTES):
                response.more = True
                break
            expiry = read_expiry(value) or 0
            if expiry and shard.expired(expiry):
                continue
            size += len(key) + len(value)
            response.rows.add(
                key=key[len(own) :].decode(), value=read_value(value), expires_ms=expiry
            )
        return response

    async def explain(self, request: admin_pb2.ExplainRequest) -> admin_pb2.ExplainResponse:
        """Return what an object is doing, also while its shard is owned but not served. Raises
        WrongOwner if this node does not own the shard."""
        number = self._shards.number_of(request.kind, request.key)
        shard = self._shards.get(number)
        if shard is None:
            raise WrongOwner(
                f"shard {number} is not owned by this node", definite=True, retryable=True
            )
        self._flush_visible()
        response = admin_pb2.ExplainResponse(read_only=shard.read_only or "")
        self._explain_copies(number, response)
        activation = self._engine.find(request.kind, request.key)
        if activation is not None:
            self._explain_activation(activation, response)
        await self._explain_storage(shard, request, response)
        self._explain_outbox(shard, (request.kind, request.key), response)
        return response

    def _explain_copies(self, number: int, response: admin_pb2.ExplainResponse) -> None:
        replica = self._replica(number)
        if replica is None:
            return
        now = boottime()
        response.copies.add(node=self._node(), owner=True, in_sync=True)
        for name, peer in sorted(replica.peers.items()):
            response.copies.add(
                node=name,
                behind=max(0, replica.log.last_seq - peer.matched),
                heard_s=max(0.0, now - peer.heard_at),
            )

    def _explain_activation(
        self, activation: Activation, response: admin_pb2.ExplainResponse
    ) -> None:
        response.active = True
        idle_s = asyncio.get_running_loop().time() - activation.last_used
        # A larger idle time means that the object has just asked to leave memory.
        response.idle_s = max(0.0, idle_s) if idle_s < _IDLE_MAX_S else 0.0
        response.cache_bytes = activation.storage.layers.cached_bytes
        response.waiting = len(activation.mailbox or ())
        response.reads = len(activation.reads or ())
        response.committing = activation.uncommitted is not None
        if (turn := activation.turn) is not None:
            response.running = turn.handler.name
            response.running_s = perf_counter() - turn.began
            response.running_request_id = turn.request_id
        if (error := activation.last_error) is not None:
            code, message, method, at_ms, request_id = error
            response.last_error.CopyFrom(
                admin_pb2.LastError(
                    code=code,
                    message=message[:2_000],
                    method=method,
                    at_ms=at_ms,
                    request_id=request_id,
                )
            )

    def _expiry(self, shard: Shard, kind: str, key: str) -> int:
        """Return when an object expires, Unix time in ms; 0: never."""
        return int.from_bytes(
            self._store.get("state", keys.expiry_key(shard.number, kind, key)) or b"", "big"
        )

    async def _explain_storage(
        self, shard: Shard, request: admin_pb2.ExplainRequest, response: admin_pb2.ExplainResponse
    ) -> None:
        prefix = keys.row_prefix(shard.number, request.kind, request.key)
        for rows, (key, value) in enumerate(
            self._store.scan("state", prefix, keys.after(prefix)), 1
        ):
            response.rows = rows
            response.bytes += len(key) - len(prefix) + len(value)
            if rows >= _SIZE_ROWS_MAX:
                response.rows_more = True
                break
            if rows % _STEP == 0:
                await asyncio.sleep(0)
        prefix = keys.alarm_prefix(shard.number, request.kind, request.key)
        dues = [
            decode_alarm(value).due_ms
            for _, value in self._store.scan("state", prefix, keys.after(prefix))
        ]
        response.alarms, response.next_alarm_ms = len(dues), min(dues, default=0)
        response.expires_ms = self._expiry(shard, request.kind, request.key)

    def _explain_outbox(
        self, shard: Shard, sender: tuple[str, str], response: admin_pb2.ExplainResponse
    ) -> None:
        notes = self._sent.notifications.outbox.of(shard, sender)
        response.outbox = len(notes)
        response.sent_by_clients = len(self._sent.notifications.outbox.from_clients(shard, sender))
        if notes:
            oldest = min(notes, key=lambda note: (note.row.created_ms, note.sequence))
            response.outbox_oldest_ms, response.outbox_error = (
                oldest.row.created_ms,
                oldest.row.error[:2_000],
            )

    async def top(self, request: admin_pb2.TopRequest) -> admin_pb2.NodeTopResponse:
        """Return the node's statistics and its busiest objects."""
        engine = self._engine
        node = admin_pb2.NodeTop(
            id=self._node(), stats=self._stats(), shards_owned=len(self._shards.owned())
        )
        active = self._objects.activations.kinds()
        for kind, methods in engine.stats.items():
            stats = methods.values()
            node.kinds.add(
                kind=kind,
                calls=sum(each.total.count for each in stats),
                failed=sum(sum(each.failed.values()) for each in stats),
                call_s=sum(each.total.total for each in stats),
                turn_s=sum(each.turn.total for each in stats),
                active=active.get(kind, 0),
            )
        response = admin_pb2.NodeTopResponse(node=node)
        limit = top_rows(request.limit)
        for (kind, key), rate in engine.top_keys.top(limit, asyncio.get_running_loop().time()):
            response.objects.add(kind=kind, key=key, turns_per_s=rate, node=self._node())
        return response

    # -- changing

    async def evict_object(
        self, request: admin_pb2.EvictObjectRequest
    ) -> admin_pb2.EvictObjectResponse:
        """Evict an object from memory."""
        self._shard_of(request.kind, request.key)
        return admin_pb2.EvictObjectResponse(
            was_active=await self._engine.eviction.evict_object(request.kind, request.key)
        )

    async def abort_turn(self, request: admin_pb2.AbortTurnRequest) -> admin_pb2.AbortTurnResponse:
        """Abort the running turn of an object. The response is empty if no turn ran."""
        self._shard_of(request.kind, request.key)
        turn = self._engine.cancellation.abort(request.kind, request.key)
        if turn is None:
            return admin_pb2.AbortTurnResponse()
        return admin_pb2.AbortTurnResponse(
            method=turn.handler.name,
            ran_s=perf_counter() - turn.began,
            waiting=len(turn.activation.mailbox or ()),
        )

    async def delete_these(
        self, request: admin_pb2.DeleteTheseRequest
    ) -> admin_pb2.DeleteTheseResponse:
        """Delete objects, each in one commit. Return why the rest cannot be deleted."""
        response = admin_pb2.DeleteTheseResponse()
        at_once = asyncio.Semaphore(_DELETES_AT_ONCE)

        async def delete(key: str) -> bool:
            async with at_once:
                return await self._delete(request.kind, key)

        ended = await asyncio.gather(*(delete(key) for key in request.keys), return_exceptions=True)
        for key, existed in zip(request.keys, ended, strict=True):
            if isinstance(existed, HoldfastError):
                response.failed[key] = f"{existed.code}: {existed.message}"
            elif isinstance(existed, BaseException):
                raise existed
            else:
                response.deleted += existed
        return response

    async def _delete(self, kind: str, key: str) -> bool:
        """Delete an object, and return whether it had stored values or alarms. Raises
        HoldfastError."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        existed = False

        def told(error: pb.Error | None) -> None:
            if done.done():
                return
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error_from_proto(error))

        def handler(activation: Activation) -> InternalHandler:
            async def delete() -> None:
                nonlocal existed
                existed = await self._delete_in_turn(activation)

            return InternalHandler("(delete)", delete, is_async=True, deletes=True)

        self._engine.run_internal(
            kind, key, effect_id(b"admin", os.urandom(16)), handler, told, REST_PATIENCE_S
        )
        await done
        return existed

    async def _delete_in_turn(self, activation: Activation) -> bool:
        entry = activation.uncommitted
        if entry is not None:
            await entry.wait()  # then its notifications are in the outbox
        self._flush_visible()
        shard, sender = activation.shard, (activation.kind.name, activation.key)
        delayed = await self._sent.delays.of(shard, sender)
        alarms = activation.alarms
        names = list(alarms.current())
        sent = bool(delayed or self._sent.notifications.outbox.of(shard, sender))
        stored = self._store.any("state", activation.row_prefix, keys.after(activation.row_prefix))
        if stored or names or sent:
            activation.storage.delete_all()
            for name in names:
                alarms.change(name, None)
            if sent:
                activation.storage.add_effect(ForgetSent(self._sent, sender, delayed))
        activation.instance = None
        return bool(stored or names)

    def _shard_of(self, kind: str, key: str) -> Shard:
        """Return the shard of an object. Raises WrongOwner if this node does not serve it now."""
        number = self._shards.number_of(kind, key)
        shard = self._shards.get(number)
        if shard is None or shard.until <= boottime():
            raise WrongOwner(
                f"shard {number} is not served by this node at the moment",
                definite=True,
                retryable=True,
            )
        return shard


def _object_from(
    find: Callable[[bytes], bytes | None], start: bytes, shard: int, kind: str, prefix: str
) -> tuple[tuple[str, str] | None, bytes | None]:
    """Return the first matching object from key `start` of `state` on, or None. Also return where
    to go on; None if there are no more.

    `find`: returns the first key at or after a given one.
    """
    for _ in range(_STEP):
        raw = find(start)
        if raw is None or not raw.startswith(keys.shard_prefix(shard)):
            return None, None
        _, its_kind, key, record = keys.split_object(raw)
        if (kind and its_kind != kind) or not key.startswith(prefix):
            return None, None
        if record[0] != keys.EXPIRES:  # an object with nothing but its expiry does not exist
            return (its_kind, key), None
        start = _behind(shard, its_kind, key)
    return None, start


def _behind(shard: int, kind: str, key: str) -> bytes:
    """Return where the object after this one may begin."""
    end = keys.after(keys.object_prefix(shard, kind, key))
    assert end is not None
    return end
