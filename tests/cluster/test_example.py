"""The property example: each of its patterns on a real cluster."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import holdfast
import pytest
from holdfast import testing

from examples.property.app import (
    STATUSES,
    Change,
    ChangeType,
    Portfolio,
    Property,
    PropertySession,
    Viewing,
)
from examples.property.coalescing import coalesce

ROOT = Path(__file__).parents[2]
PRICE, STATUS, TEXT = (
    ChangeType.PRICE_UPDATE,
    ChangeType.STATUS_CHANGE,
    ChangeType.DESCRIPTION_UPDATE,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("example")


@pytest.fixture(scope="module")
def gateway(folder: Path) -> Iterator[str]:
    with testing.local_cluster(str(ROOT / "examples/property/app.py"), data=folder) as address:
        yield address


@pytest.fixture
async def example(gateway: str) -> AsyncIterator[holdfast.Client]:
    async with holdfast.connect(gateway) as connected:
        yield connected


async def until(ask: Any, wanted: Any, timeout_s: float = 15) -> Any:
    """Ask until the answer is what is wanted."""
    deadline = time.monotonic() + timeout_s
    while not wanted(answer := await ask()) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    return answer


def node_stats(gateway: str) -> Any:
    command = (sys.executable, "-m", "holdfast", "status", "--gateway", gateway, "--json")
    return json.loads(subprocess.run(command, capture_output=True, text=True, timeout=30).stdout)[
        "nodes"
    ][0]["stats"]


async def test_a_session_is_created_updated_read_and_remembered(example: holdfast.Client) -> None:
    session = example.get(PropertySession, "s")
    with pytest.raises(holdfast.Rejected, match="no such session"):
        await session.update("p-1")
    assert await session.create("ada") == {"user": "ada", "viewed": []}
    with pytest.raises(holdfast.Rejected, match="the session exists"):
        await session.create("bob")
    await session.update("p-1")
    assert await session.get() == {"user": "ada", "viewed": ["p-1"]}


async def test_every_type_of_change_is_applied_and_dated(example: holdfast.Client) -> None:
    house = example.get(Property, "house")
    assert await house.lastModified() is None
    await house.update(Change(PRICE, 100))
    await house.update(Change(STATUS, STATUSES[1]))
    now = await house.update(Change(TEXT, "by the sea"))
    assert (now.price, now.status, now.description, now.revision) == (
        100,
        "listed",
        "by the sea",
        3,
    )
    assert await house.snapshot() == now
    modified = await house.lastModified()
    assert modified is not None
    assert abs(modified - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize(
    "change",
    [
        Change(PRICE, 0),
        Change(PRICE, "100"),
        Change(STATUS, "haunted"),
        Change(STATUS, 1),
        Change(TEXT, "x" * 10_001),
    ],
)
async def test_a_bad_change_is_rejected_and_changes_nothing(
    example: holdfast.Client, change: Change
) -> None:
    house = example.get(Property, "rejects")
    before = await house.update(Change(PRICE, 7))
    with pytest.raises(holdfast.Rejected) as rejected:
        await house.update(change)
    assert rejected.value.definite
    assert rejected.value.data == {"type": change.type.value}
    assert await house.snapshot() == before


async def test_history_comes_in_pages(example: holdfast.Client) -> None:
    house = example.get(Property, "paged")
    await house.import_feed([{"type": "PRICE_UPDATE", "value": i} for i in range(1, 46)])
    pages = []
    after = 0
    while page := await house.history(after=after, limit=20):
        pages.append([revision.change.value for revision in page])
        after = page[-1].number
    assert pages == [list(range(1, 21)), list(range(21, 41)), list(range(41, 46))]
    with pytest.raises(holdfast.Rejected, match="limit must be 1 to 100"):
        await house.history(limit=101)


async def test_a_portfolio_follows_the_prices_of_its_properties(example: holdfast.Client) -> None:
    for key, price in (("a", 100), ("b", 50), ("a", 80)):
        await example.get(Property, f"follow-{key}").update(
            Change(PRICE, price), portfolio="follow"
        )
    portfolio = example.get(Portfolio, "follow")
    metrics = await until(portfolio.metrics, lambda metrics: metrics.value == 130)
    assert (metrics.properties, metrics.value) == (2, 130)
    await example.get(Property, "follow-c").update(Change(PRICE, 7))
    assert (await portfolio.add("follow-c")).value == 137


async def test_a_related_property_that_is_a_draft_ends_in_the_dead_letters_and_is_told_by_a_replay(
    example: holdfast.Client, gateway: str
) -> None:
    def ask(*arguments: str) -> Any:
        command = (sys.executable, "-m", "holdfast", *arguments, "--gateway", gateway, "--json")
        return json.loads(
            subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
        )

    async def dead() -> Any:
        return ask("deadletters", "list", "--to", "Property/draft")["letters"]

    teller, draft = example.get(Property, "teller"), example.get(Property, "draft")
    with pytest.raises(holdfast.Rejected):
        await teller.relate(["teller"])
    await teller.relate(["draft"])
    await teller.update(Change(PRICE, 100))
    (letter,) = await until(dead, lambda found: bool(found))
    assert (letter["attempts"], letter["method"]) == (4, "notify_related_change")
    assert await draft.compared() == {}
    await draft.update(Change(STATUS, "listed"))
    assert ask("deadletters", "replay", letter["id"])["changed"] == 1
    assert await until(draft.compared, {"teller": 100}.__eq__) == {"teller": 100}


async def test_a_viewing_reminds_its_visitor_and_is_over_when_nobody_came(
    example: holdfast.Client,
) -> None:
    viewing, missed = example.get(Viewing, "v"), example.get(Viewing, "missed")
    with pytest.raises(holdfast.Rejected, match="in the future"):
        await viewing.arrange("house", "visitor", datetime.now(UTC))
    at = datetime.now(UTC) + timedelta(seconds=0.6)
    await viewing.arrange("house", "visitor", at, remind_s=0.4)
    await viewing.took_place()
    await missed.arrange("house", "visitor", at, remind_s=0.4)
    reminders = await until(
        example.get(PropertySession, "visitor").reminders, lambda there: len(there) == 2
    )
    assert [reminder["property"] for reminder in reminders] == ["house", "house"]
    assert await until(missed.status, "nobody came".__eq__) == "nobody came"
    assert await viewing.status() == "took place"


async def test_a_feed_that_fails_half_way_is_undone_counted_and_logged_with_its_request_id(
    example: holdfast.Client, gateway: str, folder: Path
) -> None:
    house = example.get(Property, "half-way")
    before = await house.update(Change(PRICE, 7))
    failures = int(node_stats(gateway)["turns_failed"])
    with pytest.raises(holdfast.ApplicationError) as failed:
        await house.import_feed(
            [
                {"type": "PRICE_UPDATE", "value": 8},
                {"type": "PRICE_UPDATE", "value": 9},
                {"typ": "x"},
            ]
        )
    assert failed.value.type == "KeyError"
    assert await house.snapshot() == before
    assert len(await house.history()) == 1
    assert await house.import_feed([{"type": "PRICE_UPDATE", "value": 10}]) == 1
    assert int(node_stats(gateway)["turns_failed"]) == failures + 1
    log = (folder / "logs" / "n1.log").read_text()
    assert log.count(f'"request_id":"{failed.value.request_id.hex()}"') == 1


async def test_a_property_with_thousands_of_revisions_stays_within_its_cache_limit(
    example: holdfast.Client, gateway: str
) -> None:
    house = example.get(Property, "old")
    cold = int(node_stats(gateway)["cache_bytes"])
    for start in range(0, 5000, 500):
        await house.import_feed(
            [
                {"type": "DESCRIPTION_UPDATE", "value": "x" * 100 + str(i)}
                for i in range(start, start + 500)
            ]
        )
    assert [revision.number for revision in await house.history(after=4990)] == list(
        range(4991, 5001)
    )
    await house.snapshot()
    assert 0 < int(node_stats(gateway)["cache_bytes"]) - cold <= 256 << 10


async def test_updates_in_flight_together_share_few_fsyncs(gateway: str) -> None:
    updates, fsyncs = await coalesce(gateway, properties=100, each=20)
    assert updates == 2000
    assert 0 < fsyncs < updates / 10
