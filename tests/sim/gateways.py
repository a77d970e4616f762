"""The way of a call from a client to a node in the world of effects.py. It runs the client, gateway
service and dispatcher of production. Their connections delay messages, and lose them when they
break.

Callers append elements to journals, with short deadlines, and write down what they were told:
acknowledged, certainly without effect, or unknown. In the end an element that was acknowledged is
there, one that certainly had no effect is not, and none is there twice. Some use the client. Others
call a gateway as any program with a gRPC client can. They lose patience, send again through another
gateway, and believe each answer.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter as Tally
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
from google.rpc.status_pb2 import Status
from holdfast import codec
from holdfast.client.blocking import ATTEMPT_METADATA
from holdfast.client.client import Client
from holdfast.errors import HoldfastError
from holdfast.ids import RequestIds
from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.placement.model import Assignment, ClusterSettings, Member, Versioned, View
from holdfast_cluster.routing.dispatch import Dispatcher
from holdfast_cluster.routing.pending import DispatchLimits
from holdfast_gateway.edges.grpc import ObjectsService
from holdfast_node.log.shards import Shard
from holdfast_node.process.peer import _NOT_SERVING

from .verdicts import check_verdicts

if TYPE_CHECKING:
    from .effects import EffectsWorld, SimNode

GATEWAYS = 2
CLIENTS = 2
WORKERS = 2  # of each client
JOURNALS = ["j0", "j1", "j2"]
KIND = "holdfast.verify.journal"
LIMITS = DispatchLimits(held_max=12)
_VIEW_S = 0.03


class Front:
    """All gateways and their clients. It draws from a source of its own, so that the rest of a
    world is as it would be without it."""

    def __init__(self, world: EffectsWorld, seed: int, dispatcher: type[Dispatcher]) -> None:
        self.world = world
        self.chance = random.Random(seed ^ 0x5EED)
        self.dispatcher = dispatcher
        self.connections: set[Connection] = set()
        self.told: dict[str, dict[str, bool | None]] = {key: {} for key in JOURNALS}
        self.definite = 0
        self._ids = RequestIds()

    def begin(self) -> None:
        self.gateways = [Gateway(self) for _ in range(GATEWAYS)]

    def delay(self) -> float:
        return self.chance.expovariate(1 / 0.002)

    def channel(self, endpoint: str, _: object) -> Any:
        """What a client opens; see holdfast.channels.open_client_channel."""
        return _Channel(self.gateways[int(endpoint.rpartition(":")[2]) - 1])

    def died(self, node: SimNode) -> None:
        """A node has crashed: connections to it break."""
        for gateway in self.gateways:
            gateway.lost(node)

    async def call(self) -> None:
        """Make calls, and trouble, until the world is to heal."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._trouble())
            for number in range(CLIENTS):
                group.create_task(self._client(number))
                group.create_task(self._foreign(f"f{number}"))

    async def _client(self, number: int) -> None:
        endpoints = [f"gateway:{i + 1}" for i in range(GATEWAYS)]
        async with Client(*endpoints) as client, asyncio.TaskGroup() as group:
            for worker in range(WORKERS):
                group.create_task(self._append(client, f"{number}.{worker}"))

    async def _append(self, client: Client, name: str) -> None:
        made = 0
        while self.world.working:
            key, element = self.chance.choice(JOURNALS), f"{name}.{made}"
            made += 1
            told = self.told[key]
            told[element] = None
            try:
                stub: Any = client.get(KIND, key, timeout=self.chance.choice((0.02, 0.2, 1.0, 3.0)))
                await stub.append(element)
                told[element] = True
            except HoldfastError as error:
                if error.definite:
                    told[element] = False
                    self.definite += 1
            await asyncio.sleep(self.chance.expovariate(1 / 0.1))

    async def _foreign(self, name: str) -> None:
        made = 0
        while self.world.working:
            key, element = self.chance.choice(JOURNALS), f"{name}.{made}"
            made += 1
            told = self.told[key]
            told[element] = None
            request = pb.CallRequest(
                kind=KIND,
                key=key,
                method="append",
                msgpack=codec.encode((element,)),
                request_id=self._ids.next(),
            )
            for attempt in range(self.chance.randint(1, 4)):
                call = _Unary(attempt, self.chance.choice((0.05, 0.5, 1.5)))
                gateway = self.chance.choice(self.gateways)
                answering = asyncio.create_task(gateway.service.call(request, call))
                # A caller that loses patience hangs up. The gateway's part of the call does not
                # hear of that in time.
                await asyncio.wait([answering], timeout=self.chance.choice((0.01, 0.3, 2.0)))
                if answering.done() and answering.exception() is None:
                    told[element] = True
                elif answering.done() and call.definite:
                    assert told[element] is None, f"definite: {element} was acknowledged before"
                    told[element] = False
                    self.definite += 1
                answering.add_done_callback(lambda done: done.cancelled() or done.exception())
                if told[element] is not None:
                    break
            await asyncio.sleep(self.chance.expovariate(1 / 0.1))

    async def _trouble(self) -> None:
        while self.world.working:
            await asyncio.sleep(self.chance.expovariate(1 / 0.4))
            what = self.chance.random()
            if what < 0.5 and self.connections:
                self.chance.choice(sorted(self.connections, key=lambda each: each.number)).cut()
            elif what < 0.75:
                i = self.chance.randrange(GATEWAYS)
                await self.gateways[i].die()
                self.gateways[i] = Gateway(self)

    async def check(self) -> int:
        """Compare what was told with what is there; the number of definite errors.
        Raises Broken."""
        for key, told in self.told.items():
            there = await self.world.ask("journal", key, "elements", 0, 1_000_000)
            check_verdicts(key, told, Tally(there))
        for gateway in self.gateways:
            await gateway.die()
        return self.definite


