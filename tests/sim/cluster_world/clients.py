"""Callers: they append to lists and read them, ask again what was not answered, and now and then
what was."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from holdfast import codec
from holdfast.ids import RequestIds
from holdfast.v1 import objects_pb2 as pb

from .app import KIND

if TYPE_CHECKING:
    from .world import World

KEYS = [f"l{i}" for i in range(6)]
_REFUSALS = (pb.CODE_INVALID_ARGUMENT, pb.CODE_INTERNAL, pb.CODE_APPLICATION)
_TIMEOUT_S = 2.0
_PATIENCE_S = 0.5
_ATTEMPTS_MAX = 6


class _Future:
    """Implements `holdfast_cluster.routing.pending.Origin`."""

    def __init__(self, future: asyncio.Future[pb.Reply]) -> None:
        self._future = future

    def push(self, reply: pb.Reply, size: int) -> None:
        if not self._future.done():
            self._future.set_result(reply)


class Clients:
    """All callers of a world; their clock is true time."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._ids = RequestIds()
        self._elements = 0
        self._later: dict[asyncio.Task[Any], None] = {}

    async def work(self) -> None:
        """One caller, until the world is healed."""
        world = self._world
        while world.working:
            await asyncio.sleep(world.chance.expovariate(1 / 0.06))
            key = world.chance.choice(KEYS)
            if world.chance.random() < 0.65:
                await self.append(key)
            else:
                await self.read(key)

    async def end(self, callers: list[asyncio.Task[None]]) -> None:
        """Wait until everybody has been answered, or has given up."""
        await asyncio.gather(*callers)
        await asyncio.gather(*self._later)

    async def append(self, key: str, attempts: int = _ATTEMPTS_MAX) -> bool:
        """Append an element of its own; whether it is known to be there."""
        world = self._world
        self._elements += 1
        element = f"x{self._elements}"
        operation = world.history.begin(key, world.loop.now, element)
        request_id = self._ids.next()
        reply = await self._ask(key, "append", (element,), request_id, attempts)
        if reply is None:
            return False
        if not reply.result:
            operation.impossible = reply.error.definite
            return False
        operation.answered_at = world.loop.now
        operation.length = codec.decode(reply.result) + 1
        if world.chance.random() < 0.1:
            again = asyncio.create_task(self._again(key, element, request_id, reply.result))
            self._later[again] = None
            again.add_done_callback(lambda task: self._later.pop(task, None))
        return True

    async def read(self, key: str, attempts: int = _ATTEMPTS_MAX) -> list[str] | None:
        """Read a list."""
        world = self._world
        operation = world.history.begin(key, world.loop.now)
        reply = await self._ask(key, "read", (), self._ids.next(), attempts)
        if reply is None or not reply.result:
            return None
        elements: list[str] = codec.decode(reply.result)
        operation.elements = elements
        operation.answered_at = world.loop.now
        operation.length = len(elements)
        return elements

    async def _again(self, key: str, element: str, request_id: bytes, before: bytes) -> None:
        """A caller that did not get its answer asks again, much later. Any node must give the same
        answer."""
        world = self._world
        await asyncio.sleep(world.chance.expovariate(1 / 3.0))
        reply = await self._ask(key, "append", (element,), request_id, 2, attempt=1)
        if reply is not None and reply.result and reply.result != before:
            world.failed(
                f"once: {element} was answered {codec.decode(before)}, and"
                f" {codec.decode(reply.result)} when asked again"
            )

    async def _ask(
        self,
        key: str,
        method: str,
        arguments: tuple[Any, ...],
        request_id: bytes,
        attempts: int,
        attempt: int = 0,
    ) -> pb.Reply | None:
        """Call until there is a result, or an error that says that there never will be one. None
        when neither came."""
        world = self._world
        reply: pb.Reply | None = None
        unknown = attempt > 0
        for _ in range(attempts):
            answer: asyncio.Future[pb.Reply] = asyncio.get_running_loop().create_future()
            call = pb.Call(
                kind=KIND,
                key=key,
                method=method,
                arguments=codec.encode(arguments),
                request_id=request_id,
                attempt=attempt,
                timeout_ms=int(_TIMEOUT_S * 1000),
            )
            world.chance.choice(world.gateways).submit(call, _Future(answer))
            try:
                reply = await asyncio.wait_for(answer, _TIMEOUT_S + _PATIENCE_S)
            except TimeoutError:
                reply = None
                unknown = True
            if reply is not None:
                if reply.result:
                    return reply
                if reply.error.code in _REFUSALS:
                    world.failed(
                        f"what is right is not refused: {key}.{method} was answered"
                        f" {reply.error.message}"
                    )
                if reply.error.definite and not unknown and not reply.error.retryable:
                    return reply
                unknown = unknown or not reply.error.definite
            attempt += 1
            await asyncio.sleep(0.05 * world.chance.random())
        if reply is not None and reply.error.definite and not unknown:
            return reply
        return None
