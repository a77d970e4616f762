"""A simulated etcd: revisions, leases, transactions and watches, as its wire interface shows them.

It is correct, and far away. Its replies may be lost; it may be away; its watches may lag. It may
also be emptied, or put back to how it was before, with its revision raised as `etcdutl snapshot
restore --bump-revision` does, or not.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from holdfast_cluster.etcdpb import etcd_pb2 as pb

from .loop import VirtualLoop
from .machine import Process
from .network import Network
from .rpc import ServerContext

ADDRESS = ("etcd", 2379)
_BUMP = 1_000_000_000
_WORK_S = 0.001
_LEASE_TICK_S = 0.1


@dataclass
class _Lease:
    ttl_s: int
    until: float
    keys: set[bytes] = field(default_factory=set)


@dataclass
class Backup:
    """What `etcdctl snapshot save` keeps."""

    rows: dict[bytes, pb.KeyValue]
    revision: int
    leases: dict[int, int]


class Etcd:
    """The server. Implements what `Server` of rpc.py is to a listener."""

    def __init__(
        self, loop: VirtualLoop, network: Network, process: Process, chance: random.Random
    ) -> None:
        self._loop = loop
        self._network = network
        self._process = process
        self._chance = chance
        self.rows: dict[bytes, pb.KeyValue] = {}
        self.revision = 1
        self.compacted = 0
        self.history: list[pb.Event] = []
        self._leases: dict[int, _Lease] = {}
        self._watches: dict[_Watch, None] = {}
        self._calls: dict[ServerContext, None] = {}
        self.away_until = 0.0
        self.lost_replies = 0.0
        self.lag_until = 0.0
        self.wrote: Callable[[bytes, bytes], None] = lambda key, value: None
        network.listeners[ADDRESS] = process, self
        self._expire()

    # -- faults

    def go_away(self, seconds: float) -> None:
        """Stop, and start again later. A new leader gives every lease its whole time again."""
        self.away_until = max(self.away_until, self._loop.now + seconds)
        self._network.listeners.pop(ADDRESS, None)
        self._hang_up()
        self._loop.world_later(seconds, self.come_back)

    def come_back(self) -> None:
        if self._loop.now >= self.away_until and ADDRESS not in self._network.listeners:
            self._network.listeners[ADDRESS] = self._process, self
            for lease in self._leases.values():
                lease.until = self._loop.now + lease.ttl_s

    def backup(self) -> Backup:
        return Backup(
            dict(self.rows),
            self.revision,
            {number: lease.ttl_s for number, lease in self._leases.items()},
        )

    def put_back(self, backup: Backup, bump: bool) -> None:
        """Have the data of a backup."""
        self.rows = dict(backup.rows)
        self.revision = backup.revision + (_BUMP if bump else 0)
        self.compacted = self.revision if bump else 0
        self.history = []
        self._leases = {}
        for number, ttl_s in backup.leases.items():
            lease = self._leases[number] = _Lease(ttl_s, self._loop.now + ttl_s)
            lease.keys = {key for key, row in self.rows.items() if row.lease == number}
        self._hang_up()

    def empty(self) -> None:
        """Begin anew, with nothing."""
        self.put_back(Backup({}, 1, {}), bump=False)

    def _hang_up(self) -> None:
        self._watches.clear()
        for context in list(self._calls):
            context.finish(grpc.StatusCode.UNAVAILABLE, "etcd stops")
        self._calls.clear()

    # -- calls

    def accept(self, context: ServerContext) -> None:
        context.task = self._loop.create_task(self._serve(context))

    async def _serve(self, context: ServerContext) -> None:
        self._calls[context] = None
        try:
            request = await context.read()
            await asyncio.sleep(_WORK_S * self._chance.random())
            if ADDRESS not in self._network.listeners:
                context.finish(grpc.StatusCode.UNAVAILABLE, "etcd is away")
            elif context.path.endswith("Watch/Watch"):
                await self._watch(context, request.create_request)
            else:
                if self._chance.random() < self.lost_replies / 2:
                    # and it was not done
                    context.finish(grpc.StatusCode.UNAVAILABLE, "connection reset by peer")
                    return
                try:
                    reply = self._answer(context.path.rpartition("/")[2], request)
                except _NoLease:
                    context.finish(
                        grpc.StatusCode.NOT_FOUND, "etcdserver: requested lease not found"
                    )
                    return
                if self._chance.random() < self.lost_replies:
                    context.finish(grpc.StatusCode.UNAVAILABLE, "connection reset by peer")
                else:
                    context.send(reply)
                    context.finish()
        finally:
            self._calls.pop(context, None)

    def _answer(self, method: str, request: Any) -> Any:
        header = pb.ResponseHeader(cluster_id=1, revision=self.revision)
        if method == "Range":
            return self._range(request, header)
        if method == "Txn":
            return self._txn(request)
        if method == "LeaseGrant":
            number = self._chance.getrandbits(62)
            self._leases[number] = _Lease(request.TTL, self._loop.now + request.TTL)
            return pb.LeaseGrantResponse(header=header, ID=number, TTL=request.TTL)
        if method == "LeaseRevoke":
            self._end_lease(request.ID)
            return pb.LeaseRevokeResponse(header=header)
        assert method == "LeaseKeepAlive", method
        lease = self._leases.get(request.ID)
        if lease is not None:
            lease.until = self._loop.now + lease.ttl_s
        return pb.LeaseKeepAliveResponse(
            header=header, ID=request.ID, TTL=lease.ttl_s if lease is not None else 0
        )

    def _range(self, request: Any, header: Any) -> Any:
        if not request.range_end:
            found = [self.rows[request.key]] if request.key in self.rows else []
        else:
            found = [
                self.rows[key]
                for key in sorted(self.rows)
                if request.key <= key < request.range_end
            ]
        return pb.RangeResponse(header=header, kvs=found, count=len(found))

    def _txn(self, request: Any) -> Any:
        succeeded = all(self._holds(compare) for compare in request.compare)
        operations = request.success if succeeded else request.failure
        if any(operation.request_put.lease not in (0, *self._leases) for operation in operations):
            raise _NoLease
        changed = []
        answers = []
        revision = self.revision + 1
        for operation in operations:
            answer = pb.ResponseOp()
            if operation.HasField("request_put"):
                put = operation.request_put
                changed.append(self._put(put.key, put.value, put.lease, revision))
            elif operation.HasField("request_delete_range"):
                changed += self._delete([operation.request_delete_range.key], revision)
            else:
                row = self.rows.get(operation.request_range.key)
                answer.response_range.kvs.extend([] if row is None else [row])
            answers.append(answer)
        if changed:
            self._changed(changed, revision)
        header = pb.ResponseHeader(cluster_id=1, revision=self.revision)
        return pb.TxnResponse(header=header, succeeded=succeeded, responses=answers)

    def _holds(self, compare: Any) -> bool:
        mine: Any
        row = self.rows.get(compare.key)
        if compare.target == pb.Compare.MOD:
            mine, given = row.mod_revision if row is not None else 0, compare.mod_revision
        elif compare.target == pb.Compare.CREATE:
            mine, given = row.create_revision if row is not None else 0, compare.create_revision
        elif compare.target == pb.Compare.VERSION:
            mine, given = row.version if row is not None else 0, compare.version
        elif row is None:
            return False
        else:
            mine, given = row.value, compare.value
        results = {
            pb.Compare.EQUAL: mine == given,
            pb.Compare.NOT_EQUAL: mine != given,
            pb.Compare.GREATER: mine > given,
        }
        return bool(results.get(compare.result, mine < given))

    def _put(self, key: bytes, value: bytes, lease: int, revision: int) -> pb.Event:
        before = self.rows.get(key)
        if before is not None and before.lease and before.lease in self._leases:
            self._leases[before.lease].keys.discard(key)
        if lease:
            self._leases[lease].keys.add(key)
        row = self.rows[key] = pb.KeyValue(
            key=key,
            value=value,
            lease=lease,
            mod_revision=revision,
            create_revision=before.create_revision if before is not None else revision,
            version=before.version + 1 if before is not None else 1,
        )
        return pb.Event(type=pb.Event.PUT, kv=row)

    def _delete(self, keys: list[bytes], revision: int) -> list[pb.Event]:
        events = []
        for key in keys:
            row = self.rows.pop(key, None)
            if row is not None:
                if row.lease in self._leases:
                    self._leases[row.lease].keys.discard(key)
                events.append(
                    pb.Event(type=pb.Event.DELETE, kv=pb.KeyValue(key=key, mod_revision=revision))
                )
        return events

    # -- an operator's own changes

    def put(self, key: str, value: bytes) -> None:
        self._changed([self._put(key.encode(), value, 0, self.revision + 1)], self.revision + 1)

    def delete(self, key: str) -> None:
        if events := self._delete([key.encode()], self.revision + 1):
            self._changed(events, self.revision + 1)

    # -- leases

    def _expire(self) -> None:
        self._loop.world_later(_LEASE_TICK_S, self._expire)
        if ADDRESS in self._network.listeners:
            for number, lease in list(self._leases.items()):
                if lease.until < self._loop.now:
                    self._end_lease(number)

    def _end_lease(self, number: int) -> None:
        lease = self._leases.pop(number, None)
        if lease is not None and (events := self._delete(sorted(lease.keys), self.revision + 1)):
            self._changed(events, self.revision + 1)

    # -- watches

    def _changed(self, events: list[pb.Event], revision: int) -> None:
        self.revision = revision
        self.history += events
        for event in events:
            if event.type == pb.Event.PUT:
                self.wrote(event.kv.key, event.kv.value)
        for watch in list(self._watches):
            watch.show(
                events,
                revision,
                self._loop.now + max(0.0, self.lag_until - self._loop.now) * self._chance.random(),
            )

    async def _watch(self, context: ServerContext, request: Any) -> None:
        header = pb.ResponseHeader(cluster_id=1, revision=self.revision)
        if 0 < request.start_revision <= self.compacted:
            context.send(
                pb.WatchResponse(header=header, canceled=True, compact_revision=self.compacted + 1)
            )
            context.finish()
            return
        watch = _Watch(self._loop, context, request)
        context.send(pb.WatchResponse(header=header, created=True))
        by_revision: dict[int, list[pb.Event]] = {}
        for event in self.history:
            if event.kv.mod_revision >= request.start_revision:
                by_revision.setdefault(event.kv.mod_revision, []).append(event)
        for revision, events in by_revision.items():
            watch.show(events, revision, 0.0)
        self._watches[watch] = None
        try:
            await self._loop.create_future()  # until the client goes away
        finally:
            self._watches.pop(watch, None)


class _NoLease(Exception):
    pass


class _Watch:
    """Shows changes in order, perhaps late."""

    def __init__(self, loop: VirtualLoop, context: ServerContext, request: Any) -> None:
        self._loop = loop
        self._context = context
        self._request = request
        self._last = 0.0

    def show(self, events: list[pb.Event], revision: int, at: float) -> None:
        start, end = self._request.key, self._request.range_end
        mine = [
            event
            for event in events
            if start <= event.kv.key < end and revision >= self._request.start_revision
        ]
        if not mine:
            return
        response = pb.WatchResponse(
            header=pb.ResponseHeader(cluster_id=1, revision=revision), events=mine
        )
        self._last = at = max(self._last, at)
        if at <= self._loop.now:
            self._context.send(response)
        else:
            self._loop.world_later(at - self._loop.now, self._context.send, response)
