"""A TCP proxy that can stop passing bytes on in one direction. The connection still looks whole, as
in a broken network.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial


class FaultProxy:
    """Listens at ports of 127.0.0.1 and connects each of them to another port."""

    def __init__(self, ports: dict[int, int]) -> None:
        self._ports = ports
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._passes = {"inward": asyncio.Event(), "outward": asyncio.Event()}
        self.mend()

    async def start(self) -> None:
        for port, target in self._ports.items():
            self._servers.append(
                await asyncio.start_server(partial(self._accept, target), "127.0.0.1", port)
            )

    def cut(self, direction: str) -> None:
        """Stop passing bytes on in this direction, `inward` (to the target) or `outward`."""
        self._passes[direction].clear()

    def mend(self) -> None:
        """Pass everything on again, also the bytes that were held back."""
        for event in self._passes.values():
            event.set()

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(
        self, target: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", target)
        except OSError:
            writer.close()
            self._tasks.discard(task)
            return
        try:
            await asyncio.gather(
                self._pass(reader, there_writer, self._passes["inward"]),
                self._pass(there_reader, writer, self._passes["outward"]),
            )
        except (OSError, RuntimeError, asyncio.CancelledError):
            pass  # uvloop raises RuntimeError if the other side was closed meanwhile
        finally:
            self._tasks.discard(task)
            for each in (writer, there_writer):
                with contextlib.suppress(OSError, RuntimeError):
                    each.close()

    @staticmethod
    async def _pass(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passes: asyncio.Event
    ) -> None:
        while data := await reader.read(1 << 16):
            await passes.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError  # one side has ended, so the other side must end too
