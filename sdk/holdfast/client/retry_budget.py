"""A budget for retries, so that retries never multiply the load of a cluster in trouble.

Each call puts a part of a token into the budget. Each retry takes a whole token. gRPC's retry
throttling (gRFC A6) works in the same way.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

RATIO = 0.1
"""The default of retries, as a share of calls."""

_MOST = 100.0
_FIRST = 10.0
_TARGETS_MAX = 1_000


class RetryBudget:
    """Tokens for retries: each call adds `ratio` of a token, up to 100. At the beginning there are
    10, or none if `ratio` is 0.
    """

    __slots__ = ("_counted", "_ratio", "_tokens")

    def __init__(self, ratio: float) -> None:
        self._ratio = ratio
        self._tokens = _FIRST if ratio else 0.0
        self._counted = 0

    def has(self, calls: int) -> bool:
        """Return whether the budget has a retry, after `calls` calls in all."""
        self._tokens = min(_MOST, self._tokens + self._ratio * (calls - self._counted))
        self._counted = calls
        return self._tokens >= 1

    def take(self) -> None:
        """Take one retry out of the budget."""
        self._tokens -= 1


class RetryBudgets:
    """One budget for the whole client, and one for each target. So a target in trouble does not use
    up the retries of others.
    """

    def __init__(self, ratio: float) -> None:
        if not 0 <= ratio <= 1:
            raise ValueError(f"retry_budget must be from 0 to 1, not {ratio}")
        self._ratio = ratio
        self._all = RetryBudget(ratio)
        self._targets: OrderedDict[str, RetryBudget] = OrderedDict()
        self._calls: Counter[str] = Counter()
        self._calls_of_all = 0

    def called(self, target: str) -> None:
        """Count a call to a target. This is on the path of every call, so tokens are counted only
        when a retry asks for one.
        """
        self._calls[target] += 1
        self._calls_of_all += 1

    def take(self, target: str) -> bool:
        """Take a retry from both budgets. Return whether both had one."""
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