class Connection:
    """A connection: messages arrive in their order. When it is cut, what was on its way arrives up
    to some point."""

    _numbers = 0

    def __init__(self, front: Front) -> None:
        self._front = front
        self._loop = asyncio.get_running_loop()
        self._last: dict[int, float] = {}  # by direction: when the last message arrives
        self._on_way: dict[int, list[asyncio.TimerHandle]] = {0: [], 1: []}
        self.up = True
        Connection._numbers += 1
        self.number = Connection._numbers
        self.broken: list[Callable[[], None]] = []
        front.connections.add(self)

    def send(self, direction: int, arrive: Callable[..., None], *given: Any) -> None:
        if not self.up:
            return
        at = self._last[direction] = max(
            self._last.get(direction, 0.0), self._loop.time() + self._front.delay()
        )
        on_way = self._on_way[direction]
        on_way[:] = [timer for timer in on_way if timer.when() > self._loop.time()]
        on_way.append(self._loop.call_at(at, arrive, *given))

    def cut(self) -> None:
        if not self.up:
            return
        self.up = False
        self._front.connections.discard(self)
        for on_way in self._on_way.values():
            for timer in on_way[self._front.chance.randint(0, len(on_way)) :]:
                timer.cancel()
        latest = max(self._last.values(), default=0.0)
        for tell in self.broken:
            self._loop.call_at(max(latest, self._loop.time()) + self._front.delay(), tell)


class _Watcher:
    def __init__(self) -> None:
        self.view = View()
        self.listeners: list[Callable[[View], None]] = []


class Gateway:
    """One life of a gateway."""

    def __init__(self, front: Front) -> None:
        self.front = front
        self.up = True
        self.watcher = _Watcher()
        self.pipes: list[Pipe] = []
        self.dispatcher = front.dispatcher(self.watcher, LIMITS, certificates=self)  # type: ignore[arg-type]
        self.service = ObjectsService(self.dispatcher)
        self._seen: tuple[Any, ...] = ()
        self._look()

    def _look(self) -> None:
        """Follow what etcd says, a little late."""
        if not self.up:
            return
        world = self.front.world
        nodes = [node for node in world.nodes if node.up]
        owned = {truth.number: truth for truth in world.truths if truth.owner is not None}
        seen = (
            tuple((node.name, node.life) for node in nodes),
            tuple((n, truth.epoch) for n, truth in owned.items()),
        )
        if seen != self._seen:
            self._seen = seen
            members = {
                node.name: Member(node.name, "a:1", node.life, "h", streams="a:2") for node in nodes
            }
            assignments = {
                number: Versioned(
                    Assignment(truth.epoch, truth.owner.name, truth.owner.life, ()), 1
                )
                for number, truth in owned.items()
                if truth.owner is not None
            }
            settings = ClusterSettings(shards=len(world.truths))
            self.watcher.view = View(self.watcher.view.revision + 1, settings, members, assignments)
            for listener in self.watcher.listeners:
                listener(self.watcher.view)
        asyncio.get_running_loop().call_later(
            _VIEW_S * (0.5 + self.front.chance.random()), self._look
        )

    def lost(self, node: SimNode) -> None:
        for pipe in self.pipes:
            if pipe.node is node:
                pipe.cut()

    async def die(self) -> None:
        """Everything that it knows is gone; what it has sent goes on."""
        self.up = False
        for connection in sorted(self.front.connections, key=lambda each: each.number):
            if getattr(connection, "gateway", None) is self:
                connection.cut()
        for pipe in self.pipes:
            pipe.cut()
        await self.dispatcher.close()


