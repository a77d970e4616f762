"""Small worlds of which many orders of events are tried; `make model` tries far more."""

from __future__ import annotations

import pytest
from holdfast_node import replication as r

from .starts import BUGS, STARTS, look

WORLDS = 700


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [None, 1], ids=["breadth first", "depth first"])
@pytest.mark.parametrize("name", STARTS)
def test_no_order_of_events_breaks_a_promise(name: str, seed: int | None) -> None:
    found = look(STARTS[name], WORLDS, r.Replica, seed)
    assert found.broken is None, (found.broken, found.story)
    assert found.whole or found.worlds >= WORLDS


def test_a_small_world_is_searched_to_its_end() -> None:
    found = look(STARTS["two copies, a change of owner"], 100_000)
    assert found.broken is None, (found.broken, found.story)
    assert found.whole
    assert found.worlds > 100


CAUGHT_BY: dict[str, tuple[str, int | None, int]] = {
    "own disk counted before it persisted": ("two copies, a stalled disk", 1, 49),
    "commit without one in-sync member": ("two copies", None, 1),
    "no tail cut": ("two copies", 2, 30),
    "served before its first entry": ("two copies, a late message", 2, 1_371),
    "promise not waited out": ("an owner that does not hear that it was replaced", None, 13_547),
    "removal before etcd agreed": ("a slow copy", None, 2),
    "joiner counted too late": ("a slow copy", None, 309),
    "epoch not checked": ("a crash", 1, 127),
    "restarted copy taken for unbroken": ("two copies, a disk put back", None, 1_356),
    "reports not heeded": ("two copies, a disk put back", 2, 3_759),
}
"""By rule broken on purpose: the start, the seed, and how many worlds that takes."""

_DEEP = (
    "not within 16,000 worlds of the start made for it: two nodes serve only after a dozen events"
    " and two steps of time"
)
NOT_CAUGHT: dict[str, str] = {
    "promises forgotten in a restart": _DEEP,
    "released before it served": _DEEP,
    "served on while releasing": _DEEP,
    "an unknown proposal taken for a yes": (
        "the copy goes on counting what it counted until its assignment changes once more"
    ),
    "elected without a report": (
        "not within 16,000 worlds: two owners, a disk put back and a write in one story"
    ),
    "high-water ignored": "the same",
}
"""Why the others are not caught here. The first simulator catches each of them."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("bug", CAUGHT_BY)
def test_every_planted_bug_is_caught(bug: str) -> None:
    name, seed, worlds = CAUGHT_BY[bug]
    assert look(STARTS[name], worlds * 3, BUGS[bug], seed).broken is not None


def test_every_bug_of_the_core_is_caught_or_it_is_said_why_not() -> None:
    assert set(CAUGHT_BY) | set(NOT_CAUGHT) == set(BUGS)
