"""The cluster in one process: the production engine over a store in memory, on virtual time. Its
network can lose replies.

There is one node, with one copy of everything. Users' code sees a cluster's behaviour: turns,
commits, retries under one request id, notifications, alarms, eviction, and a crash that loses all
writes that are not durable.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, cast

from holdfast import codec
from holdfast.alarms import Alarm
from holdfast.app import App, kind_name
from holdfast.client.requests import callee as callee_of
from holdfast.client.requests import check_size, check_target, delay_ms
from holdfast.deadlines import checked_timedelta, checked_timeout
from holdfast.errors import DeadlineExceeded, HoldfastError, error_from_proto, error_to_proto
from holdfast.ids import EFFECT, RequestIds, idempotent_id
from holdfast.signature import check_notified, decode_result, encode_arguments, return_type
from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.clocks.cluster_time import Time
from holdfast_cluster.placement.ring import shard_of

from holdfast_node.effects.alarms import to_alarm
from holdfast_node.effects.records import decode_alarm, decode_dead_letter
from holdfast_node.log.commit import Committer, Flusher
from holdfast_node.log.shards import FOR_EVER, Shard, Shards
from holdfast_node.log.single import SingleLog
from holdfast_node.objects.engine import Engine
from holdfast_node.objects.responses import ResponseCache
from holdfast_node.services.host import HostOptions, ObjectHost
from holdfast_node.store import keys
from holdfast_node.store.rocks import Store
from holdfast_node.store.values import read_expiry, read_value
from holdfast_node.testing.loop import VirtualLoop
from holdfast_node.testing.memory import MemoryStore

T = TypeVar("T")

SHARDS = 8
TIMEOUT_S = 30.0
_RESEND_S = 0.02
_FSYNC_S = 0.0005
_QUIET_S = 0.5
_SETTLE_MAX_S = 60.0
_TICK_S = (0.05, 600.0)


class _OwnLoop(Exception):
    """The cluster was used from a coroutine that runs on another loop."""


class InProcessCluster:
    """The cluster for tests. Implements `holdfast.testing.Cluster`, which documents its methods."""

    def __init__(self, app: App, seed: int, now: datetime | None = None) -> None:
        self.seed = seed
        self._app = app
        self._chance = random.Random(seed)
        self._loop = VirtualLoop()
        self._clock = _Clock(self._loop, now or datetime.now(UTC))
        self._store = MemoryStore()
        self._epoch = 0
        self._shard_ms = 0.0
        self._ids = RequestIds(self._clock.now_ms)
        self._network = _Network(self._loop, self._chance)
        self._loop.working = lambda: bool(self._network.under_way or self._in_run)
        self._in_run = False
        self.client = AsyncClient(self)
        self._run(self._start())

    # -- its life

    async def _start(self) -> None:
        self._epoch += 1
        store = cast(Store, self._store)
        shards = Shards(SHARDS, cast(Time, self._clock))
        self._flusher = _Flusher(store)
        log = SingleLog(self._flusher)
        for number in range(SHARDS):
            shard = Shard(number, self._epoch, log, self._shard_ms)
            shards.take(shard)
            shard.until = FOR_EVER
        self._shards = shards
        responses = ResponseCache(store, 600, self._clock.now_ms)
        committer = Committer(self._flusher)
        self._objects = ObjectHost(
            self._app, HostOptions(chance=self._chance), committer, shards, responses, self._network
        )
        self._engine = self._objects.engine
        self._network.engine = self._engine
        self._ticking = self._loop.create_task(self._tick(), name="holdfast tick")

    async def _tick(self) -> None:
        """Tick the objects: soon after each event, and when something is due."""
        least, most = _TICK_S
        while True:
            self._objects.tick()
            due_s = (self._objects.next_due_ms() - self._clock.now_ms()) / 1000
            self._network.happened.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(max(due_s, least), most)):
                    await self._network.happened.wait()
            await asyncio.sleep(least)

    def close(self) -> None:
        """End the cluster, and cancel all that still runs."""
        if self._loop.is_closed():
            return
        self._run(self._end())
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._run(asyncio.sleep(0))
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    async def _end(self) -> None:
        self._ticking.cancel()
        self._network.engine = None
        self._shards.drop(set(self._shards.owned()))
        await self._engine.close()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            coroutine.close()
            raise _OwnLoop(
                "the cluster has a loop of its own: use it in a plain `def` test, and"
                " `cluster.run(...)` for coroutines"
            )
        return self._loop.run_until_complete(coroutine)

    # -- calls

    def get(self, kind: type[T] | str, key: str, **options: Any) -> Any:
        stub = self.client.get(kind, key, **options)
        return _Sync(self._run, stub)

    def notify(self, kind: type[T] | str, key: str, **options: Any) -> Any:
        return _Sync(self._run, self.client.notify(kind, key, **options))

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        self._in_run = True
        try:
            return self._run(coroutine)
        finally:
            self._in_run = False

    async def _call(self, call: pb.Call, timeout: float | None) -> bytes:
        """Return the result of a call, which is sent again as clients and gateways do. Raises the
        call's error."""
        if not call.request_id:
            call.request_id = self._ids.next()
        check_size(call.ByteSize(), len(call.arguments), definite=False)
        call.timeout_ms = int(1000 * (TIMEOUT_S if timeout is None else checked_timeout(timeout)))
        reply = _Reply(self._loop.create_future())
        self._network.submit(call, reply, of_client=True)
        answer = await reply.future
        if answer.result:
            return answer.result
        error = error_from_proto(answer.error)
        error.callee = callee_of(call)
        raise error

    # -- time

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.now_ms() / 1000, UTC)

    def advance(self, delta: timedelta) -> None:
        if checked_timedelta("the time that passes", delta) < timedelta():
            raise ValueError(f"time does not go back: {delta}")
        self._run(asyncio.sleep(delta.total_seconds()))
        self._engine.tick()
        self.settle()

    def settle(self) -> None:
        self._run(self._settled())

    async def _settled(self) -> None:
        quiet_since = began = self._loop.time()
        while self._loop.time() < began + _SETTLE_MAX_S:
            if self._busy():
                quiet_since = self._loop.time()
            elif self._loop.time() - quiet_since > _TICK_S[0] * 3:
                return
            await asyncio.sleep(0.01)

    def _busy(self) -> bool:
        now = self._loop.time()
        outbox = self._objects.outbox
        due = outbox.due(now)
        return bool(
            self._network.under_way
            or self._engine.in_flight
            or outbox.on_way
            or (due is not None and due <= now + _QUIET_S)
            or self._objects.next_due_ms() <= self._clock.now_ms()
        )

    def fire_alarm(self, kind: type | str, key: str, name: str = "default") -> None:
        of = kind_name(kind)
        self._flusher.write()
        raw = self._store.get(
            "state", keys.alarm_prefix(shard_of(of, key, SHARDS), of, key) + name.encode()
        )
        if raw is None:
            there = ", ".join(repr(alarm.name) for alarm in self.alarms(kind, key)) or "none"
            raise LookupError(f"{of}/{key} has no alarm {name!r}; there is {there}")
        self._run(self._fire(of, key, name, raw))

    async def _fire(self, kind: str, key: str, name: str, raw: bytes) -> None:
        done: asyncio.Future[pb.Error | None] = self._loop.create_future()
        record = decode_alarm(raw)
        alarms = self._objects.alarms
        alarms.fire(
            kind, key, name, record.due_ms, record, lambda error, ran: done.set_result(error)
        )
        error = await done
        if error is not None:
            raise error_from_proto(error)

    # -- faults

    def evict(self, kind: type | str, key: str) -> bool:
        return self._run(self._engine.eviction.evict_object(kind_name(kind), key))

    def crash_owner(self, kind: type | str = "", key: str = "") -> None:
        self._run(self._crash())

    async def _crash(self) -> None:
        self._shard_ms = max(shard.time_ms for shard in self._shards.owned())
        again = self._network.cut()
        await self._end()
        await asyncio.sleep(0)
        self._store.lose_unsynced()
        await self._start()
        self._network.resend(again)

    def drop_next_reply(self) -> None:
        self._network.drops += 1

    # -- stored data

    def stored(self, kind: type | str, key: str) -> dict[str, Any]:
        of = kind_name(kind)
        self._flusher.write()
        number = shard_of(of, key, SHARDS)
        prefix = keys.row_prefix(number, of, key)
        shard = self._shards.get(number)
        assert shard is not None
        expiry = self._store.get("state", keys.expiry_key(number, of, key))
        if expiry is not None and shard.expired(int.from_bytes(expiry, "big")):
            return {}
        rows = self._store.scan("state", prefix, keys.after(prefix))
        return {
            row[len(prefix) :].decode(): codec.decode(read_value(raw))
            for row, raw in rows
            if (at := read_expiry(raw)) is None or not shard.expired(at)
        }

    def alarms(self, kind: type | str, key: str) -> list[Alarm]:
        of = kind_name(kind)
        self._flusher.write()
        prefix = keys.alarm_prefix(shard_of(of, key, SHARDS), of, key)
        found = [
            (row[len(prefix) :].decode(), decode_alarm(raw))
            for row, raw in self._store.scan("state", prefix, keys.after(prefix))
        ]
        return [
            to_alarm(name, record)
            for name, record in sorted(found, key=lambda item: item[1].due_ms)
        ]

    def dead_letters(self) -> list[dict[str, Any]]:
        self._flusher.write()
        letters = []
        for number in range(SHARDS):
            prefix = keys.index_prefix(number, keys.DEAD_LETTERS)
            for _, raw in self._store.scan("state", prefix, keys.after(prefix)):
                letter = decode_dead_letter(raw)
                row = letter.notification
                letters.append(
                    {
                        "from": row.sender,
                        "to": f"{row.kind}/{row.key}",
                        "method": row.method,
                        "alarm": letter.alarm_name,
                        "arguments": codec.decode(row.arguments),
                        "attempts": row.attempts,
                        "error": letter.error,
                    }
                )
        return letters


