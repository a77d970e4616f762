"""How much of what is sent may be sent again: a budget, so that retries never multiply the load of a cluster that is in trouble.

Each call puts a part of a token into the budget, each retry takes a whole one (gRPC's retry throttling, gRFC A6, does the same).
"""

from __future__ import annotations

from collections import OrderedDict

RATIO = 0.1
"""Retries, as a share of calls."""

_MOST = 100.0
_FIRST = 10.0
_TARGETS_MAX = 1_000


class Budget:
    """Tokens for retries: `ratio` of one for each call, at most 100, and 10 at the beginning (none, if `ratio` is 0)."""

    __slots__ = ("_ratio", "_tokens")

    def __init__(self, ratio: float) -> None:
        self._ratio = ratio
        self._tokens = _FIRST if ratio else 0.0

    def called(self) -> None:
        """A call was made."""
        self._tokens = min(_MOST, self._tokens + self._ratio)

    def has(self) -> bool:
        """Whether a retry is in it."""
        return self._tokens >= 1

    def take(self) -> None:
        """A retry is made."""
        self._tokens -= 1


class Budgets:
    """The budget of a client, and one for each target: one that is in trouble does not use up what the others have."""

    def __init__(self, ratio: float) -> None:
        if not 0 <= ratio <= 1:
            raise ValueError(f"retry_budget is {ratio}; 0 to 1")
        self._ratio = ratio
        self._all = Budget(ratio)
        self._targets: OrderedDict[str, Budget] = OrderedDict()

    def called(self, target: str) -> None:
        """A call was made to a target."""
        self._all.called()
        budget = self._targets.get(target)
        if budget is None:
            budget = self._targets[target] = Budget(self._ratio)
            if len(self._targets) > _TARGETS_MAX:
                self._targets.popitem(last=False)
        budget.called()

    def take(self, target: str) -> bool:
        """Take a retry from both budgets, if both have one."""
        budget = self._targets.get(target)
        if budget is None or not budget.has() or not self._all.has():
            return False
        budget.take()
        self._all.take()
        return True
