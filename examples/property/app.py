"""Real estate: properties that are edited, portfolios that sum their properties, sessions of
visitors, and viewings at a time.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any

import msgspec
from holdfast import Alarm, App, DurableObject, Rejected, reads

app = App()


class ChangeType(Enum):
    PRICE_UPDATE = "PRICE_UPDATE"
    STATUS_CHANGE = "STATUS_CHANGE"
    DESCRIPTION_UPDATE = "DESCRIPTION_UPDATE"


STATUSES = ("draft", "listed", "under offer", "sold")


class Change(msgspec.Struct):
    """One edit of a property. By its type, `value` is a price in whole euros, one of STATUSES, or a
    text.
    """

    type: ChangeType
    value: int | str


class Revision(msgspec.Struct):
    """A change as the history keeps it."""

    number: int
    change: Change
    at: datetime


class Snapshot(msgspec.Struct):
    price: int = 0
    status: str = "draft"
    description: str = ""
    revision: int = 0
    last_modified: datetime | None = None


@app.kind(notify_attempts=4)
class Property(DurableObject):
    """One property; its key is its number.

    It notifies its portfolio of new prices, and the properties that it is compared with.
    """

    async def update(self, change: Change, portfolio: str = "") -> Snapshot:
        """Apply one change, and return the new state. A bad change is Rejected and changes nothing.

        `portfolio`: the portfolio to notify.
        """
        now = self.storage.get("snapshot", Snapshot, default=Snapshot())
        match change:
            case Change(ChangeType.PRICE_UPDATE, int(price)) if price > 0:
                now.price = price
            case Change(ChangeType.STATUS_CHANGE, str(status)) if status in STATUSES:
                now.status = status
            case Change(ChangeType.DESCRIPTION_UPDATE, str(text)) if len(text) <= 10_000:
                now.description = text
            case _:
                raise Rejected(
                    f"not a valid {change.type.value}: {change.value!r}", type=change.type.value
                )
        now.revision += 1
        now.last_modified = datetime.now(UTC)
        self.storage.put("snapshot", now)
        self.storage.put(
            f"history/{now.revision:09d}", Revision(now.revision, change, now.last_modified)
        )
        if portfolio:
            self.notify(Portfolio, portfolio).property_changed(self.key, now.price)
        if change.type is ChangeType.PRICE_UPDATE:
            for other in self.storage.get("related", list[str], default=[]):
                self.notify(Property, other).notify_related_change(self.key, now.price)
        return now

    async def relate(self, others: list[str]) -> None:
        """Notify these properties of every new price from now on; at most 50."""
        if len(others) > 50 or self.key in others:
            raise Rejected(
                "a property is compared with up to 50 others, and not with itself",
                related=len(others),
            )
        self.storage.put("related", others)

    async def notify_related_change(self, other: str, price: int) -> None:
        """Take note of the new price of another property.

        A draft cannot be compared, so it fails. Holdfast tries the notification again, and makes it
        a dead letter at last.
        """
        if (await self.snapshot()).status == "draft":
            raise RuntimeError(f"{self.key} is a draft: {other} cannot be compared with it")
        self.storage.put(f"compared/{other}", price)

    async def compared(self) -> dict[str, int]:
        """Return the prices of the properties that notified this one."""
        rows = self.storage.list("compared/", type=int)
        return {key.removeprefix("compared/"): price for key, price in rows.items()}

    async def import_feed(self, lines: list[dict[str, Any]]) -> int:
        """Apply a broker's feed, all of it or nothing. A line that cannot be read fails the turn,
        which undoes the lines before it.
        """
        for line in lines:
            await self.update(Change(ChangeType[line["type"]], line["value"]))
        return len(lines)

    async def snapshot(self) -> Snapshot:
        return self.storage.get("snapshot", Snapshot, default=Snapshot())

    async def history(self, after: int = 0, limit: int = 20) -> list[Revision]:
        """Return the changes after revision `after`, the oldest first, at most `limit` at a
        time.
        """
        if not 0 < limit <= 100:
            raise Rejected("limit must be 1 to 100", limit=limit)
        start = f"history/{after + 1:09d}"
        return list(self.storage.list("history/", start=start, limit=limit, type=Revision).values())

    async def lastModified(self) -> datetime | None:
        return (await self.snapshot()).last_modified


class Metrics(msgspec.Struct):
    properties: int = 0
    value: int = 0


@app.kind
class Portfolio(DurableObject):
    """The sum of its properties, kept current as they change."""

    async def add(self, property: str) -> Metrics:
        """Add a property with its current price: call the property, and wait for its answer."""
        now = await self.objects.get(Property, property).snapshot()
        return await self.property_changed(property, now.price)

    async def property_changed(self, property: str, price: int) -> Metrics:
        metrics = self.storage.get("metrics", Metrics, default=Metrics())
        before = self.storage.get(f"price/{property}", int)
        metrics.properties += before is None
        metrics.value += price - (before or 0)
        self.storage.put(f"price/{property}", price)
        self.storage.put("metrics", metrics)
        return metrics

    @reads
    async def metrics(self) -> Metrics:
        """Return the sums. This is a read beside turns: it does not wait for a turn that adds a
        property.
        """
        return self.storage.get("metrics", Metrics, default=Metrics())


@app.kind(ttl=timedelta(days=30))
class PropertySession(DurableObject):
    """One person's session. Its state is loaded once, when it is activated. A session that is not
    written for a month is deleted.
    """

    async def on_activate(self) -> None:
        self._state: dict[str, Any] = self.storage.get("state", dict[str, Any], default={})

    async def create(self, user: str) -> dict[str, Any]:
        if self._state:
            raise Rejected("the session exists", user=self._state["user"])
        return self._save({"user": user, "viewed": []})

    async def update(self, viewed: str) -> dict[str, Any]:
        if not self._state:
            raise Rejected("there is no such session")
        return self._save({**self._state, "viewed": [*self._state["viewed"], viewed][-50:]})

    async def get(self) -> dict[str, Any]:
        return self._state

    def _save(self, state: dict[str, Any]) -> dict[str, Any]:
        self.storage.put("state", state)
        self._state = state
        return state

    async def viewing_is_near(self, property: str, at: datetime) -> None:
        """Store a reminder of a viewing."""
        reminders = [
            *self.storage.get("reminders", list, default=[]),
            {"property": property, "at": at},
        ]
        self.storage.put("reminders", reminders[-50:])

    async def reminders(self) -> list[dict[str, Any]]:
        return self.storage.get("reminders", list[dict[str, Any]], default=[])


@app.kind
class Viewing(DurableObject):
    """An appointment to view a property. It reminds the visitor in time. It is over if it has not
    taken place by an hour after its time.
    """

    async def arrange(
        self, property: str, session: str, at: datetime, remind_s: float = 3600
    ) -> None:
        if at <= datetime.now(UTC):
            raise Rejected("a viewing must be in the future", at=at.isoformat())
        self.storage.put_many(
            {"property": property, "session": session, "at": at, "status": "arranged"}
        )
        self.set_alarm(at - timedelta(seconds=remind_s), "remind")
        self.set_alarm(at + timedelta(seconds=remind_s), "over")

    def _viewing(self) -> tuple[str, str, datetime]:
        session, property = self.storage.get("session", str), self.storage.get("property", str)
        at = self.storage.get("at", datetime)
        assert session is not None
        assert property is not None
        assert at is not None  # `arrange` has stored them, and set the alarm
        return session, property, at

    async def took_place(self) -> None:
        self.storage.put("status", "took place")
        self.delete_alarm("over")

    async def status(self) -> str:
        return self.storage.get("status", str, default="none")

    async def on_alarm(self, alarm: Alarm) -> None:
        if alarm.name == "remind":
            session, property, at = self._viewing()
            self.notify(PropertySession, session).viewing_is_near(property, at)
        else:
            self.storage.put("status", "nobody came")
