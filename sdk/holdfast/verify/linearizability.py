"""Decides whether a history of calls to one object is linearizable: whether one order of the calls,
each between its begin and its end, explains all results.

The algorithm is that of Wing and Gong (JPDC 1993), with the memory of Lowe (CCPE 2017). It is a
depth-first search for an order. It never looks twice at the same set of calls with the same state.
Each object's calls are checked alone, because linearizability is local. The search is exponential
in the number of calls that overlap, so use at most ten clients an object and a few thousand calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

NEVER = float("inf")


class Call(NamedTuple):
    """One call: when it began and ended, the request, and the result. An `end` of NEVER means that
    it is unknown whether the call took effect.
    """

    begin: float
    end: float
    what: tuple[Any, ...]
    result: Any = None


Model = Callable[[Any, tuple[Any, ...], Any], tuple[bool, Any]]
"""Return whether a result fits a state and a request, and the state afterwards. A call without an
end has no result.
"""


def register(state: int, what: tuple[Any, ...], result: Any) -> tuple[bool, int]:
    """Model one number: ("read",), ("write", value), ("swap", expected, value). The result `...`
    always fits.
    """
    if what[0] == "read":
        return result is ... or result == state, state
    if what[0] == "write":
        return True, what[1]
    done = state == what[1]
    return result is ... or result == done, what[2] if done else state


def linearizable(
    calls: Sequence[Call], model: Model, initial: Any, budget_s: float = 30.0
) -> bool | None:
    """Return whether such an order exists; None if `budget_s` seconds were not enough to tell. The
    order may leave out calls without an end.
    """
    ordered = sorted(call if call.end != NEVER else call._replace(result=...) for call in calls)
    count = len(ordered)
    known = sum(call.end != NEVER for call in ordered)
    deadline = time.monotonic() + budget_s
    # A state of the search: the first call that has no place yet; the calls after it that have a
    # place (as bits); how many ended calls have a place; the object's state.
    stack: list[tuple[int, int, int, Any]] = [(0, 0, 0, initial)]
    seen: set[tuple[int, int, Any]] = set()
    steps = 0
    while stack:
        first, placed, done, state = stack.pop()
        if done == known:
            return True
        steps += 1
        if steps % 1024 == 0 and time.monotonic() > deadline:
            return None
        soonest = NEVER
        for i in range(first, count):
            call = ordered[i]
            if call.begin > soonest:
                break
            if placed >> (i - first) & 1:
                continue
            soonest = min(soonest, call.end)
            fits, after = model(state, call.what, call.result)
            if not fits:
                continue
            then, at = placed | 1 << (i - first), first
            while then & 1:
                then >>= 1
                at += 1
            key = (at, then, after)
            if key not in seen:
                seen.add(key)
                stack.append((at, then, done + (call.end != NEVER), after))
    return False
