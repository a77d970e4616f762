"""The kinds that the tests call."""

import asyncio
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Literal
from uuid import UUID

import msgspec
from holdfast import Alarm, App, DurableObject, Overloaded, Rejected, WrongOwner, reads

app = App()


class Untellable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


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

    async def slow_to_end(self, seconds: float) -> int:
        n = await self.increment()
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            await asyncio.sleep(seconds)
            raise
        return n

    async def swallows_cancellation(self) -> int:
        await self.increment()
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            return -1
        return 0

    async def wait_and_increment(self, seconds: float, limit: float) -> int:
        """Waits with asyncio's own tools, which must take the turn for the task it runs in."""
        async with asyncio.timeout(limit), asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(seconds))
            await asyncio.sleep(0)
        return await self.increment()

    async def increment_then(self, what: str) -> Any:
        """Write, and then fail in one of many ways."""
        await self.increment()
        match what:
            case "raise":
                raise RuntimeError("half-way")
            case "raise after waiting":
                await asyncio.sleep(0.01)
                raise RuntimeError("half-way")
            case "reject":
                raise Rejected("no", why="because")
            case "cancel":
                raise asyncio.CancelledError
            case "wait for ever":
                await asyncio.sleep(1000)
            case "write a huge value":
                self.storage.put("huge", b"x" * (3 << 20))
            case "return what cannot be sent":
                return object()
            case "return a huge result":
                return b"x" * (5 << 20)
            case "raise what cannot be told":
                raise Untellable
            case "reject with data that cannot be sent":
                raise Rejected("no", o=object())
            case "raise with half a character":
                raise ValueError("bad \udc80 name")
            case "raise a long story":
                raise ValueError("x" * 9_000)
            case "leave":
                sys.exit(3)
            case "return nothing at all":
                return msgspec.Raw(b"")
            case "raise WrongOwner":
                raise WrongOwner("not here")
            case "call itself":
                await self.objects.get(Counter, self.key).value()
        return None

    async def will_not_end(self) -> None:
        """Swallows its cancellation."""
        await self.increment()
        for _ in range(2):
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                pass

    async def have_wait(self, other: str, seconds: float) -> int:
        self.storage.put("asked", True)
        return int(await self.objects.get(Counter, other).wait_and_increment(seconds, 100.0))

    async def call_wrongly(self, what: str) -> None:
        other: Any = self.objects.get("Counter", f"{self.key} other")
        match what:
            case "argument":
                await other.increment(by="x")
            case "method":
                await other.no_such_method()
            case "size":
                await other.increment(by="x" * (5 << 20))

    async def wait_then_call(self, seconds: float, other: str) -> int:
        await asyncio.sleep(seconds)
        return int(await self.objects.get(Counter, other).increment())

    async def undo_a_part(self) -> int:
        """A nested transaction that fails, inside a turn that does not."""
        self.storage.put("n", 10)
        try:
            with self.storage.transaction():
                self.storage.put("n", 11)
                raise ValueError
        except ValueError:
            pass
        return await self.value()

    async def call_back(self, other: str) -> int:
        return int(await self.objects.get(Counter, other).call_back(self.key))

    async def add_from(self, other: str) -> int:
        n: int = await self.objects.get(Counter, other).increment(by=5)
        return await self.increment(n)

    async def block(self, seconds: float) -> None:
        time.sleep(seconds)

    async def seen(self) -> dict[str, str]:
        """What the handler sees of itself and its request."""
        request = self.request
        return {
            "kind": self.kind,
            "key": self.key,
            "id": request.id.hex(),
            "tag": request.metadata.get("tag", ""),
        }

    async def say(self, text: str) -> None:
        self.log.info(text, extra={"colour": "red"})

    async def lies(self) -> int:
        return "no"  # type: ignore[return-value]

    def plain(self, n: int) -> int:
        """A handler need not be async."""
        self.storage.put("n", n)
        return n

    def _private(self) -> None: ...


class Colour(Enum):
    RED = "red"


@dataclass
class Point:
    x: int
    y: Decimal


class Parcel(msgspec.Struct):
    id: UUID
    at: datetime
    colour: Colour
    points: list[Point]
    raw: bytes


@app.kind("echo")
class Echo(DurableObject):
    async def parcel(self, parcel: Parcel) -> Parcel:
        assert isinstance(parcel.points[0], Point)
        return parcel

    async def text(self, text: str) -> str:
        return text

    async def named(self, first: int, *, second: Point | None = None) -> list[int]:
        return [first, second.x if second else 0]


