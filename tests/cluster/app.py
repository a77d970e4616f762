import asyncio

from holdfast import App, DurableObject, Rejected

app = App()


@app.kind
class Counter(DurableObject):
    async def increment(self, by: int = 1) -> int:
        if by < 0:
            raise Rejected("by must not be negative", by=by)
        n = self.storage.get("n", int, default=0) + by
        self.storage.put("n", n)
        return n

    async def value(self) -> int:
        return self.storage.get("n", int, default=0)

    async def wait_and_increment(self, seconds: float, limit: float) -> int:
        """Waits with asyncio's own tools, which must take the turn for the task it runs in."""
        async with asyncio.timeout(limit), asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(seconds))
            await asyncio.sleep(0)
        return await self.increment()

    async def fail_half_way(self) -> None:
        await self.increment()
        await asyncio.sleep(0.01)
        raise RuntimeError("half-way")

    async def call_back(self, other: str) -> int:
        return int(await self.objects.get(Counter, other).call_back(self.key))
