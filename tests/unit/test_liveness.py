"""Whether a process that was stopped for a while may serve."""

from __future__ import annotations

import pytest
from holdfast_node.observe import liveness
from holdfast_node.observe.liveness import Liveness


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(liveness, "boottime", clock)
    return clock


def test_a_process_that_runs_serves_and_needs_no_confirmation(clock: Clock) -> None:
    alive = Liveness(10.0)
    for _ in range(5):
        clock.now += 9.9
        assert alive.ok()
        alive.tick()


@pytest.mark.parametrize("first", ["asked", "ticks"])
def test_after_a_pause_of_a_lease_nothing_is_served_until_etcd_confirms(
    clock: Clock, first: str
) -> None:
    alive = Liveness(10.0)
    clock.now += 10.1
    if first == "asked":
        assert not alive.ok()
    alive.tick()
    assert not alive.ok(), "that it runs again confirms nothing"
    alive.confirm(clock.now - 0.1)
    assert not alive.ok(), "a renewal that ran out before it came is none"
    alive.confirm(clock.now + 10)
    assert alive.ok()
    clock.now += 9.9
    assert alive.ok(), "the time counts from the confirmation"
    clock.now += 0.2
    assert not alive.ok()


def test_where_promises_tell_it_no_pause_counts(clock: Clock) -> None:
    alive = Liveness(10.0, enabled=False)
    clock.now += 1000
    alive.tick()
    assert alive.ok()