class Pipe:
    """A gateway's pipe to a node. Takes the place of `holdfast_cluster.routing.pipe.RemotePipe`."""

    def __init__(self, end: Any, member: Member, gateway: Any) -> None:
        self._end = end
        self._gateway: Gateway = gateway
        self._front = self._gateway.front
        self._loop = asyncio.get_running_loop()
        self._retired = False
        self.up = False
        self.node = next(
            (
                n
                for n in self._front.world.nodes
                if n.name == member.id and n.life == member.incarnation
            ),
            None,
        )
        self._gateway.pipes.append(self)
        self._loop.call_later(self._front.delay(), self._connect)

    def _connect(self) -> None:
        if self._retired or not self._gateway.up or self.node is None or not self.node.up:
            return
        self._connection = connection = Connection(self._front)
        self._port = _Port(self, connection)
        connection.broken.append(self._broke)
        self.up = True
        self._end.on_pipe_up(self)

    def _broke(self) -> None:
        self.up = False
        if self._gateway.up:
            self._end.on_pipe_down(self)
            self._loop.call_later(0.05 + self._front.delay(), self._connect)

    def send(self, call: pb.Call, size: int) -> None:
        self._connection.send(0, self._arrived, call.SerializeToString(), self._port)

    def _arrived(self, raw: bytes, port: _Port) -> None:
        if self.node is not None and self.node.up:
            self.node.engine.deliver(pb.Call.FromString(raw), port)

    def came_back(self, raw: bytes) -> None:
        if self._gateway.up:
            self._end.on_reply(self, pb.Reply.FromString(raw))

    def cut(self) -> None:
        if self.up:
            self._connection.cut()

    def retire(self) -> None:
        self._retired = True

    async def close(self) -> None:
        self._retired = True


class _Port:
    """The node's end of a pipe. Implements `holdfast_node.objects.activation.ReplyPort` as
    holdfast_node.process.peer does."""

    closed = False

    def __init__(self, pipe: Pipe, connection: Connection) -> None:
        self._pipe = pipe
        self._connection = connection

    def reply(
        self, number: int, result: bytes, error: pb.Error | None, shard: Shard | None
    ) -> None:
        if shard is not None and shard.until <= asyncio.get_running_loop().time():
            error = _NOT_SERVING
        reply = (
            pb.Reply(id=number, result=result)
            if error is None
            else pb.Reply(id=number, error=error)
        )
        self._connection.send(1, self._pipe.came_back, reply.SerializeToString())


class _Channel:
    """Stands in for a client's gRPC channel."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def stream_stream(self, _: str) -> Callable[..., _Session]:
        return lambda metadata: _Session(self._gateway)

    async def close(self) -> None:
        pass


class _Session:
    """A session's stream: the client's call, and the gateway's context (`_Context`)."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()
        self._connection: Connection | None = None
        self._over = False

    async def initial_metadata(self) -> None:
        gateway = self._gateway
        await asyncio.sleep(gateway.front.delay())
        if not gateway.up:
            self._over = True
            return
        self._connection = connection = Connection(gateway.front)
        connection.gateway = gateway  # type: ignore[attr-defined]
        context = _Context(self)
        serving = asyncio.create_task(gateway.service.session(None, context))
        context.ended = serving
        connection.broken += [self._broke, serving.cancel]  # type: ignore[list-item]
        self._context = context

    def done(self) -> bool:
        return self._over

    async def read(self) -> Any:
        frame = _BROKEN if self._over and self._inbox.empty() else await self._inbox.get()
        if frame is _BROKEN:
            metadata = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, metadata, metadata, "cut")
        return frame

    async def write(self, frame: bytes) -> None:
        assert self._connection is not None
        self._connection.send(0, self._context.inbox.put_nowait, frame)
        await asyncio.sleep(0)

    def cancel(self) -> None:
        self._over = True
        if self._connection is not None:
            self._connection.cut()

    def _broke(self) -> None:
        self._over = True
        self._inbox.put_nowait(_BROKEN)


class _Unary:
    """The context of one call of `Objects.Call`."""

    def __init__(self, attempt: int, timeout_s: float) -> None:
        self._attempt = attempt
        self._timeout_s = timeout_s
        self.definite = False

    def time_remaining(self) -> float:
        return self._timeout_s

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [(ATTEMPT_METADATA, str(self._attempt))]

    async def abort(self, code: grpc.StatusCode, message: str, trailing: Any = ()) -> None:
        for _, value in trailing:
            error = pb.Error()
            Status.FromString(value).details[0].Unpack(error)
            self.definite = error.definite
        raise _Aborted(message)


class _Aborted(Exception):
    pass


class _Context:
    def __init__(self, session: _Session) -> None:
        self._session = session
        self.inbox: asyncio.Queue[bytes] = asyncio.Queue()
        self.ended: asyncio.Task[None]

    async def send_initial_metadata(self, _: object) -> None:
        pass

    async def read(self) -> bytes:
        return await self.inbox.get()

    async def write(self, frame: bytes) -> None:
        connection = self._session._connection
        assert connection is not None
        connection.send(1, self._session._inbox.put_nowait, frame)
        await asyncio.sleep(0)


_BROKEN = object()
