"""Tests of the example, as a project of its own would have them. They run in this process, on
virtual time, without waiting.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from holdfast import App, Rejected
from holdfast.testing import Cluster

from examples.property import app as example
from examples.property.app import Change, ChangeType, Portfolio, Property, PropertySession, Viewing

PRICE, STATUS = ChangeType.PRICE_UPDATE, ChangeType.STATUS_CHANGE


@pytest.fixture(scope="session")
def holdfast_app() -> App:
    return example.app


def test_a_portfolio_hears_of_each_price_once_though_replies_are_lost_and_its_node_crashes(
    holdfast_cluster: Cluster,
) -> None:
    p1 = holdfast_cluster.get(Property, "p-1")
    holdfast_cluster.drop_next_reply()
    p1.update(Change(PRICE, 400_000), portfolio="north")
    holdfast_cluster.crash_owner(Portfolio, "north")
    p1.update(Change(PRICE, 350_000), portfolio="north")
    holdfast_cluster.settle()
    metrics = holdfast_cluster.get(Portfolio, "north").metrics()
    assert (metrics.properties, metrics.value) == (1, 350_000)
    assert [revision.number for revision in p1.history()] == [1, 2]


def test_a_bad_change_changes_nothing(holdfast_cluster: Cluster) -> None:
    p1 = holdfast_cluster.get(Property, "p-1")
    with pytest.raises(Rejected, match="not a valid PRICE_UPDATE"):
        p1.update(Change(PRICE, -1))
    assert holdfast_cluster.stored(Property, "p-1") == {}


def test_a_viewing_reminds_its_visitor_an_hour_before_and_is_over_an_hour_after(
    holdfast_cluster: Cluster,
) -> None:
    viewing, session = (
        holdfast_cluster.get(Viewing, "v-1"),
        holdfast_cluster.get(PropertySession, "s-1"),
    )
    viewing.arrange("p-1", "s-1", holdfast_cluster.now() + timedelta(days=3))
    assert [alarm.name for alarm in holdfast_cluster.alarms(Viewing, "v-1")] == ["remind", "over"]
    holdfast_cluster.advance(timedelta(days=2, hours=22))
    assert session.reminders() == []
    holdfast_cluster.advance(timedelta(hours=2))
    assert [reminder["property"] for reminder in session.reminders()] == ["p-1"]
    holdfast_cluster.advance(timedelta(hours=2))
    assert viewing.status() == "nobody came"


def test_a_viewing_that_took_place_is_not_over(holdfast_cluster: Cluster) -> None:
    viewing = holdfast_cluster.get(Viewing, "v-1")
    viewing.arrange("p-1", "s-1", holdfast_cluster.now() + timedelta(days=3))
    holdfast_cluster.fire_alarm(Viewing, "v-1", "remind")
    viewing.took_place()
    with pytest.raises(LookupError, match="no alarm 'over'"):
        holdfast_cluster.fire_alarm(Viewing, "v-1", "over")
    assert viewing.status() == "took place"


def test_a_session_is_read_from_storage_after_it_has_left_memory_and_is_forgotten_after_a_month(
    holdfast_cluster: Cluster,
) -> None:
    session = holdfast_cluster.get(PropertySession, "s-1")
    session.create("ada")
    session.update("p-1")
    assert holdfast_cluster.evict(PropertySession, "s-1")
    assert session.get() == {"user": "ada", "viewed": ["p-1"]}
    holdfast_cluster.advance(timedelta(days=29))
    session.update("p-2")
    holdfast_cluster.advance(timedelta(days=29))
    assert session.get()["viewed"] == ["p-1", "p-2"]
    holdfast_cluster.advance(timedelta(days=4))
    assert session.get() == {}


def test_a_draft_cannot_be_compared_which_ends_as_a_dead_letter(holdfast_cluster: Cluster) -> None:
    holdfast_cluster.get(Property, "p-1").relate(["p-2"])
    holdfast_cluster.get(Property, "p-1").update(Change(PRICE, 1))
    holdfast_cluster.advance(timedelta(minutes=1))
    [letter] = holdfast_cluster.dead_letters()
    assert (letter["to"], letter["method"], letter["attempts"]) == (
        "Property/p-2",
        "notify_related_change",
        4,
    )
    assert "is a draft" in letter["error"]


def test_updates_at_once_are_each_there(holdfast_cluster: Cluster) -> None:
    async def many() -> None:
        stub = holdfast_cluster.client.get(Property, "p-1")
        await asyncio.gather(*(stub.update(Change(PRICE, price)) for price in range(1, 51)))

    holdfast_cluster.run(many())
    prices = [
        revision.change.value
        for revision in holdfast_cluster.get(Property, "p-1").history(limit=100)
    ]
    assert sorted(prices) == list(range(1, 51))
