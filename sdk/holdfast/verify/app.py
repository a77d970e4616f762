"""The objects that `holdfast verify` calls."""

from __future__ import annotations

from datetime import timedelta

from holdfast import Alarm, App, DurableObject, reads
from holdfast.verify.inside import install

install()
app = App()


@app.kind("holdfast.verify.register")
class Register(DurableObject):
    """One number."""

    async def read(self) -> int:
        return self.storage.get("n", int, default=0)

    @reads
    def glance(self) -> int:
        """Return the number beside the turns."""
        return self.storage.get("n", int, default=0)

    async def write(self, value: int) -> None:
        self.storage.put("n", value)

    async def swap(self, expected: int, value: int) -> bool:
        """Write `value` if the number is `expected`. Return whether it was."""
        if self.storage.get("n", int, default=0) != expected:
            return False
        self.storage.put("n", value)
        return True


@app.kind("holdfast.verify.counter")
class Counter(DurableObject):
    """A counter."""

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
        """Append an element, and return its place."""
        place = self.storage.get("length", int, default=0)
        self.storage.put(f"e{place:08d}", element)
        self.storage.put("length", place + 1)
        return place

    async def elements(self, start: int = 0, limit: int = 1000) -> list[str]:
        """Return the elements from a place on."""
        return list(self.storage.list("e", start=f"e{start:08d}", limit=limit).values())


@app.kind("holdfast.verify.station")
class Station(DurableObject):
    """One of a ring of objects that pass tokens on by notifications. After `halt` it keeps the
    tokens that arrive.
    """

    async def arrive(self, token: str, hop: int, ring: list[str]) -> None:
        place = self.storage.get("length", int, default=0)
        self.storage.put(f"hop/{place:08d}", (token, hop))
        self.storage.put("length", place + 1)
        if self.storage.get("halted", bool, default=False):
            self.storage.put(f"token/{token}", hop)
        else:
            self._pass_on(token, hop, ring)

    def _pass_on(self, token: str, hop: int, ring: list[str]) -> None:
        then = ring[(ring.index(self.key) + 1) % len(ring)]
        # every other hop is delayed
        self.notify(Station, then, delay=timedelta(milliseconds=100) if hop % 2 else None).arrive(
            token, hop + 1, ring
        )

    async def halt(self) -> None:
        self.storage.put("halted", True)

    async def tokens(self) -> dict[str, int]:
        """Return the tokens that it has kept, with the hop at which each arrived."""
        return {
            key.removeprefix("token/"): hop
            for key, hop in self.storage.list("token/", type=int).items()
        }

    async def hops(self, start: int = 0, limit: int = 1000) -> list[tuple[str, int]]:
        """Return all hops that arrived here, from a place on."""
        return list(
            self.storage.list(
                "hop/", start=f"hop/{start:08d}", limit=limit, type=tuple[str, int]
            ).values()
        )


@app.kind("holdfast.verify.account")
class Account(DurableObject):
    """An account; its balance may be negative."""

    async def deposit(self, amount: int) -> None:
        self.storage.put("balance", self.storage.get("balance", int, default=0) + amount)

    async def transfer(self, to: str, amount: int) -> None:
        """Give an amount to another account, by a call."""
        await self.deposit(-amount)
        await self.objects.get(Account, to).deposit(amount)

    async def send(self, to: str, amount: int) -> None:
        """Give an amount to another account, by a notification."""
        await self.deposit(-amount)
        self.notify(Account, to).deposit(amount)

    async def balance(self) -> int:
        return self.storage.get("balance", int, default=0)


@app.kind("holdfast.verify.clock")
class Clock(DurableObject):
    """Records each time at which its alarm was due."""

    async def start(self, every_ms: int) -> None:
        if not self.list_alarms() and not self.storage.get("length", int, default=0):
            self.set_alarm(every=timedelta(milliseconds=every_ms), misfire="all")

    async def stop(self) -> None:
        self.delete_alarm()

    def on_alarm(self, alarm: Alarm) -> None:
        place = self.storage.get("length", int, default=0)
        self.storage.put(f"t{place:08d}", round(alarm.scheduled.timestamp() * 1000))
        self.storage.put("length", place + 1)

    async def times(self, start: int = 0, limit: int = 1000) -> list[int]:
        """Return the times at which the alarm was due, as Unix time in ms, from a place on."""
        return list(self.storage.list("t", start=f"t{start:08d}", limit=limit, type=int).values())
