"""The checker of histories: it must accept what can be explained, and refuse what cannot."""

from __future__ import annotations

import random

from holdfast.verify.linearizability import NEVER, Call, linearizable, register


def check(*calls: Call) -> bool | None:
    return linearizable(calls, register, 0)


def test_calls_one_after_the_other_have_one_order() -> None:
    assert check(Call(0, 1, ("write", 5)), Call(2, 3, ("read",), 5))
    assert not check(Call(0, 1, ("write", 5)), Call(2, 3, ("read",), 0))  # a stale read
    assert not check(Call(0, 1, ("read",), 5), Call(2, 3, ("write", 5)))  # a read of the future


def test_calls_that_overlap_may_have_any_order() -> None:
    assert check(Call(0, 3, ("write", 5)), Call(1, 2, ("read",), 0))
    assert check(Call(0, 3, ("write", 5)), Call(1, 2, ("read",), 5))
    # there and gone again
    assert not check(Call(0, 9, ("write", 5)), Call(1, 2, ("read",), 5), Call(3, 4, ("read",), 0))


def test_a_call_that_nobody_heard_the_end_of_may_have_happened_at_any_time_or_never() -> None:
    lost = Call(0, NEVER, ("write", 5))
    assert check(lost, Call(1, 2, ("read",), 0))
    assert check(lost, Call(1, 2, ("read",), 0), Call(3, 4, ("read",), 5))
    assert not check(lost, Call(1, 2, ("read",), 5), Call(3, 4, ("read",), 0))


def test_a_swap_happens_only_where_its_answer_says_so() -> None:
    assert check(Call(0, 1, ("swap", 0, 7), True), Call(2, 3, ("read",), 7))
    assert check(Call(0, 1, ("swap", 3, 7), False), Call(2, 3, ("read",), 0))
    assert not check(Call(0, 2, ("swap", 0, 1), True), Call(0, 2, ("swap", 0, 2), True))


def history(seed: int, stale: bool) -> list[Call]:
    """Eight clients on a real register; with `stale` one read in the middle answers with a value
    that was overwritten long ago."""
    chance = random.Random(seed)
    value, calls, at = 0, [], 0.0
    for n in range(1, 600):
        at += 1.0
        begin, end = at - 4 * chance.random(), at + 4 * chance.random()
        if chance.random() < 0.5:
            value = n
            calls.append(Call(begin, end, ("write", n)))
        else:
            calls.append(Call(begin, end, ("read",), 0 if stale and n > 300 else value))
    return calls


def test_long_histories_are_decided_in_time() -> None:
    for seed in range(5):
        assert linearizable(history(seed, stale=False), register, 0, budget_s=20) is True
        assert linearizable(history(seed, stale=True), register, 0, budget_s=20) is False
    tangle = [Call(0, 10, ("write", n)) for n in range(40)] + [Call(11, 12, ("read",), -1)]
    assert linearizable(tangle, register, 0, budget_s=0.5) is None
