"""The property example: each of its patterns on a real cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import holdfast
import pytest
from holdfast import testing

from examples.property.app import STATUSES, Change, ChangeType, Portfolio, Property, PropertySession
from examples.property.coalescing import coalesce

ROOT = Path(__file__).parents[2]
PRICE, STATUS, TEXT = ChangeType.PRICE_UPDATE, ChangeType.STATUS_CHANGE, ChangeType.DESCRIPTION_UPDATE


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


def node_stats(gateway: str) -> Any:
    command = (sys.executable, "-m", "holdfast", "status", "--gateway", gateway, "--json")
    return json.loads(subprocess.run(command, capture_output=True, text=True, timeout=30).stdout)["nodes"][0]["stats"]


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
    assert (now.price, now.status, now.description, now.revision) == (100, "listed", "by the sea", 3)
    assert await house.snapshot() == now
    modified = await house.lastModified()
    assert modified is not None
    assert abs(modified - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize(
    "change", [Change(PRICE, 0), Change(PRICE, "100"), Change(STATUS, "haunted"), Change(STATUS, 1), Change(TEXT, "x" * 10_001)]
)
async def test_a_bad_change_is_rejected_and_changes_nothing(example: holdfast.Client, change: Change) -> None:
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
    with pytest.raises(holdfast.Rejected, match="limit is 1 to 100"):
        await house.history(limit=101)


async def test_a_portfolio_follows_the_prices_of_its_properties(example: holdfast.Client) -> None:
    for key, price in (("a", 100), ("b", 50), ("a", 80)):
        await example.get(Property, f"follow-{key}").update(Change(PRICE, price), portfolio="follow")
    metrics = await example.get(Portfolio, "follow").metrics()
    assert (metrics.properties, metrics.value) == (2, 130)


async def test_a_feed_that_fails_half_way_is_undone_counted_and_logged_with_its_request_id(
    example: holdfast.Client, gateway: str, folder: Path
) -> None:
    house = example.get(Property, "half-way")
    before = await house.update(Change(PRICE, 7))
    failures = int(node_stats(gateway)["turns_failed"])
    with pytest.raises(holdfast.ApplicationError) as failed:
        await house.import_feed([{"type": "PRICE_UPDATE", "value": 8}, {"type": "PRICE_UPDATE", "value": 9}, {"typ": "x"}])
    assert failed.value.type == "KeyError"
    assert await house.snapshot() == before
    assert len(await house.history()) == 1
    assert await house.import_feed([{"type": "PRICE_UPDATE", "value": 10}]) == 1
    assert int(node_stats(gateway)["turns_failed"]) == failures + 1
    log = (folder / "logs" / "n1.log").read_text()
    assert log.count(f'"request_id":"{failed.value.request_id.hex()}"') == 1


async def test_a_property_with_thousands_of_revisions_stays_within_its_cache_limit(example: holdfast.Client, gateway: str) -> None:
    house = example.get(Property, "old")
    cold = int(node_stats(gateway)["cache_bytes"])
    for start in range(0, 5000, 500):
        await house.import_feed([{"type": "DESCRIPTION_UPDATE", "value": "x" * 100 + str(i)} for i in range(start, start + 500)])
    assert [revision.number for revision in await house.history(after=4990)] == list(range(4991, 5001))
    await house.snapshot()
    assert 0 < int(node_stats(gateway)["cache_bytes"]) - cold <= 256 << 10


async def test_updates_in_flight_together_share_few_fsyncs(gateway: str) -> None:
    updates, fsyncs = await coalesce(gateway, properties=100, each=20)
    assert updates == 2000
    assert 0 < fsyncs < updates / 10
