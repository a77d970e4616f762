"""Real estate: properties that are edited, portfolios that add them up, sessions of people who look at them."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import Enum
from typing import Any

import msgspec
from holdfast import App, DurableObject, Rejected

app = App()


class ChangeType(Enum):
    PRICE_UPDATE = "PRICE_UPDATE"
    STATUS_CHANGE = "STATUS_CHANGE"
    DESCRIPTION_UPDATE = "DESCRIPTION_UPDATE"


STATUSES = ("draft", "listed", "under offer", "sold")


class Change(msgspec.Struct):
    """One edit of a property: a price in whole euros, one of STATUSES, or a text, by its type."""

    type: ChangeType
    value: int | str


class Revision(msgspec.Struct):
    """A change as it is kept in the history."""

    number: int
    change: Change
    at: datetime


class Snapshot(msgspec.Struct):
    price: int = 0
    status: str = "draft"
    description: str = ""
    revision: int = 0
    last_modified: datetime | None = None


@app.kind
class Property(DurableObject):
    """One property; its key is its number. It tells its portfolio of every new price."""

    async def update(self, change: Change, portfolio: str = "") -> Snapshot:
        """Apply one change. A bad one is Rejected and changes nothing."""
        now = self.storage.get("snapshot", Snapshot, default=Snapshot())
        match change:
            case Change(ChangeType.PRICE_UPDATE, int(price)) if price > 0:
                now.price = price
            case Change(ChangeType.STATUS_CHANGE, str(status)) if status in STATUSES:
                now.status = status
            case Change(ChangeType.DESCRIPTION_UPDATE, str(text)) if len(text) <= 10_000:
                now.description = text
            case _:
                raise Rejected(f"not a valid {change.type.value}: {change.value!r}", type=change.type.value)
        now.revision += 1
        now.last_modified = datetime.now(UTC)
        self.storage.put("snapshot", now)
        self.storage.put(f"history/{now.revision:09d}", Revision(now.revision, change, now.last_modified))
        if portfolio:
            await self.objects.get(Portfolio, portfolio).property_changed(self.key, now.price)
        return now

    async def import_feed(self, lines: list[dict[str, Any]]) -> int:
        """Apply a broker's feed, all of it or nothing: a line that cannot be read fails the turn and undoes the lines before it."""
        for line in lines:
            await self.update(Change(ChangeType[line["type"]], line["value"]))
        return len(lines)

    async def snapshot(self) -> Snapshot:
        return self.storage.get("snapshot", Snapshot, default=Snapshot())

    async def history(self, after: int = 0, limit: int = 20) -> list[Revision]:
        """The changes after revision `after`, oldest first, a page at a time."""
        if not 0 < limit <= 100:
            raise Rejected("limit is 1 to 100", limit=limit)
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

    async def property_changed(self, property: str, price: int) -> Metrics:
        metrics = self.storage.get("metrics", Metrics, default=Metrics())
        before = self.storage.get(f"price/{property}", int)
        metrics.properties += before is None
        metrics.value += price - (before or 0)
        self.storage.put(f"price/{property}", price)
        self.storage.put("metrics", metrics)
        return metrics

    async def metrics(self) -> Metrics:
        return self.storage.get("metrics", Metrics, default=Metrics())


@app.kind
class PropertySession(DurableObject):
    """One person's session. Its state is loaded once, when it is activated."""

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