class AsyncClient:
    """A client like `holdfast.Client`, for code that runs in `InProcessCluster.run`."""

    def __init__(self, cluster: InProcessCluster) -> None:
        self._cluster = cluster

    def get(
        self,
        kind: type | str,
        key: str,
        *,
        timeout: float | None = None,
        request_id: bytes | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        caller: str = "",
    ) -> Any:
        """Return a stub. `caller`: the caller's name, as a gateway would have authenticated it."""
        check_target(kind, key, request_id, idempotency_key)
        name = kind_name(kind)
        call = pb.Call(kind=name, key=key, metadata=metadata, caller=caller)
        if idempotency_key is not None:
            call.request_id = idempotent_id(name, key, idempotency_key)
        elif request_id is not None:
            call.request_id = request_id
        call.keep_reply = bool(call.request_id)
        call.attempt = int(call.keep_reply)
        return _Stub(self._cluster, kind, call, timeout)

    def notify(
        self, kind: type | str, key: str, *, delay: timedelta | None = None, **options: Any
    ) -> Any:
        """Return a stub whose calls are stored."""
        stub = self.get(kind, key, **options)
        stub._call.send = True
        stub._call.delay_ms = delay_ms(delay)
        return stub


class _Stub:
    def __init__(
        self, cluster: InProcessCluster, kind: type | str, call: pb.Call, timeout: float | None
    ) -> None:
        self._cluster = cluster
        self._kind = kind
        self._call = call
        self._timeout = timeout

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):
            raise AttributeError(method)
        returns = None if self._call.send else return_type(self._kind, method)
        if self._call.send:
            check_notified(self._kind, method)

        async def made(*positional: Any, **named: Any) -> Any:
            call = pb.Call()
            call.CopyFrom(self._call)
            call.method = method
            call.arguments = encode_arguments(positional, named)
            return decode_result(
                await self._cluster._call(call, self._timeout), returns, call.kind, method
            )

        return made


