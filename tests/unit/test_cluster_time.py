"""The cluster's time: which clocks it follows, and how fast."""

from __future__ import annotations

import pytest
from holdfast_cluster.clocks.cluster_time import AGREED_S, FAR_MS, HEARD_S, LONELY_S, SLEW, Clock
from holdfast_cluster.placement.model import Member
from holdfast_cluster.process.time_keeper import hosts_wanted

HOUR = 3_600_000.0
NOW = 1_000_000.0  # ms by a clock that is right


class Process:
    """A process whose host's wall clock is `off` ms ahead, in a world in which `now` seconds have
    passed."""

    def __init__(self, off: float = 0.0, now: float = 0.0, host: str = "a") -> None:
        self.host = host
        self.off = off
        self.now = now
        self.clock = Clock(self.wall, now)

    @property
    def wall(self) -> float:
        return NOW + self.now * 1000 + self.off

    @property
    def error(self) -> float:
        """How far ahead of the right time the cluster's is here, in ms."""
        return self.clock.now_ms(self.now) - (NOW + self.now * 1000)

    def hear(
        self,
        _seconds: float = 5.0,
        _wanted: int = 3,
        _serving: bool = False,
        **others: float | tuple[float, float],
    ) -> None:
        """Time passes; then these hosts tell their clocks: how far their walls are ahead, and the
        cluster's time if they have it."""
        self.now += _seconds
        for host, told in others.items():
            wall, cluster = told if isinstance(told, tuple) else (told, None)
            right = NOW + self.now * 1000
            self.clock.heard(
                host, right + wall, None if cluster is None else right + cluster, self.now
            )
        self.clock.correct(
            self.host, {*others, self.host} - {""}, _wanted, self.wall, _serving, self.now
        )


def test_a_process_starts_by_the_clocks_of_a_majority_not_by_its_own() -> None:
    for off in (HOUR, -HOUR):
        process = Process(off)
        process.hear(0.1)
        assert not process.clock.started
        process.hear(0.1, b=0.0)
        assert not process.clock.started, "two of three differ, and nobody knows which is right"
        process.hear(0.1, b=0.0, c=0.0)
        assert process.clock.started
        assert process.error == pytest.approx(0.0, abs=1)
    process = Process(HOUR)
    process.hear(0.1, b=0.0, c=20.0)
    assert process.clock.started
    assert process.error == pytest.approx(20.0, abs=1)


def test_a_process_that_starts_takes_the_time_of_those_that_run() -> None:
    process = Process(0.0)
    process.hear(0.1, b=(0.0, 5_000.0), c=(0.0, 5_100.0))
    assert process.error == pytest.approx(5_000.0, abs=1), (
        "nobody but those that run says what the cluster's time is"
    )
    wrong = Process(HOUR)
    wrong.hear(0.1, b=(0.0, 0.0))
    assert wrong.error == pytest.approx(0.0, abs=1), (
        "it runs, so it knows better than a clock of which nobody knows anything"
    )
    late = Process(0.0)
    late.hear(0.1, b=(HOUR, HOUR), c=0.0)
    assert late.error == pytest.approx(0.0, abs=1), (
        "a clock that is wrong does not become the cluster's because it ran first"
    )
    between = Process(0.0)
    between.hear(0.1, b=(0.0, 0.0), c=(HOUR, HOUR))
    assert between.error == pytest.approx(0.0, abs=1), "most clocks are with b"


def test_a_process_that_hears_nobody_starts_by_its_own_clock_once_it_has_served_for_a_while() -> (
    None
):
    process = Process(HOUR)
    for _ in range(100):
        process.hear(1.0)
    assert not process.clock.started
    for _ in range(int(LONELY_S)):
        assert not process.clock.started
        process.hear(1.0, _serving=True)
    assert process.clock.started
    assert process.error == pytest.approx(HOUR, abs=1)
    single = Process(HOUR)
    single.hear(0.1, 1)
    assert single.clock.started, "there are no others"


def test_a_wall_clock_that_jumps_changes_nothing_there_or_elsewhere() -> None:
    process = Process()
    process.hear(b=0.0, c=0.0)
    for _ in range(500):
        process.off = -HOUR
        process.hear(b=0.0, c=0.0)
        assert process.error == pytest.approx(0.0, abs=6)
    process.off = 0.0
    for _ in range(500):
        process.hear(b=HOUR, c=0.0)
    assert process.error == pytest.approx(0.0, abs=6)
    assert process.clock.differing(process.now) == {"b": pytest.approx(HOUR, abs=6)}


