"""Decides for both clients whether a call is sent again, and after which pause."""

from __future__ import annotations

import random

from holdfast.client.retry_budget import RetryBudgets
from holdfast.v1 import objects_pb2 as pb

RETRIED = (pb.CODE_OVERLOADED, pb.CODE_UNAVAILABLE)
"""The codes of refusals after which a client sends a call again, if they are `retryable`."""

_RECONNECT_BACKOFF_S = (0.05, 1.0)
_RETRY_BACKOFF_S = (0.05, 2.0)

STEADY_S = _RECONNECT_BACKOFF_S[1]
"""How long, in seconds, a connection has to last before the pauses begin small again."""


def pause_before_retry(
    budgets: RetryBudgets, target: str, asked_s: float, retries: int, left_s: float
) -> float | None:
    """Return the pause before a refused call is sent again, in seconds. Return None if the deadline
    or the budget does not allow it.
    """
    pause = retry_pause(asked_s, retries)
    return pause if pause < left_s and budgets.take(target) else None


def retry_pause(asked_s: float, retries: int) -> float:
    """Return the pause before a retry, in seconds: the time that the refusal asks for, plus full
    jitter over a doubling backoff.
    """
    least, most = _RETRY_BACKOFF_S
    return asked_s + random.uniform(0, min(most, least * 2 ** min(retries, 10)))


def reconnect_pause(failures: int) -> float:
    """Return the pause before the next gateway is tried, in seconds, after `failures` pauses."""
    least, most = _RECONNECT_BACKOFF_S
    backoff = least * float(2 ** min(failures, 10))
    return min(most, backoff) * random.uniform(0.5, 1.0)
