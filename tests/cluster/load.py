"""Increments that go on while something happens to a cluster, and what has to be
there afterwards."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from threading import Event, Thread

import holdfast
from holdfast.client.blocking import BlockingClient
from holdfast.errors import HoldfastError


class Load:
    """Increments from a thread of its own, and which of them were acknowledged, or may have
    happened.

    `arguments`: what `Counter.increment` is called with. `pause_s`: how long each of the keys waits
    between two calls.
    """

    def __init__(
        self,
        gateway: str,
        *arguments: int,
        keys: int = 60,
        pause_s: float = 0.02,
        timeout: float = 30,
    ) -> None:
        self._gateway = gateway
        self._arguments = arguments
        self._keys = keys
        self._pause_s = pause_s
        self._timeout = timeout
        self._stop = Event()
        self.acknowledged: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        """Every error that a caller saw, by its message without numbers."""
        self._thread = Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def count(self) -> int:
        """How many were acknowledged."""
        return sum(self.acknowledged.values())

    def goes_on(self) -> bool:
        """Whether anything is acknowledged within a second."""
        before = self.count
        time.sleep(1)
        return self.count > before

    async def _run(self) -> None:
        async with holdfast.connect(self._gateway, timeout=self._timeout) as client:

            async def increment(key: str) -> None:
                while not self._stop.is_set():
                    try:
                        await client.get("Counter", key).increment(*self._arguments)
                        self.acknowledged[key] += 1
                    except HoldfastError as error:
                        self.errors["".join(c for c in str(error) if not c.isdigit())] += 1
                        if not error.definite:
                            self.unknown[key] += 1
                        await asyncio.sleep(0.2)
                    await asyncio.sleep(self._pause_s)

            await asyncio.gather(*(increment(f"k{i}") for i in range(self._keys)))

    def check(self, gateway: str) -> None:
        """Every acknowledged increment is there, and none that the load did not make."""
        with BlockingClient(gateway, timeout=40) as client:
            for key, count in self.acknowledged.items():
                assert count <= client.get("Counter", key).value() <= count + self.unknown[key], key
