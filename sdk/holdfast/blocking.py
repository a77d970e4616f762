"""The blocking twin of the client, for scripts and threads.

It runs an event loop on a thread of its own, once for the whole process: gRPC's asyncio side wants one loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from holdfast.client import TIMEOUT_S, Client, Stub

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def _background_loop() -> asyncio.AbstractEventLoop:
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="holdfast client", daemon=True).start()
        return _loop


class BlockingClient:
    """As `holdfast.Client`, but calls return results instead of awaitables. Safe to use from several threads."""

    def __init__(self, *endpoints: str, timeout: float = TIMEOUT_S) -> None:
        self._client = Client(*endpoints, timeout=timeout)
        self._loop = _background_loop()
        self._wait(self._client.__aenter__())

    def __enter__(self) -> BlockingClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._wait(self._client.close())

    def get(
        self,
        kind: type[T] | str,
        key: str,
        *,
        timeout: float | None = None,
        request_id: bytes | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Any:
        """A stub of one object: `client.get(Counter, "a").increment(by=2)` returns the number."""
        return _BlockingStub(self, cast(Stub, self._client.get(kind, key, timeout=timeout, request_id=request_id, metadata=metadata)))

    def _wait(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


class _BlockingStub:
    __slots__ = ("_client", "_stub")

    def __init__(self, client: BlockingClient, stub: Stub) -> None:
        self._client = client
        self._stub = stub

    def __getattr__(self, method: str) -> Any:
        target = getattr(self._stub, method)
        return lambda *positional, **named: self._client._wait(target(*positional, **named))


def connect_blocking(*endpoints: str, timeout: float = TIMEOUT_S) -> BlockingClient:
    """A blocking client: `with holdfast.connect_blocking("localhost:7400") as client: ...`."""
    return BlockingClient(*endpoints, timeout=timeout)