@app.kind
class Diary(DurableObject):
    """Counts its activations and evictions in its own storage."""

    _awake = 0

    async def on_activate(self) -> None:
        self._awake = self.storage.get("activated", int, default=0) + 1
        self.storage.put("activated", self._awake)

    async def on_evict(self) -> None:
        self.storage.put("evicted", self.storage.get("evicted", int, default=0) + 1)

    async def read(self) -> tuple[int, int, int]:
        return (
            self._awake,
            self.storage.get("activated", int, default=0),
            self.storage.get("evicted", int, default=0),
        )

    async def fill(self, rows: int, size: int) -> None:
        self.storage.put_many({f"row/{i:06d}": bytes(size) for i in range(rows)})

    async def touch(self, rows: int) -> int:
        return sum(len(self.storage.get(f"row/{i:06d}", bytes) or b"") for i in range(rows))

    async def rows(self, start: str, limit: int) -> list[str]:
        return list(self.storage.list("row/", start=start, limit=limit))

    async def clear(self) -> None:
        self.storage.delete_all()


@app.kind
class Tidy(DurableObject):
    """Tells another object when it is evicted."""

    async def on_evict(self) -> None:
        await self.objects.get(Counter, f"evicted-{self.key}").increment()
        if self.key == "stuck":
            await asyncio.Event().wait()

    async def touch(self) -> None: ...


def a_parcel() -> Parcel:
    return Parcel(
        UUID(int=7),
        datetime(2026, 1, 2, tzinfo=UTC),
        Colour.RED,
        [Point(1, Decimal("2.50"))],
        b"\x00\xff",
    )


@app.kind(notify_attempts=3, alarm_attempts=2)
class Sender(DurableObject):
    """Notifies, and returns before the outcome is known."""

    def send(self, to: str, count: int = 1, method: str = "take", delay_ms: int = 0) -> None:
        delay = timedelta(milliseconds=delay_ms) if delay_ms else None
        place = self.storage.get("place", int, default=0)
        for i in range(place, place + count):
            getattr(self.notify(Receiver, to, delay=delay), method)(self.key, i)
        self.storage.put("place", place + count)

    def send_and_fail(self, to: str) -> None:
        self.send(to)
        raise RuntimeError("after notifying")

    def send_some(self, to: str) -> None:
        self.notify(Receiver, to).take(self.key, 0)
        try:
            with self.storage.transaction():
                self.notify(Receiver, to).take(self.key, 1)
                raise RuntimeError("only this part is undone")
        except RuntimeError:
            pass
        self.notify(Receiver, to).take(self.key, 2)

    def flood(self, to: str, count: int) -> None:
        for i in range(count):
            self.notify(Receiver, to).take(self.key, i)

    def send_and_delete(self, rounds: int) -> int:
        """Send 15 MB and delete everything, again and again."""
        for i in range(rounds):
            for j in range(9):
                self.notify(Receiver, f"big-{i}-{j}").take("big", b"x" * 1_700_000)  # type: ignore[arg-type]
            self.storage.delete_all()
        self.storage.put("rounds", rounds)
        return rounds


