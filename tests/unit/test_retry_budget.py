"""Retry budgets."""

from __future__ import annotations

import pytest
from holdfast.client.retries import retry_pause
from holdfast.client.retry_budget import RetryBudgets


def test_retries_are_a_tenth_of_the_calls_after_the_first_few() -> None:
    budgets = RetryBudgets(0.1)
    for _ in range(1000):
        budgets.called("a")
    assert sum(budgets.take("a") for _ in range(1000)) == 100  # no more are saved up
    for _ in range(50):
        budgets.called("a")
    assert sum(budgets.take("a") for _ in range(100)) in (4, 5)


def test_a_target_in_trouble_does_not_use_up_the_others() -> None:
    budgets = RetryBudgets(0.1)
    for _ in range(300):
        budgets.called("good")
    budgets.called("bad")
    assert sum(budgets.take("bad") for _ in range(100)) == 10
    assert budgets.take("good")
    assert not budgets.take("never called")


def test_none_at_all_and_nonsense() -> None:
    budgets = RetryBudgets(0)
    budgets.called("a")
    assert not budgets.take("a")
    with pytest.raises(ValueError, match="retry_budget"):
        RetryBudgets(2)


def test_pauses_have_full_jitter_above_what_was_asked_for() -> None:
    pauses = [retry_pause(1.0, 3) for _ in range(1000)]
    assert min(pauses) < 1.05
    assert 1.3 < max(pauses) <= 1.4
    assert max(retry_pause(0, 50) for _ in range(1000)) <= 2.0
