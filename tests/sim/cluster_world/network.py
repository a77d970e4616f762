"""The network between machines: connections whose bytes stay in order, and stand still while a way
is cut.

A cut is one way, from a machine to another. What is under way then arrives when it is mended, as
TCP sends again. A process that ends has its connections reset; one whose machine lost power says
nothing, and what reaches it later is answered by a reset.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Any

from .loop import PROCESS, VirtualLoop
from .machine import Machine, Process

_HIGH_BYTES = 256 << 10
_LOW_BYTES = 64 << 10
_TRY_AGAIN_S = 0.3
_KEEPALIVE_S = 7.0
"""When a connection ends, at the latest, whose other end is gone without a word."""


class Network:
    """`connections` are those that are open. Delays are seconds."""

    def __init__(self, loop: VirtualLoop, chance: random.Random) -> None:
        self.loop = loop
        self.chance = chance
        self.machines: dict[str, Machine] = {}
        self.cuts: dict[tuple[str, str], int] = {}
        self.delay_s = chance.choice((0.0005, 0.004))
        self.lag_until: dict[tuple[str, str], float] = {}
        self.connections: dict[Connection, None] = {}
        self._stuck: dict[tuple[str, str], list[_Way]] = {}
        self.listeners: dict[tuple[str, int], tuple[Process, Any]] = {}
        self._port = 20_000

    # -- ways

    def cut(self, ways: list[tuple[str, str]]) -> None:
        for way in ways:
            self.cuts[way] = self.cuts.get(way, 0) + 1

    def mend(self, ways: list[tuple[str, str]]) -> None:
        for way in ways:
            left = self.cuts.get(way, 0) - 1
            if left > 0:
                self.cuts[way] = left
                continue
            self.cuts.pop(way, None)
            for stuck in self._stuck.pop(way, []):
                self.loop.world_later(self.delay(way), stuck.flow)

    def mend_all(self) -> None:
        for way in list(self.cuts):
            self.cuts[way] = 1
            self.mend([way])
        self.lag_until.clear()

    def delay(self, way: tuple[str, str]) -> float:
        if way[0] == way[1]:
            return 0.00005
        late = self.lag_until.get(way, 0.0)
        seconds = self.delay_s * (0.5 + self.chance.random())
        if late > self.loop.now:
            return seconds + min(late - self.loop.now, 0.2 * self.chance.random())
        return seconds

    def is_cut(self, way: tuple[str, str]) -> bool:
        return way in self.cuts

    def wait_for(self, way: tuple[str, str], stuck: _Way) -> None:
        self._stuck.setdefault(way, []).append(stuck)

    # -- processes

    def process_ended(self, process: Process) -> None:
        for address, (holder, _) in list(self.listeners.items()):
            if holder is process:
                del self.listeners[address]
        for connection in list(self.connections):
            for end in connection.ends:
                if end.process is process:
                    end.gone()

    def lose_one(self) -> None:
        """Some connection is reset on both sides."""
        if self.connections:
            connection = self.chance.choice(list(self.connections))
            for end in connection.ends:
                end.reset("the connection was lost")

    # -- streams

    def port(self) -> int:
        self._port += 1
        return self._port

    def listen(self, factory: Any, host: str, port: int) -> _Listening:
        process = PROCESS.get()
        assert process is not None
        port = port or self.port()
        self.listeners[host, port] = process, factory
        return _Listening(self, host, port)

    async def reach(self, host: str) -> None:
        """Wait until a machine can be reached there and back."""
        process = PROCESS.get()
        assert process is not None
        here = process.machine.name
        while True:
            await asyncio.sleep(self.delay((here, host)) + self.delay((host, here)))
            machine = self.machines[host]
            if not self.is_cut((here, host)) and not self.is_cut((host, here)) and machine.up:
                return
            await asyncio.sleep(_TRY_AGAIN_S)

    async def connect(self, factory: Any, host: str, port: int) -> tuple[Any, Any]:
        process = PROCESS.get()
        assert process is not None
        await self.reach(host)
        found = self.listeners.get((host, port))
        if found is None:
            raise ConnectionRefusedError(f"nobody listens at {host}:{port}")
        server, server_factory = found
        connection = Connection(self, process, server)
        transports = [_Transport(end) for end in connection.ends]
        protocol = factory()
        transports[0].begin(protocol)
        self.loop.post(server, lambda: transports[1].begin(server_factory()))
        return transports[0], protocol


class _Listening:
    """Implements what is used of asyncio.Server."""

    def __init__(self, network: Network, host: str, port: int) -> None:
        self._network = network
        self._address = host, port
        self.sockets = [self]

    def getsockname(self) -> tuple[str, int]:
        return self._address

    def close(self) -> None:
        self._network.listeners.pop(self._address, None)


class Connection:
    """Two ends, and a way for each direction."""

    def __init__(self, network: Network, one: Process, other: Process) -> None:
        self.network = network
        there = _Way(network, one.machine.name, other.machine.name)
        back = _Way(network, other.machine.name, one.machine.name)
        self.ends = (End(self, one, there, back), End(self, other, back, there))
        self.ends[0].other, self.ends[1].other = self.ends[1], self.ends[0]
        network.connections[self] = None


class _Way:
    """What is under way in one direction, in order."""

    def __init__(self, network: Network, source: str, target: str) -> None:
        self._network = network
        self.way = source, target
        self.queue: deque[tuple[float, Callable[[], None]]] = deque()
        self._last = 0.0

    def send(self, arrive: Callable[[], None]) -> None:
        network = self._network
        at = self._last = max(self._last, network.loop.now + network.delay(self.way))
        self.queue.append((at, arrive))
        if len(self.queue) == 1:
            network.loop.world_later(at - network.loop.now, self.flow)

    def flow(self) -> None:
        """What has come so far arrives."""
        network = self._network
        queue = self.queue
        while queue:
            if network.is_cut(self.way):
                network.wait_for(self.way, self)
                return
            at = queue[0][0]
            if at > network.loop.now:
                network.loop.world_later(at - network.loop.now, self.flow)
                return
            queue.popleft()[1]()


class End:
    """One end of a connection. `lost` is called once, in its process, with why the connection is
    over."""

    other: End

    def __init__(self, connection: Connection, process: Process, out: _Way, back: _Way) -> None:
        self.connection = connection
        self.process = process
        self.out = out
        self.back = back
        self.over = False
        self.lost: Callable[[str], None] = lambda why: None
        self.transport: _Transport | None = None

    def send(self, arrive: Callable[[], None]) -> None:
        """Have something happen at the other end, in its process, behind what was sent before."""
        other = self.other

        def there() -> None:
            if other.process.ended:
                if other.process.machine.up:
                    other.out.send(lambda: self.reset("connection reset by peer"))
                return
            if other.over:
                return
            other.process.loop.post(other.process, arrive)

        if not self.over:
            self.out.send(there)

    def end(self, why: str) -> None:
        """Close this end: the other hears of it behind what was sent."""
        if not self.over:
            self.out.send(lambda: self.other.reset("it was closed by the other side"))
            self._over(why)

    def abort(self, why: str) -> None:
        """Close it, and lose what is under way from here."""
        if not self.over:
            self.end(why)

    def reset(self, why: str) -> None:
        if not self.over:
            self._over(why)

    def gone(self) -> None:
        """The process has ended. A machine without power does not say so: the other end only
        notices that it hears nothing."""
        if not self.over:
            self.over = True
            self.connection.network.connections.pop(self.connection, None)
            if self.process.machine.up:
                self.out.send(lambda: self.other.reset("connection reset by peer"))
            else:
                self.process.loop.world_later(_KEEPALIVE_S, self.other.reset, "keepalive timed out")

    def _over(self, why: str) -> None:
        self.over = True
        self.connection.network.connections.pop(self.connection, None)
        self.process.loop.post(self.process, self.lost, why)


class _Transport(asyncio.Transport):
    """A socket, as asyncio's protocols see it."""

    def __init__(self, end: End) -> None:
        super().__init__()
        self._end = end
        end.lost = self._lost
        end.transport = self
        self._protocol: Any = None
        self._coming: deque[bytes] = deque()
        self._reading = True
        self._closing = False
        self._under_way = 0
        self._full = False
        self._ended: str | None = None

    def begin(self, protocol: Any) -> None:
        self._protocol = protocol
        protocol.connection_made(self)
        self._hand_on()
        if self._ended is not None:
            protocol.connection_lost(None)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return (self._end.other.process.machine.name, 0) if name == "peername" else default

    def write(self, data: Any) -> None:
        if self._closing:
            return
        data = bytes(data)
        size = len(data)
        self._under_way += size
        end = self._end

        def arrive() -> None:
            end.process.loop.post(end.process, self._arrived, size)
            assert end.other.transport is not None
            end.other.transport._received(data)

        self._end.send(arrive)
        if self._under_way > _HIGH_BYTES and not self._full:
            self._full = True
            self._protocol.pause_writing()

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(parts))

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._end.end("")

    def abort(self) -> None:
        if not self._closing:
            self._closing = True
            self._end.abort("")

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._hand_on()

    def _arrived(self, size: int) -> None:
        self._under_way -= size
        if self._full and self._under_way < _LOW_BYTES:
            self._full = False
            self._protocol.resume_writing()

    def _received(self, data: bytes) -> None:
        self._coming.append(data)
        if self._protocol is not None:
            self._hand_on()

    def _hand_on(self) -> None:
        while self._coming and self._reading and not self._closing:
            data = memoryview(self._coming.popleft())
            while data and not self._closing:
                buffer = self._protocol.get_buffer(-1)
                size = min(len(buffer), len(data))
                buffer[:size] = data[:size]
                data = data[size:]
                self._protocol.buffer_updated(size)
                if not self._reading and data:
                    self._coming.appendleft(bytes(data))
                    return

    def _lost(self, why: str) -> None:
        self._closing = True
        self._ended = why
        if self._protocol is not None:
            self._protocol.connection_lost(ConnectionResetError(why) if why else None)
