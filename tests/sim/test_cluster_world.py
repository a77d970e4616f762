"""Worlds of whole production nodes on simulated machines. `make sim SEEDS=10000` runs more of them. See cluster_world/."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from .cluster_world.bugs import BUGS, CAUGHT_BY
from .cluster_world.checks import Broken
from .cluster_world.world import live

SEEDS = int(os.environ.get("SEEDS", "300"))
PARTS = 4
BUG_SEEDS_MAX = 400


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(3600 * 24)
@pytest.mark.parametrize("part", range(PARTS))
def test_every_promise_holds_in_every_world(part: int) -> None:
    seeds = range(part, SEEDS, PARTS)
    answers = sum(live(seed).history.answers for seed in seeds)
    assert answers > 100 * len(seeds)  # the worlds are not merely broken: they work, too


def test_a_seed_is_one_story() -> None:
    one, two = live(7), live(7)
    assert one.story == two.story
    assert one.chance.random() == two.chance.random()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("bug", BUGS)
def test_every_planted_bug_is_caught(bug: str) -> None:
    for seed in (CAUGHT_BY[bug], *range(BUG_SEEDS_MAX)):
        try:
            live(seed, BUGS[bug].faults, BUGS[bug].replaced)
        except Broken:
            return
    pytest.fail(f"not caught in {BUG_SEEDS_MAX} worlds")
