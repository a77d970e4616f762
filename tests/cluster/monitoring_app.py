"""Does a little of everything that metrics and traces tell of."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import holdfast
from holdfast import App, DurableObject

app = App()


@app.kind("Shop", notify_attempts=1)
class Shop(DurableObject):
    async def sell(self, n: int) -> int:
        sold = (self.storage.get("sold") or 0) + n
        self.storage.put("sold", sold)
        self.notify("Ledger", self.key).booked(n)
        return sold

    async def think(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def sold(self) -> int:
        return self.storage.get("sold") or 0

    def fail(self) -> None:
        self.storage.put("sold", -1)
        raise RuntimeError("out of tea")

    async def send_nonsense(self) -> None:
        self.notify("Ledger", self.key).refused()

    def remind(self, seconds: float) -> None:
        self.set_alarm(timedelta(seconds=seconds), "reminder")

    def on_alarm(self, alarm: holdfast.Alarm) -> None:
        self.storage.put("reminded", True)

    def notify_later(self, seconds: float) -> None:
        self.notify("Ledger", self.key, delay=timedelta(seconds=seconds)).booked(1000)

    def put_many(self, rows: int) -> None:
        for i in range(rows):
            self.storage.put(f"row{i:05}", i)

    def store_large(self, size: int) -> None:
        self.storage.put("large", "x" * size)

    def large(self) -> str:
        return str(self.storage.get("large"))

    def who(self) -> str:
        return self.caller

    async def who_told(self) -> str:
        who: str = await self.objects.get("Ledger", self.key).who()
        return who

    async def audit(self) -> int:
        total: int = await self.objects.get("Ledger", self.key).total()
        return total


@app.kind("Ledger")
class Ledger(DurableObject):
    def booked(self, n: int) -> None:
        self.storage.put("total", (self.storage.get("total") or 0) + n)

    def refused(self) -> None:
        raise holdfast.Rejected("never")

    def who(self) -> str:
        return self.caller

    def total(self) -> int:
        return self.storage.get("total") or 0
