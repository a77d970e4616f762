"""Which node is found slow, and when it is trusted again."""

from __future__ import annotations

from collections.abc import Callable

from holdfast_node.replication.core.slowness import (
    BACKOFF_S,
    FLOOR_S,
    FORGET_S,
    PATIENCE_S,
    WINDOW_S,
    Held,
    Slowness,
)

TICK_S = 0.05

Holding = dict[tuple[str, int], Held]


class Watched:
    """A judge that looks every tick; `seq` is what the owner has on disk by now."""

    def __init__(self) -> None:
        self.now = 100.0
        self.seq = 0
        self.judge = Slowness(self.now)

    @property
    def slow(self) -> set[str]:
        return set(self.judge.slow)

    def go_on(
        self,
        seconds: float,
        held: Callable[[], Holding] = dict,
        unwell: tuple[str, ...] = (),
        step: float = TICK_S,
    ) -> None:
        until = self.now + seconds - 1e-9
        while self.now < until:
            self.now += step
            self.seq += 10
            self.judge.look(held(), unwell, self.now)

    def stuck(self, *names: str, shard: int = 0) -> Callable[[], Holding]:
        """These copies stay where they are."""
        at = self.seq
        return lambda: {(name, shard): Held(at, self.seq) for name in names}

    def behind(self, *names: str) -> Callable[[], Holding]:
        """These copies are a little behind at every look, and never for longer."""
        return lambda: {(name, 0): Held(self.seq - 1, self.seq) for name in names}


def test_a_node_is_slow_that_held_up_entries_for_half_a_second() -> None:
    world = Watched()
    held = world.stuck("c")
    world.go_on(PATIENCE_S, held)
    assert world.slow == set()
    world.go_on(2 * TICK_S, held)
    assert world.slow == {"c"}


def test_a_node_that_is_always_a_little_behind_is_not_slow() -> None:
    world = Watched()
    world.go_on(60.0, world.behind("b", "c"))
    assert world.slow == set()


def test_short_holds_add_up_within_the_window_and_are_forgotten_after_it() -> None:
    world = Watched()
    for _ in range(10):
        world.go_on(0.25, world.stuck("c"))
        world.go_on(WINDOW_S)
    assert world.slow == set()
    for _ in range(3):
        world.go_on(0.25, world.stuck("c"))
        world.go_on(0.5)
    assert world.slow == {"c"}


def test_shards_are_counted_together_and_not_twice() -> None:
    world = Watched()
    by_turns = [world.stuck("c", shard=shard) for shard in range(3)]
    for shard in range(3):
        world.go_on(0.2, by_turns[shard])
        assert not world.slow
    world.go_on(0.2, world.stuck("c", shard=3))
    assert world.slow == {"c"}
    again = Watched()
    held = again.stuck("c")
    many = again.stuck("c", shard=1)
    again.go_on(0.3, lambda: held() | many())
    assert again.slow == set(), "0.3 s in two shards at once are 0.3 s"


def test_a_stall_of_the_one_who_judges_is_blamed_on_nobody() -> None:
    world = Watched()
    for _ in range(3):
        world.go_on(3.0, world.stuck("c"), step=3.0)
        world.go_on(1.0)
    assert world.slow == set()


def test_where_everything_is_late_only_long_holds_count() -> None:
    world = Watched()
    world.go_on(5.0, step=0.15)
    for _ in range(40):
        world.go_on(0.3, world.stuck("c"), step=0.15)
        world.go_on(0.3, step=0.15)
    assert world.slow == set()
    held = world.stuck("c")
    world.go_on(3.0, held, step=0.15)
    assert world.slow == {"c"}, "that is long, for everybody"


def test_one_node_at_a_time_is_found_slow_and_the_worst_first() -> None:
    world = Watched()
    world.go_on(0.3, world.stuck("c"))
    world.go_on(PATIENCE_S, world.stuck("b", "c"))
    assert world.slow == {"c"}
    world.go_on(0.3, world.stuck("b"))
    assert world.slow == {"c"}, "what b held up before counts no more"
    world.go_on(PATIENCE_S, world.stuck("b"))
    assert world.slow == {"b", "c"}


def test_a_slow_node_is_trusted_when_it_has_kept_up_for_a_while_each_time_longer() -> None:
    world = Watched()
    waited = []
    for _ in range(9):
        world.go_on(PATIENCE_S + FLOOR_S, world.stuck("c"))
        assert world.slow == {"c"}
        world.go_on(1.0, world.stuck("c"))
        began = world.now
        while world.slow:
            world.go_on(TICK_S)
        waited.append(round(world.now - began))
    shortest, longest = BACKOFF_S
    assert waited == [min(shortest * 2**n, longest) for n in range(9)]
    world.go_on(FORGET_S)
    world.go_on(PATIENCE_S + FLOOR_S, world.stuck("c"))
    world.go_on(shortest + TICK_S)
    assert world.slow == set(), "it was well for long"


def test_a_slow_node_that_still_holds_up_or_does_not_answer_stays_slow() -> None:
    world = Watched()
    world.go_on(PATIENCE_S + FLOOR_S, world.stuck("c"))
    for _ in range(20):
        world.go_on(2.0)
        world.go_on(0.2, world.stuck("c"))
    assert world.slow == {"c"}
    world.go_on(30.0, unwell=("c",))
    assert world.slow == {"c"}
    world.go_on(BACKOFF_S[0] + TICK_S)
    assert world.slow == set()


def test_a_node_that_joins_again_has_to_keep_up_as_long_as_the_first_time() -> None:
    world = Watched()
    for _ in range(3):
        world.go_on(PATIENCE_S + FLOOR_S, world.stuck("c"))
        while world.slow:
            world.go_on(TICK_S)
    world.go_on(PATIENCE_S + FLOOR_S, world.stuck("c"))
    assert world.judge.backoff_s("c") == BACKOFF_S[0] * 8
    world.judge.renewed("c")
    world.judge.renewed("b")
    world.go_on(BACKOFF_S[0] - 1)
    assert world.slow == {"c"}
    world.go_on(1.1)
    assert world.slow == set()
