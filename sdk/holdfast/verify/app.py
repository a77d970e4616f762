"""The objects that `holdfast verify` calls."""

from __future__ import annotations

from holdfast import App, DurableObject

app = App()


@app.kind("holdfast.verify.register")
class Register(DurableObject):
    """One number."""

    async def read(self) -> int:
        return self.storage.get("n", int, default=0)

    async def write(self, value: int) -> None:
        self.storage.put("n", value)

    async def swap(self, expected: int, value: int) -> bool:
        """Write `value` if the number is `expected`; whether it was."""
        if self.storage.get("n", int, default=0) != expected:
            return False
        self.storage.put("n", value)
        return True


@app.kind("holdfast.verify.counter")
class Counter(DurableObject):
    """Counts."""

    async def increment(self) -> int:
        n = self.storage.get("n", int, default=0) + 1
        self.storage.put("n", n)
        return n

    async def value(self) -> int:
        return self.storage.get("n", int, default=0)


@app.kind("holdfast.verify.journal")
class Journal(DurableObject):
    """A list that only grows."""

    async def append(self, element: str) -> int:
        """Append an element; its place."""
        place = self.storage.get("length", int, default=0)
        self.storage.put(f"e{place:08d}", element)
        self.storage.put("length", place + 1)
        return place

    async def elements(self, start: int = 0, limit: int = 1000) -> list[str]:
        """The elements from a place on."""
        return list(self.storage.list("e", start=f"e{start:08d}", limit=limit).values())
