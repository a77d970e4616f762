"""A simulated world for what happens exactly once: calls, notifications, alarms, under crashes,
fail-overs and bad links.

It runs the engine, turns, services and kept replies of production, with the objects of
`holdfast verify`. The time of its event loop is virtual. Other callers come through gateways
(gateways.py).

The world does not run replication (world.py does), but keeps its promises. A shard's entries are
committed in order, and only by the owner of its epoch. An entry that was on its way when an owner
died is committed or is not. One seed is one world.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import selectors
from bisect import bisect_left, insort
from collections import Counter as Tally
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from holdfast import codec
from holdfast.errors import Unavailable, error_to_proto
from holdfast.ids import RequestIds
from holdfast.v1 import objects_pb2 as pb
from holdfast.verify.app import app
from holdfast_cluster.placement.ring import shard_of
from holdfast_cluster.routing.dispatch import Dispatcher
from holdfast_node.effects.outbox import OutboxLimits
from holdfast_node.log.changes import Until
from holdfast_node.log.commit import Committer
from holdfast_node.log.shards import FOR_EVER, Entry, Shard, Shards
from holdfast_node.log.staging import stage_forgotten
from holdfast_node.objects.limits import EngineLimits
from holdfast_node.objects.responses import ResponseCache
from holdfast_node.services.host import HostOptions, ObjectHost

from .gateways import Front, Pipe
from .verdicts import Broken

SHARDS = 8
NODES = 3
STATIONS = [f"s{i}" for i in range(5)]
TOKENS = 3
ACCOUNTS = [f"a{i}" for i in range(5)]
CLOCKS = ["c0", "c1", "c2"]
EVERY_MS = 500
UNDER_FIRE_S = 12.0
HEALED_S = 60.0
RUNG_MIN = int(UNDER_FIRE_S * 1000 / EVERY_MS)
"""How often a clock is rung in a world, in the end: one whose last attempt failed is tried again
two seconds later."""
START_MS = 1_800_000_000_000
LIMITS = EngineLimits(outbox=OutboxLimits(backoff_s=(0.1, 5.0)), turn_timeout_s=5.0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that does not wait: its time jumps to when something is due."""

    def __init__(self) -> None:
        self.virtual = 0.0
        super().__init__(_Jump(self))

    def time(self) -> float:
        return self.virtual

    def time_ns(self) -> int:
        return START_MS * 1_000_000 + int(self.virtual * 1e9)