class _Sync:
    """A stub whose calls block until they are answered."""

    def __init__(self, run: Callable[[Coroutine[Any, Any, Any]], Any], stub: Any) -> None:
        self._run = run
        self._stub = stub

    def __getattr__(self, method: str) -> Any:
        made = getattr(self._stub, method)
        return lambda *positional, **named: self._run(made(*positional, **named))


class _Clock:
    """The cluster's time: the loop's time, counted from a date. A stand-in for
    `holdfast_cluster.clocks.cluster_time.Time`."""

    started = True

    def __init__(self, loop: VirtualLoop, began: datetime) -> None:
        self._loop = loop
        self._began_ms = began.timestamp() * 1000

    def now_ms(self) -> int:
        return int(self._began_ms + self._loop.time() * 1000)


class _Flusher(Flusher):
    """A flusher without a thread: its fsyncs take virtual time."""

    def _start(self) -> None:
        pass

    def _hand_over(self, waiting: list[Callable[[], None]]) -> None:
        self._loop.call_later(_FSYNC_S, self._sync_now, waiting)

    def _sync_now(self, waiting: list[Callable[[], None]]) -> None:
        self.store.sync()
        self.sync_seconds.observe(_FSYNC_S)
        self._synced(waiting)


class _Reply:
    """Takes one reply. Implements `holdfast_cluster.routing.pending.Origin`."""

    def __init__(self, future: asyncio.Future[pb.Reply]) -> None:
        self.future = future

    def push(self, reply: pb.Reply, size: int) -> None:
        if not self.future.done():
            self.future.set_result(reply)


