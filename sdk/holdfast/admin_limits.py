"""The limits of one answer to an operator. Commands, gateways and nodes share them."""

from __future__ import annotations

PAGE_MAX = 1_000
"""The most rows that a page of any list has."""

PAGE_BYTES = 2 << 20
"""About how many bytes the rows of a page have: the row that goes beyond it is the last."""

TOP_MAX = 100
"""The most objects and shards that one answer about load names."""

TOP = 20
"""How many of them the answer names if the request has no limit."""


def page_rows(limit: int) -> int:
    """Return how many rows a page may have. `limit`: the request's limit; 0: none."""
    return min(limit or PAGE_MAX, PAGE_MAX)


def top_rows(limit: int) -> int:
    """Return how many objects and shards to name. `limit`: the request's limit; 0: none."""
    return min(limit or TOP, TOP_MAX)
