"""The app that `holdfast bench` calls."""

from __future__ import annotations

from holdfast import App, DurableObject

app = App()


@app.kind("holdfast.bench")
class BenchCounter(DurableObject):
    """A durable counter."""

    async def increment(self, by: int = 1) -> int:
        """Add `by` durably, and return the count."""
        n = self.storage.get("n", int, default=0) + by
        self.storage.put("n", n)
        return n

    async def value(self) -> int:
        """Return the count."""
        return self.storage.get("n", int, default=0)

    async def notify_many(self, receivers: list[str]) -> None:
        """Notify each of these receivers once."""
        for receiver in receivers:
            self.notify(BenchCounter, receiver).notified()

    async def notified(self) -> None:
        """Count a notification, durably."""
        self.storage.put("notified", self.storage.get("notified", int, default=0) + 1)