class _Way:
    """A call on its way, and the port to which its replies come."""

    closed = False

    def __init__(
        self, network: _Network, call: pb.Call, origin: Any, of_client: bool, deadline: float
    ) -> None:
        self._network = network
        self.call = call
        self.origin = origin
        self.of_client = of_client
        self.deadline = deadline
        self.number = 0
        self.attempts = 0

    def reply(
        self, number: int, result: bytes, error: pb.Error | None, shard: Shard | None
    ) -> None:
        self._network.replied(self, number, pb.Reply(id=self.call.id, result=result, error=error))


class _Network:
    """Carries calls to the engine and replies back, after random delays that the seed decides.
    Implements `holdfast_node.objects.environment.Outgoing`."""

    def __init__(self, loop: VirtualLoop, chance: random.Random) -> None:
        self._loop = loop
        self._chance = chance
        self._count = 0
        self.engine: Engine | None = None
        self.under_way: dict[int, _Way] = {}
        self.drops = 0
        """The number of next replies to clients that get lost."""
        self.happened = asyncio.Event()

    def submit(self, call: pb.Call, origin: Any, of_client: bool = False) -> int:
        self._count = number = self._count + 1
        own = pb.Call()
        own.CopyFrom(call)
        deadline = self._loop.time() + (call.timeout_ms / 1000 or TIMEOUT_S)
        self.under_way[number] = way = _Way(self, own, origin, of_client, deadline)
        way.number = number
        self._send(number, way)
        return number

    def cancel(self, number: int, heir: Any) -> bool:
        way = self.under_way.pop(number, None)
        if way is not None and self.engine is not None:
            self.engine.cancel(way.call.request_id, way, way.attempts)
        return way is not None

    def reachable(self, kind: str, key: str) -> bool:
        return True

    def cut(self) -> list[tuple[int, _Way]]:
        """Cut all calls under way from the node, which crashes. Return the calls that `resend`
        sends again."""
        ways = list(self.under_way.items())
        for _, way in ways:
            way.attempts += 1
            if way.call.request_id[0] < EFFECT or not way.call.notification:
                way.call.attempt += 1
        # Only calls of clients: the objects themselves send theirs again.
        return [(number, way) for number, way in ways if way.of_client]

    def resend(self, ways: list[tuple[int, _Way]]) -> None:
        """Send calls again to the restarted node."""
        self.under_way = dict(ways)
        for number, way in ways:
            self._send(number, way)

    def replied(self, way: _Way, number: int, reply: pb.Reply) -> None:
        """Take the node's answer to attempt `number` of a call."""
        self.happened.set()
        if number == way.attempts:
            self._loop.call_later(self._delay(), self._arrived, way, number, reply)

    def _delay(self) -> float:
        return self._chance.uniform(0.0001, 0.002)

    def _send(self, number: int, way: _Way, after: float = 0.0) -> None:
        self._loop.call_later(after + self._delay(), self._deliver, number, way, way.attempts)

    def _deliver(self, number: int, way: _Way, attempt: int) -> None:
        if self.under_way.get(number) is not way or way.attempts != attempt or self.engine is None:
            return
        call = pb.Call()
        call.CopyFrom(way.call)
        call.id = attempt
        call.timeout_ms = max(1, int((way.deadline - self._loop.time()) * 1000))
        self.engine.deliver(call, way)

    def _arrived(self, way: _Way, attempt: int, reply: pb.Reply) -> None:
        number = way.number
        if self.under_way.get(number) is not way or way.attempts != attempt:
            return
        lost = way.of_client and self.drops > 0
        moved = reply.error.code == pb.CODE_WRONG_OWNER
        if lost or moved:
            self.drops -= lost
            way.attempts += 1
            way.call.attempt += lost or not reply.error.definite
            if self._loop.time() + _RESEND_S < way.deadline:
                self._send(number, way, _RESEND_S)
                return
            late: HoldfastError = DeadlineExceeded(
                f"{callee_of(way.call)}: no reply before the deadline", retryable=True
            )
            reply = pb.Reply(error=error_to_proto(late))
        del self.under_way[number]
        way.origin.push(reply, 0)


def make(app: App, seed: int | None = None, now: datetime | None = None) -> InProcessCluster:
    """Return a cluster. `holdfast.testing` finds this function by the entry point
    `holdfast.testing`."""
    return InProcessCluster(app, random.randrange(1 << 32) if seed is None else seed, now)
