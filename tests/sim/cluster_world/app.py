"""The objects of a world."""

from __future__ import annotations

from holdfast import App, DurableObject

app = App()

KIND = "sim.list"


@app.kind(KIND)
class List(DurableObject):
    """A list that only grows."""

    async def append(self, element: str) -> int:
        """Append an element; its place."""
        place = self.storage.get("length", int, default=0)
        self.storage.put(f"e{place:06d}", element)
        self.storage.put("length", place + 1)
        return place

    async def read(self) -> list[str]:
        """All elements."""
        return list(self.storage.list("e").values())
