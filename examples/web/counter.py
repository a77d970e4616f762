"""The app that the other examples call: `holdfast dev examples/web/counter.py`."""

from __future__ import annotations

import asyncio

from holdfast import App, DurableObject

app = App()


@app.kind
class Counter(DurableObject):
    async def increment(self, by: int = 1) -> int:
        n = self.storage.get("n", int, default=0) + by
        self.storage.put("n", n)
        return n

    async def value(self) -> int:
        return self.storage.get("n", int, default=0)

    async def slow_increment(self, seconds: float) -> int:
        await asyncio.sleep(seconds)
        return await self.increment()
