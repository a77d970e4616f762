"""How much of what is sent may be sent again: a budget, so that retries never multiply the load of
a cluster that is in trouble.

Each call puts a part of a token into the budget, each retry takes a whole one (gRPC's retry
throttling, gRFC A6, does the same).
"""

from __future__ import annotations

from collections import Counter, OrderedDict

RATIO = 0.1
"""Retries, as a share of calls."""

_MOST = 100.0
_FIRST = 10.0
_TARGETS_MAX = 1_000


class RetryBudget:
    """Tokens for retries: `ratio` of one for each call, at most 100, and 10 at the beginning (none,
    if `ratio` is 0)."""

    __slots__ = ("_counted", "_ratio", "_tokens")

    def __init__(self, ratio: float) -> None:
        self._ratio = ratio
        self._tokens = _FIRST if ratio else 0.0
        self._counted = 0

    def has(self, calls: int) -> bool:
        """Whether a retry is in it, after so many calls."""
        self._tokens = min(_MOST, self._tokens + self._ratio * (calls - self._counted))
        self._counted = calls
        return self._tokens >= 1

    def take(self) -> None:
        """A retry is made."""
        self._tokens -= 1


class RetryBudgets:
    """The budget of a client, and one for each target: one that is in trouble does not use up what
    the others have."""

    def __init__(self, ratio: float) -> None:
        if not 0 <= ratio <= 1:
            raise ValueError(f"retry_budget is {ratio}; 0 to 1")
        self._ratio = ratio
        self._all = RetryBudget(ratio)
        self._targets: OrderedDict[str, RetryBudget] = OrderedDict()
        self._calls: Counter[str] = Counter()
        self._calls_of_all = 0

    def called(self, target: str) -> None:
        """A call was made to a target. On the path of every call: tokens are counted when one is to
        be taken."""
        self._calls[target] += 1
        self._calls_of_all += 1

    def take(self, target: str) -> bool:
        """Take a retry from both budgets, if both have one."""
        calls = self._calls[target]
        budget = self._targets.get(target)
        if budget is None:
            budget = self._targets[target] = RetryBudget(self._ratio)
            if len(self._targets) > _TARGETS_MAX:
                self._calls.pop(self._targets.popitem(last=False)[0], None)
        if not calls or not budget.has(calls) or not self._all.has(self._calls_of_all):
            return False
        budget.take()
        self._all.take()
        return True
