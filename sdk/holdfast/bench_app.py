"""What `holdfast bench` calls."""

from __future__ import annotations

from holdfast import App, DurableObject

app = App()


@app.kind("holdfast.bench")
class BenchCounter(DurableObject):
    """A counter."""

    async def increment(self, by: int = 1) -> int:
        """Add `by` durably."""
        n = self.storage.get("n", int, default=0) + by
        self.storage.put("n", n)
        return n

    async def value(self) -> int:
        """The count."""
        return self.storage.get("n", int, default=0)
