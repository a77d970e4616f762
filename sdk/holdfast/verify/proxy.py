"""A TCP proxy that can stop to pass on what goes one way: to a connection that looks whole, like a broken network's."""

from __future__ import annotations

import asyncio
import contextlib


class FaultProxy:
    """Listens at a port of 127.0.0.1 and connects to another. `inward` and `outward` say whether bytes pass in that direction."""

    def __init__(self, port: int, target: int) -> None:
        self._port = port
        self._target = target
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._passes = {"inward": asyncio.Event(), "outward": asyncio.Event()}
        self.mend()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)

    def cut(self, direction: str) -> None:
        """Pass nothing on in this direction, `inward` (to the target) or `outward`."""
        self._passes[direction].clear()

    def mend(self) -> None:
        """Pass everything on again, also what was held back."""
        for event in self._passes.values():
            event.set()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            self._tasks.discard(task)
            return
        try:
            await asyncio.gather(
                self._pass(reader, there_writer, self._passes["inward"]),
                self._pass(there_reader, writer, self._passes["outward"]),
            )
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            for each in (writer, there_writer):
                with contextlib.suppress(OSError, RuntimeError):
                    each.close()

    @staticmethod
    async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passes: asyncio.Event) -> None:
        while data := await reader.read(1 << 16):
            await passes.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError  # one side has ended it: so ends the other