class _Jump(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "the world stands still"
        self._loop.virtual += max(0.0, timeout)
        return []


class Memory:
    """A store: what a node's engine reads. Implements what it needs of
    `holdfast_node.store.rocks.Store`."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[bytes, bytes]] = {"state": {}, "replies": {}}
        self._order: dict[str, list[bytes]] = {"state": [], "replies": []}

    def get(self, family: str, key: bytes) -> bytes | None:
        return self.rows[family].get(key)

    def scan(
        self, family: str, start: bytes, end: bytes | None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        order = self._order[family]
        found = order[
            bisect_left(order, start) : len(order) if end is None else bisect_left(order, end)
        ]
        rows = self.rows[family]
        return iter([(key, rows[key]) for key in (reversed(found) if reverse else found)])

    def put(self, family: str, key: bytes, value: bytes) -> None:
        if key not in self.rows[family]:
            insort(self._order[family], key)
        self.rows[family][key] = value

    def delete(self, family: str, key: bytes) -> None:
        if self.rows[family].pop(key, None) is not None:
            del self._order[family][bisect_left(self._order[family], key)]

    def apply(self, entry: Entry) -> None:
        for key, value in entry.rows:
            if value is None:
                self.delete("state", key)
            elif isinstance(value, Until):
                for gone, _ in list(self.scan("state", key, value.end)):
                    self.delete("state", gone)
            else:
                self.put("state", key, value)
        for key, value in entry.replies:
            self.put("replies", key, value)
        if entry.forgotten is not None:
            stage_forgotten(self, _Staged(self), entry.shard.number, entry.forgotten)  # type: ignore[arg-type]

    def of_shard(self, number: int) -> Memory:
        part = Memory()
        for family in self.rows:
            for key, value in self.scan(
                family, number.to_bytes(2, "big"), (number + 1).to_bytes(2, "big")
            ):
                part.put(family, key, value)
        return part


class _Staged:
    """A batch that is written as it is made."""

    def __init__(self, store: Memory) -> None:
        self.put = store.put
        self.delete = store.delete
        self._store = store

    def delete_range(self, family: str, start: bytes, end: bytes) -> None:
        for key, _ in list(self._store.scan(family, start, end)):
            self._store.delete(family, key)


class Flushes:
    """Stands in for the flusher: gathers soon, and shows what is committed a little later."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.staged: list[Entry] = []
        self.store: Memory

    def request(self) -> None:
        pass

    def before_flush(self, gather: Callable[[], None]) -> None:
        self._loop.call_soon(gather)

    def write(self) -> None:
        staged, self.staged = self.staged, []
        for entry in staged:
            self.store.apply(entry)
        for entry in staged:
            entry.mark_applied()


@dataclass
class Truth:
    """One shard: what is committed, and who may commit."""

    number: int
    epoch: int = 0
    owner: SimNode | None = None
    time_ms: float = 1.0
    store: Memory = field(default_factory=Memory)


class SimNode:
    """One life of a node."""

    def __init__(self, world: EffectsWorld, name: str) -> None:
        self.world = world
        self.name = name
        world.lives += 1
        self.life = world.lives
        self.up = True
        loop = asyncio.get_running_loop()
        self.store = Memory()
        self.flusher = Flushes(loop)
        self.flusher.store = self.store
        self.shards = Shards(SHARDS)
        kept = ResponseCache(self.store, 600)  # type: ignore[arg-type]
        committer = Committer(self.flusher)  # type: ignore[arg-type]
        self.objects = world.host(
            app, HostOptions(LIMITS), committer, self.shards, kept, Router(world, self)
        )
        self.engine = self.objects.engine
        self._on_way: dict[int, list[Entry]] = {}
        loop.call_later(0.1, self._tick)

    def _tick(self) -> None:
        if self.up:
            self.objects.tick()
            asyncio.get_running_loop().call_later(0.1, self._tick)

    def take(self, truth: Truth) -> None:
        """Own a shard, under the epoch after the one before."""
        before = None if truth.owner is None else truth.owner.shards.get(truth.number)
        if before is not None:
            truth.time_ms = max(truth.time_ms, before.time_ms)
        truth.epoch += 1
        truth.owner = self
        self.flusher.write()
        for family, rows in self.store.of_shard(truth.number).rows.items():
            for key in rows:
                self.store.delete(family, key)
        for family, rows in truth.store.rows.items():
            for key, value in rows.items():
                self.store.put(family, key, value)
        shard = Shard(truth.number, truth.epoch, self, truth.time_ms)
        self.shards.take(shard)
        shard.until = FOR_EVER

    def append(self, entries: list[Entry]) -> None:
        for entry in entries:
            queue = self._on_way.setdefault(entry.shard.number, [])
            queue.append(entry)
            if len(queue) == 1:
                self._commit_later(entry.shard.number)

    def _commit_later(self, number: int) -> None:
        delay = self.world.chance.expovariate(1 / 0.004) + (
            0.3 if self.world.chance.random() < 0.02 else 0.0
        )
        asyncio.get_running_loop().call_later(delay, self._commit, number)

    def _commit(self, number: int) -> None:
        queue = self._on_way.get(number)
        if not queue:
            return
        entry = queue.pop(0)
        truth = self.world.truths[number]
        mine = (
            self.up
            and truth.owner is self
            and truth.epoch == entry.shard.epoch
            and entry.shard.owned
        )
        if mine:
            truth.store.apply(entry)
            entry.committed = True
            self.flusher.staged.append(entry)
            if self.world.chance.random() < 0.5:
                self.flusher.write()
        else:
            entry.abandoned = True
        if self.up:
            entry.settle()
        if queue:
            self._commit_later(number)

    def lose(self, truth: Truth) -> None:
        """What is on its way is committed up to some point, whether or not a caller hears of it.
        Then another node owns the shard."""
        shard = self.shards.get(truth.number)
        if truth.owner is self and shard is not None:
            queue = self._on_way.get(truth.number, [])
            for entry in queue[: self.world.chance.randint(0, len(queue))]:
                if entry.shard.epoch == truth.epoch:
                    truth.store.apply(entry)
        truth.owner = None

    def forget(self, number: int) -> None:
        """The node learns that a shard is not its own any more."""
        shard = self.shards.get(number)
        if shard is not None:
            self.shards.drop({shard})
            for entry in self._on_way.pop(number, []):
                entry.abandoned = True
                entry.settle()


class Router:
    """Takes calls to the owners of their objects over links that lose, double and delay; sends
    again what was not answered."""

    def __init__(self, world: EffectsWorld, node: SimNode | None) -> None:
        self._world = world
        self._node = node

    def reachable(self, kind: str, key: str) -> bool:
        return self._world.truths[shard_of(kind, key, SHARDS)].owner is not None

    def submit(self, call: pb.Call, origin: Any) -> int:
        _Sending(self._world, self._node, call, origin)
        return 0

    def cancel(self, number: int, heir: Any) -> bool:
        """The cancellation gets lost, as it always may."""
        return False


class _Sending:
    """One call until it is answered. Implements `holdfast_node.objects.activation.ReplyPort`."""

    def __init__(
        self, world: EffectsWorld, node: SimNode | None, call: pb.Call, origin: Any
    ) -> None:
        self._world = world
        self._node = node
        self._call = call
        self._origin = origin
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + call.timeout_ms / 1000
        self._done = False
        self._send()

    def _alive(self) -> bool:
        return not self._done and (self._node is None or self._node.up)

    def _send(self) -> None:
        if not self._alive():
            return
        if self._loop.time() >= self._deadline:
            self._finish(
                pb.Reply(
                    error=error_to_proto(Unavailable("nobody answered in time", retryable=True))
                )
            )
            return
        chance = self._world.chance
        owner = self._world.truths[shard_of(self._call.kind, self._call.key, SHARDS)].owner
        if owner is not None and owner is self._node:
            # As the node's pipe to itself: the very object that is sent again, perhaps elsewhere,
            # when no answer comes.
            self._loop.call_soon(owner.engine.deliver, self._call, _Port(self, owner))
            self._loop.call_later(0.3 + chance.random() * 0.3, self._again)
            return
        # a stream doubles nothing, but who sends may
        for _ in range(2 if chance.random() < self._world.doubled else 1):
            raw = self._call.SerializeToString()
            self._call.attempt += 1
            if chance.random() >= self._world.loss:
                delay = chance.expovariate(1 / 0.003) + (
                    chance.random() * 2 if chance.random() < self._world.late else 0.0
                )
                self._loop.call_later(delay, self._arrive, raw)
        self._loop.call_later(0.3 + chance.random() * 0.3, self._send)

    def _again(self) -> None:
        self._call.attempt += 1
        self._send()

    def _arrive(self, raw: bytes) -> None:
        call = pb.Call.FromString(raw)
        owner = self._world.owner_seen_by_a_sender(shard_of(call.kind, call.key, SHARDS))
        if owner is not None and owner.up:
            owner.engine.deliver(call, _Port(self, owner))

    def answer(self, reply: pb.Reply) -> None:
        if not self._alive() or (not reply.result and reply.error.code == pb.CODE_WRONG_OWNER):
            return
        if self._world.chance.random() >= self._world.loss:
            self._loop.call_later(self._world.chance.expovariate(1 / 0.003), self._finish, reply)

    def _finish(self, reply: pb.Reply) -> None:
        if self._alive():
            self._done = True
            self._origin.push(reply, 0)


class _Port:
    closed = False

    def __init__(self, sending: _Sending, owner: SimNode) -> None:
        self._sending = sending
        self._owner = owner

    def reply(
        self, number: int, result: bytes, error: pb.Error | None, shard: Shard | None
    ) -> None:
        if not self._owner.up or (shard is not None and shard.until <= self._sending._loop.time()):
            return  # what it says may not be true any more
        self._sending.answer(pb.Reply(result=result) if error is None else pb.Reply(error=error))


class EffectsWorld:
    """Everything there is. `host` and `dispatcher` can be replaced by broken ones."""

    def __init__(
        self,
        seed: int,
        host: type[ObjectHost] = ObjectHost,
        dispatcher: type[Dispatcher] = Dispatcher,
    ) -> None:
        self.chance = random.Random(seed)
        self.host = host
        self.loss, self.doubled, self.late = 0.03, 0.05, 0.02
        self.truths = [Truth(number) for number in range(SHARDS)]
        self.working = True
        self.transfers = 0
        self.lives = 0
        self.front = Front(self, seed, dispatcher)
        self._before: dict[int, SimNode] = {}

    async def live(self) -> None:
        """From beginning to end. Raises Broken."""
        self.nodes = [SimNode(self, f"n{i}") for i in range(NODES)]
        for truth in self.truths:
            self.chance.choice(self.nodes).take(truth)
        self._client = Router(self, None)
        self._ids = RequestIds()
        self.front.begin()
        async with asyncio.TaskGroup() as group:
            for i in range(TOKENS):
                group.create_task(
                    self.ask("station", STATIONS[i], "arrive", f"token {i}", 0, STATIONS)
                )
            for key in CLOCKS:
                group.create_task(self.ask("clock", key, "start", EVERY_MS))
            trouble = group.create_task(self._trouble())
            group.create_task(self.front.call())
            for i in range(4):
                group.create_task(self._transfer(i))
            await asyncio.sleep(UNDER_FIRE_S)
            self.working = False
            self.loss = self.doubled = self.late = 0.0
            await trouble
        await self._check()

    async def ask(self, kind: str, key: str, method: str, *arguments: Any) -> Any:
        """Call with one request id until it is answered with a result."""
        request_id = self._ids.next()
        for attempt in range(200):
            answer: asyncio.Future[pb.Reply] = asyncio.get_running_loop().create_future()
            call = pb.Call(
                kind=f"holdfast.verify.{kind}",
                key=key,
                method=method,
                arguments=codec.encode(arguments),
                request_id=request_id,
                attempt=attempt,
                timeout_ms=4000,
            )
            self._client.submit(call, _Future(answer))
            reply = await answer
            if reply.result:
                return codec.decode(reply.result)
            await asyncio.sleep(0.2)
        raise Broken(f"progress: {kind}/{key}.{method} was never answered: {reply.error}")

    async def _transfer(self, i: int) -> None:
        while self.working:
            giver, taker = sorted(self.chance.sample(ACCOUNTS, 2))
            self.transfers += 1
            # which one is wrong tells itself
            amount = self.chance.choice((-1, 1)) * (1000 + self.transfers)
            await self.ask(
                "account", giver, self.chance.choice(("send", "transfer")), taker, amount
            )
            await asyncio.sleep(self.chance.expovariate(1 / 0.05))

    # -- faults

    async def _trouble(self) -> None:
        while self.working:
            await asyncio.sleep(self.chance.expovariate(1 / 0.5))
            if not self.working:
                break
            what = self.chance.random()
            if what < 0.4:
                self._crash(self.chance.randrange(NODES))
            else:
                await self._move(self.chance.choice(self.truths))
        for i, node in enumerate(self.nodes):
            if not node.up:
                self.nodes[i] = SimNode(self, node.name)
        await asyncio.sleep(1.5)  # by then everybody has heard of what it lost
        for truth in self.truths:
            self._fail_over(truth)

    def _crash(self, i: int) -> None:
        node = self.nodes[i]
        if not node.up:
            return
        for truth in self.truths:
            if truth.owner is node:
                node.lose(truth)
                asyncio.get_running_loop().call_later(
                    self.chance.random() * 2, self._fail_over, truth
                )
        node.up = False
        self.front.died(node)
        for number in range(SHARDS):
            node.forget(number)
        asyncio.get_running_loop().call_later(self.chance.random(), self._restart, i)

    def _restart(self, i: int) -> None:
        if not self.nodes[i].up:
            self.nodes[i] = SimNode(self, self.nodes[i].name)

    def _fail_over(self, truth: Truth) -> None:
        if truth.owner is None:
            up = [node for node in self.nodes if node.up and node.shards.get(truth.number) is None]
            if up:
                self.chance.choice(up).take(truth)
            else:
                asyncio.get_running_loop().call_later(0.2, self._fail_over, truth)

    async def _move(self, truth: Truth) -> None:
        """Another node takes over; the one before hears of it at once, or goes on for a while, and
        may not answer meanwhile."""
        node = truth.owner
        if node is None or not node.up:
            return
        number = truth.number
        shard = node.shards.get(number)
        assert shard is not None
        shard.until = 0.0  # its promises are over before anybody else serves
        self._before[number] = node
        node.lose(truth)
        if self.chance.random() < 0.5:
            node.forget(number)
        else:
            asyncio.get_running_loop().call_later(self.chance.random(), node.forget, number)
        await asyncio.sleep(self.chance.random() * 0.3)
        others = [each for each in self.nodes if each.up and each.shards.get(number) is None]
        if truth.owner is None and others:
            self.chance.choice(others).take(truth)
        else:
            asyncio.get_running_loop().call_later(1.1, self._fail_over, truth)

    def owner_seen_by_a_sender(self, number: int) -> SimNode | None:
        """Who is asked: the owner, or, by an old view, the one before."""
        before = self._before.get(number)
        if self.working and before is not None and self.chance.random() < 0.1:
            return before
        return self.truths[number].owner

    # -- the end

    async def _check(self) -> None:
        """Like `holdfast verify`: tokens, money and times are all there, once; and what callers
        were told of their calls is true."""
        loop = asyncio.get_running_loop()
        for key in STATIONS:
            await self.ask("station", key, "halt")
        deadline = loop.time() + HEALED_S
        while True:
            kept = [
                item
                for key in STATIONS
                for item in (await self.ask("station", key, "tokens")).items()
            ]
            total = sum([await self.ask("account", key, "balance") for key in ACCOUNTS])
            rung = min([len(await self.ask("clock", key, "times", 0, 100_000)) for key in CLOCKS])
            if (len(kept) >= TOKENS and total == 0 and rung >= RUNG_MIN) or loop.time() > deadline:
                break
            await asyncio.sleep(0.5)
        await asyncio.sleep(2.0)
        kept = [
            item for key in STATIONS for item in (await self.ask("station", key, "tokens")).items()
        ]
        hops = Tally(
            [
                (token, hop)
                for key in STATIONS
                for token, hop in await self.ask("station", key, "hops", 0, 100_000)
            ]
        )
        for (token, hop), times in hops.items():
            if times > 1:
                raise Broken(f"once: {token} made hop {hop} {times} times")
        for i in range(TOKENS):
            rests = [hop for token, hop in kept if token == f"token {i}"]
            if len(rests) != 1:
                raise Broken(
                    f"the number of tokens is constant: token {i} rests at {len(rests)} stations"
                )
            made = sorted(hop for token, hop in hops if token == f"token {i}")
            if made != list(range(rests[0] + 1)):
                raise Broken(
                    f"in order: token {i} rests at hop {rests[0]}, of which {len(made)} are known"
                )
        self.hops = sum(hops.values())
        total = sum([await self.ask("account", key, "balance") for key in ACCOUNTS])
        if total:
            raise Broken(f"the sum is constant: it is {total} after {self.transfers} transfers")
        self.definite = await self.front.check()
        self.alarms = 0
        for key in CLOCKS:
            await self.ask("clock", key, "stop")
            times = await self.ask("clock", key, "times", 0, 100_000)
            self.alarms += len(times)
            if times != list(range(times[0], times[0] + EVERY_MS * len(times), EVERY_MS)):
                raise Broken(
                    f"each due time once: clock {key} has"
                    f" {[b - a for a, b in itertools.pairwise(times)]}"
                )
            if len(times) < RUNG_MIN:
                raise Broken(f"progress: clock {key} was rung only {len(times)} times")


class _Future:
    def __init__(self, future: asyncio.Future[pb.Reply]) -> None:
        self._future = future

    def push(self, reply: pb.Reply, size: int) -> None:
        if not self._future.done():
            self._future.set_result(reply)


def live(
    seed: int, host: type[ObjectHost] = ObjectHost, dispatcher: type[Dispatcher] = Dispatcher
) -> EffectsWorld:
    """One world from beginning to end. Raises Broken with the seed."""
    loop = VirtualLoop()
    world = EffectsWorld(seed, host, dispatcher)
    modules = (
        "objects.engine",
        "log.shard_service",
        "services.dedup_marks",
        "services.responses",
        "admin.dead_letters",
    )
    with contextlib.ExitStack() as stack:
        stack.callback(loop.close)
        for module in modules:
            stack.enter_context(mock.patch(f"holdfast_node.{module}.boottime", loop.time))
        stack.enter_context(mock.patch("time.time_ns", loop.time_ns))
        stack.enter_context(mock.patch("os.urandom", world.chance.randbytes))
        stack.enter_context(mock.patch("holdfast_cluster.routing.dispatch.RemotePipe", Pipe))
        for module in ("holdfast_cluster.routing.dispatch", "holdfast_cluster.routing.pending"):
            stack.enter_context(mock.patch(f"{module}.random", world.front.chance))
        for module in ("holdfast.client.session", "holdfast.client.retries"):
            stack.enter_context(mock.patch(f"{module}.random", world.front.chance))
        stack.enter_context(
            mock.patch("holdfast.client.session.open_client_channel", world.front.channel)
        )
        stack.enter_context(mock.patch("holdfast.client.forks.opened"))
        stack.enter_context(mock.patch("random.Random", lambda *given: _seeded(world, *given)))
        try:
            loop.run_until_complete(world.live())
        except Exception as error:
            raise Broken(
                f"seed {seed}: {_first(error)!r}; replay: python -m tests.sim effects {seed}"
            ) from error
        finally:
            for task in asyncio.all_tasks(loop):
                task.cancel()
    return world


_Random = random.Random


def _seeded(world: EffectsWorld, *given: Any) -> random.Random:
    return _Random(*given) if given else _Random(world.chance.random())


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
