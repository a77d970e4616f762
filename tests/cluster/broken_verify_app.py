"""What `holdfast verify` must find: objects of the same names that forget and repeat themselves."""

from __future__ import annotations

from holdfast import App, DurableObject
from holdfast.verify.app import Journal as GoodJournal

app = App()


@app.kind("holdfast.verify.register")
class Register(DurableObject):
    """Now and then it answers with what it was before."""

    def __init__(self) -> None:
        self.calls = 0
        self.before = 0

    async def read(self) -> int:
        self.calls += 1
        return self.before if self.calls % 5 == 0 else self.storage.get("n", int, default=0)

    async def write(self, value: int) -> None:
        self.before = self.storage.get("n", int, default=0)
        self.storage.put("n", value)

    async def swap(self, expected: int, value: int) -> bool:
        if self.storage.get("n", int, default=0) != expected:
            return False
        await self.write(value)
        return True


@app.kind("holdfast.verify.counter")
class Counter(DurableObject):
    """Every tenth increment is acknowledged and not stored."""

    async def increment(self) -> int:
        n = self.storage.get("n", int, default=0) + 1
        if n % 10:
            self.storage.put("n", n)
        else:
            self.storage.put("n", n - 1)
        return n

    async def value(self) -> int:
        return self.storage.get("n", int, default=0)


@app.kind("holdfast.verify.journal")
class Journal(GoodJournal):
    """Every tenth element is stored twice."""

    async def append(self, element: str) -> int:
        place = await super().append(element)
        if place % 10 == 9:
            await super().append(element)
        return place
