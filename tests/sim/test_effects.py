"""Worlds of calls, notifications and alarms, on the production engine: each effect once, whatever
fails. See effects.py."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
from holdfast_cluster.routing.dispatch import Dispatcher
from holdfast_node.services.host import ObjectHost

from .effect_bugs import BUGS, DISPATCHER_BUGS
from .effects import live
from .verdicts import Broken

SEEDS = int(os.environ.get("SEEDS", "150"))
PARTS = 4
BUG_SEEDS_MAX = 2_000


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(3600 * 24)
@pytest.mark.parametrize("part", range(PARTS))
def test_every_effect_happens_once_in_every_world(part: int) -> None:
    seeds = range(part, SEEDS, PARTS)
    hops = transfers = alarms = definite = 0
    for seed in seeds:
        world = live(seed)
        hops += world.hops
        transfers += world.transfers
        alarms += world.alarms
        definite += world.definite
    assert min(hops, transfers, alarms) > 50 * len(seeds)  # they work, too
    assert definite > 5 * len(seeds)


def test_a_seed_is_one_story() -> None:
    one, two = live(7), live(7)
    assert (one.hops, one.transfers, one.alarms) == (two.hops, two.transfers, two.alarms)
    assert one.chance.random() == two.chance.random()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", BUGS)
def test_every_planted_bug_is_caught(bug: str) -> None:
    caught = next(
        (str(error) for seed in range(BUG_SEEDS_MAX) if (error := broken_in(seed, BUGS[bug]))), None
    )
    assert caught is not None, f"not caught in {BUG_SEEDS_MAX} worlds"
    assert any(rule in caught for rule in ("once", "constant", "in order")), caught


@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", DISPATCHER_BUGS)
def test_every_planted_bug_of_the_dispatcher_is_caught(bug: str) -> None:
    caught = next(
        (
            str(error)
            for seed in range(BUG_SEEDS_MAX)
            if (error := broken_in(seed, ObjectHost, DISPATCHER_BUGS[bug]))
        ),
        None,
    )
    assert caught is not None, f"not caught in {BUG_SEEDS_MAX} worlds"
    assert any(rule in caught for rule in ("definite", "once")), caught


def broken_in(
    seed: int, host: type[ObjectHost], dispatcher: type[Dispatcher] = Dispatcher
) -> Broken | None:
    try:
        live(seed, host, dispatcher)
    except Broken as broken:
        return broken
    return None