@app.kind(alarm_attempts=2)
class Receiver(DurableObject):
    """Keeps what it is told, in the order in which it is told."""

    def take(self, sender: str, number: int) -> None:
        self._keep(sender, number)

    async def take_slowly(self, sender: str, number: int) -> None:
        await asyncio.sleep(0.5)
        self._keep(sender, number)

    def take_if_open(self, sender: str, number: int) -> None:
        if not self.storage.get("open", bool, default=False):
            raise RuntimeError("not yet")
        self._keep(sender, number)

    def open(self) -> None:
        self.storage.put("open", True)

    def reject(self, sender: str, number: int) -> None:
        raise Rejected("never", number=number)

    async def took(self) -> list[tuple[str, int]]:
        return list(self.storage.list("took/", type=tuple[str, int]).values())

    def alarm(
        self,
        ms: int,
        name: str = "default",
        payload: Any = None,
        every_ms: int = 0,
        misfire: Literal["once", "all", "skip"] = "once",
    ) -> None:
        every = timedelta(milliseconds=every_ms) if every_ms else None
        self.set_alarm(timedelta(milliseconds=ms), name, payload, every=every, misfire=misfire)

    def alarm_and_fail(self) -> None:
        self.set_alarm(timedelta(), "never")
        raise RuntimeError("no")

    def alarm_in_no_time_zone(self) -> None:
        self._keep("undone", 0)
        self.notify(Receiver, "x").take("undone", 1)
        self.set_alarm(timedelta(hours=1), timezone=UTC)  # type: ignore[arg-type]

    def alarm_by_cron(self, expression: str, timezone: str) -> None:
        self.set_alarm(every=expression, timezone=timezone)

    def beyond_a_limit(self, how: str) -> None:
        match how:
            case "long name":
                self.set_alarm(timedelta(1), "n" * 257)
            case "large payload":
                self.set_alarm(timedelta(1), payload=b"x" * (64 << 10))
            case "too many":
                for i in range(1001):
                    self.set_alarm(timedelta(1), str(i))
            case "no time zone":
                self.set_alarm(datetime(2040, 1, 1))
            case "never":
                self.set_alarm()
            case "year 9999":
                self.set_alarm(datetime(9999, 12, 31, tzinfo=UTC))
            case "misfire":
                self.set_alarm(timedelta(1), misfire="twice")  # type: ignore[arg-type]
            case "delay":
                self.notify(Receiver, "x", delay=timedelta(days=367)).take("x", 1)
            case "notify key":
                self.notify(Receiver, "").take("x", 1)
            case "arguments":
                self.notify(Receiver, "x").take("x" * (4 << 20), 1)

    def alarm_to_the_microsecond(self, text: str) -> bool:
        when = datetime.fromisoformat(text)
        self.set_alarm(when, "exact")
        alarm = self.get_alarm("exact")
        return alarm is not None and alarm.scheduled == when

    def exact(self) -> datetime | None:
        alarm = self.get_alarm("exact")
        return None if alarm is None else alarm.scheduled

    def clear(self, alarms: bool) -> list[str]:
        self.set_alarm(timedelta(hours=1), "kept?")
        self.storage.put("row", 1)
        self.storage.delete_all(alarms=alarms)
        assert self.storage.list() == {}
        return self.alarms()

    async def half_fails(self) -> list[Any]:
        """A part that fails beside one that does not: writes, alarms, notifications."""
        self.set_alarm(timedelta(hours=1), "before")

        async def good() -> None:
            await asyncio.sleep(0.01)
            self.set_alarm(timedelta(hours=1), "good")
            self.delete_alarm("before")
            self.notify(Receiver, f"{self.key} told").take("good", 1)

        async def bad() -> None:
            with self.storage.transaction():
                self.storage.put("bad", 1)
                self.set_alarm(timedelta(hours=1), "bad")
                self.notify(Receiver, f"{self.key} told").take("bad", 2)
                await asyncio.sleep(0.05)
                raise ValueError

        await asyncio.gather(good(), bad(), return_exceptions=True)
        return [self.alarms(), "bad" in self.storage]

    def alarm_at(self, second: int) -> None:
        self.set_alarm(datetime.fromtimestamp(second, UTC))

    def alarms(self) -> list[str]:
        return [alarm.name for alarm in self.list_alarms()]

    def stop_alarm(self, name: str) -> bool:
        return self.delete_alarm(name)

    async def on_alarm(self, alarm: Alarm) -> None:
        late_ms = (datetime.now(UTC) - alarm.scheduled).total_seconds() * 1000
        match alarm.payload:
            case "fail once" if alarm.attempt == 0:
                self._keep("undone", 0)
                raise RuntimeError("once")
            case "fail":
                raise RuntimeError("always")
            case "overloaded":
                raise Overloaded("somebody else is", retryable=True)
            case "again":
                self.set_alarm(timedelta(milliseconds=50), alarm.name, "last")
        self._keep(f"alarm {alarm.name}", int(late_ms))

    def _keep(self, sender: str, number: int) -> None:
        place = self.storage.get("place", int, default=0)
        self.storage.put(f"took/{place:08d}", (sender, number))
        self.storage.put("place", place + 1)


_refusals: dict[str, int] = {}


@app.kind
class Busy(DurableObject):
    def refuse(self, times: int) -> int:
        """Refuse so many times, and then tell how often that was; not stored, for a turn that fails
        stores nothing."""
        if _refusals.setdefault(self.key, 0) < times:
            _refusals[self.key] += 1
            raise Overloaded("not now", retryable=True, retry_after_s=0.02)
        return _refusals[self.key]


_charges: dict[str, int] = {}


@app.kind
class Till(DurableObject):
    """Charges money, which cannot be taken back, and stores nothing. Its process counts the
    charges."""

    def charge(self, amount: int) -> int:
        _charges[self.key] = _charges.get(self.key, 0) + 1
        if amount < 0:
            raise Rejected("no refunds", amount=amount)
        if amount == 0:
            raise ValueError("nothing to charge")
        return amount

    def charges(self) -> int:
        return _charges.get(self.key, 0)


@app.kind
class Plain(DurableObject):
    def alarm(self) -> None:
        self.set_alarm(timedelta(seconds=1))

    def value(self) -> int:
        return self.storage.get("n", int, default=0)

    def notify_nobody(self) -> None:
        self.storage.put("n", 1)
        self.notify(Receiver, "x").take("plain", 1)
        self.notify("\ud800", "x").take("plain", 1)

    def notify_wrong(self) -> None:
        self.notify(Receiver, "x").no_such_method()  # type: ignore[attr-defined]


@app.kind(ttl=timedelta(seconds=12))
class Expiring(DurableObject):
    """What it has is gone after a while, and so is it."""

    async def keep(self, ttl_s: float) -> None:
        self.storage.put("for good", 1)
        self.storage.put("for a while", 1, ttl=timedelta(seconds=ttl_s))

    async def kept(self) -> list[str]:
        return list(self.storage.list())

    @reads
    def seen(self) -> list[str]:
        return list(self.storage.list())
