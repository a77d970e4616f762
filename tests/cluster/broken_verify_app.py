"""What `holdfast verify` must find: objects of the same names that forget and repeat themselves."""

from __future__ import annotations

from typing import ClassVar

from holdfast import Alarm, App, DurableObject, Rejected
from holdfast.verify.app import Account as GoodAccount
from holdfast.verify.app import Clock as GoodClock
from holdfast.verify.app import Journal as GoodJournal
from holdfast.verify.app import Station as GoodStation

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
    """Every tenth element is stored twice. Some are kept outside the storage, and their callers
    told that they were refused."""

    kept: ClassVar[dict[str, list[str]]] = {}

    async def append(self, element: str) -> int:
        place = await super().append(element)
        if place % 10 == 9:
            await super().append(element)
        if element.endswith("7"):
            Journal.kept.setdefault(self.key, []).append(element)
            raise Rejected("it is there all the same")
        return place

    async def elements(self, start: int = 0, limit: int = 1000) -> list[str]:
        stored = await super().elements(start, limit)
        return (
            stored
            or Journal.kept.get(self.key, [])[start - self.storage.get("length", int, default=0) :]
        )


@app.kind("holdfast.verify.station")
class Station(GoodStation):
    """Every tenth hop of a token is made twice."""

    async def arrive(self, token: str, hop: int, ring: list[str]) -> None:
        await super().arrive(token, hop, ring)
        if hop == 9:
            self._pass_on(token, hop, ring)


@app.kind("holdfast.verify.account")
class Account(GoodAccount):
    """Some of the money gets lost on its way."""

    async def send(self, to: str, amount: int) -> None:
        await super().send(to, amount)
        await self.deposit(-1)


@app.kind("holdfast.verify.clock")
class Clock(GoodClock):
    """Every fifth alarm is written down twice."""

    def on_alarm(self, alarm: Alarm) -> None:
        super().on_alarm(alarm)
        if self.storage.get("length", int, default=0) == 5:
            super().on_alarm(alarm)