def test_time_is_slewed_to_the_majority_and_never_goes_back() -> None:
    process = Process()
    process.hear(b=0.0, c=0.0)
    shown = process.clock.now_ms(process.now)
    for _ in range(20):
        before = process.error
        process.hear(b=-30_000.0, c=-30_000.0)
        assert process.error == pytest.approx(before - 5_000 * SLEW, abs=2)
        assert process.clock.now_ms(process.now) >= shown
        shown = process.clock.now_ms(process.now)
    error = process.error
    for _ in range(4):
        process.hear(b=0.0, c=0.0)
        assert process.error > error
        error = process.error


def test_between_two_clocks_that_differ_time_runs_freely() -> None:
    process = Process()
    process.hear(0.1, 2, b=0.0)
    for _ in range(100):
        process.hear(5.0, 2, b=HOUR)
    assert process.error == pytest.approx(0.0, abs=1)


def test_without_a_majority_time_runs_freely() -> None:
    process = Process()
    process.hear(b=0.0, c=0.0)
    process.off = HOUR
    for _ in range(int(HEARD_S)):
        process.now += 1
        process.clock.correct("a", {"a", "b", "c"}, 3, process.wall, True, process.now)
    error = process.error
    for _ in range(100):
        process.now += 1
        process.clock.correct("a", {"a", "b", "c"}, 3, process.wall, True, process.now)
    assert process.error == error


def test_time_jumps_forward_only_when_a_majority_has_been_far_ahead_for_long() -> None:
    process = Process()
    process.hear(b=0.0, c=0.0)
    for _ in range(int(AGREED_S / 5) - 1):
        process.hear(b=HOUR, c=HOUR)
    assert process.error < AGREED_S * 1000 * SLEW + 100
    process.hear(b=0.0, c=HOUR)  # it agrees no more
    for _ in range(int(AGREED_S / 5) - 1):
        process.hear(b=HOUR, c=HOUR)
    assert process.error < HOUR / 2
    for _ in range(2):
        process.hear(b=HOUR, c=HOUR)
    assert process.error == pytest.approx(HOUR, abs=1)
    near = Process()
    near.hear(b=0.0, c=0.0)
    for _ in range(3):
        near.hear(b=FAR_MS / 2, c=FAR_MS / 2)
    assert near.error < FAR_MS / 4, "it is slewed"


def test_a_host_has_one_vote_and_a_gateway_none() -> None:
    gateway = Process(HOUR, host="")
    gateway.hear(0.1, 0, b=HOUR)
    assert not gateway.clock.started
    gateway.hear(0.1, 0, b=(HOUR, 0.0))
    assert gateway.clock.started
    assert gateway.error == pytest.approx(0.0, abs=1)
    for _ in range(20):
        gateway.hear(5.0, 0, b=(HOUR, 500.0), c=(HOUR, 500.0))
    assert gateway.error == pytest.approx(500.0, abs=6)


def test_a_replaced_node_is_no_second_one_on_its_host() -> None:
    """A new node at the address of one that was in the view still took its own wrong clock: two
    hosts were enough."""
    old, new = Member("n1-old", "m1:7401", 2, "m1"), Member("n1-new", "m1:7401", 1, "m1")
    other, third = Member("n0", "m0:7401", 1, "m0"), Member("n2", "m2:7401", 1, "m2")
    assert hosts_wanted([old, new, other], {"m0", "m1"}, "m1:7401", 3) == 3
    assert hosts_wanted([old, other], {"m0", "m1"}, "m1:7401", 3) == 3, (
        "before it is in the view itself"
    )
    assert hosts_wanted([new, other, third], {"m0", "m1", "m2"}, "m1:7401", 3) == 3
    shared = [Member(f"n{i}", f"m:740{i}", 1, "m") for i in range(3)]
    assert hosts_wanted(shared, {"m"}, "m:7400", 3) == 1
    assert hosts_wanted([*shared[:2], other], {"m", "m0"}, "m:7400", 3) == 2
    assert hosts_wanted([new, other], {"m0", "m1"}, "", 0) == 0, "a gateway"
