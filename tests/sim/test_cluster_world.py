"""Worlds of whole production nodes on simulated machines. `make sim SEEDS=10000` runs more of them.
See cluster_world/."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .cluster_world.bugs import BUGS, CAUGHT_BY, UNIT_TEST_OF
from .cluster_world.checks import Broken
from .cluster_world.world import live

SEEDS = int(os.environ.get("SEEDS", "200"))
PARTS = 4
BUG_SEEDS_MAX = 400
ROOT = Path(__file__).parents[2]


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


class _Planting:
    """A plugin of pytest that plants a bug before tests are imported."""

    def __init__(self, bug: str) -> None:
        self.bug = bug

    def pytest_configure(self) -> None:
        for owner, name, value in UNIT_TEST_OF[self.bug][0].replaced:
            setattr(owner, name, value)


@pytest.mark.parametrize("bug", UNIT_TEST_OF)
def test_a_unit_test_catches_what_no_world_does(bug: str) -> None:
    """In a process of its own, which ends with the bug in it."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.sim.test_cluster_world", bug],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.stdout + run.stderr


if __name__ == "__main__":
    with_bug = [
        f"{ROOT}/tests/unit/{UNIT_TEST_OF[sys.argv[1]][1]}",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
    ]
    raise SystemExit(pytest.main(with_bug, plugins=[_Planting(sys.argv[1])]))
