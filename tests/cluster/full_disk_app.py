"""Objects that fill a disk."""

from __future__ import annotations

import os

from holdfast import App, DurableObject

app = App()


@app.kind
class Counter(DurableObject):
    async def increment(self, size: int = 0) -> int:
        """Count one more, and store so many bytes beside it that nothing compresses."""
        n = self.storage.get("n", int, default=0) + 1
        self.storage.put("n", n)
        if size:
            self.storage.put(f"row {n}", os.urandom(size))
        return n

    async def value(self) -> int:
        return self.storage.get("n", int, default=0)

    async def rows(self) -> int:
        """How many rows are there beside the count."""
        return sum(1 for _ in self.storage.list("row "))
