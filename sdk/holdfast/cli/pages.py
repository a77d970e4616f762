"""Answers of a gateway that come in pages, and what is missing from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

_PAGE = 1_000  # rows


def ask_pages(
    ask_page: Callable[[str, int], Any],
    keys_of: Callable[[Any], Sequence[str]],
    limit: int,
    after: str = "",
) -> list[Any]:
    """Ask for page after page until there are `limit` rows, or no more. Return the answers.

    `ask_page` gets the key after which the page begins, and how many rows it may have. `keys_of`
    returns the keys of the rows of an answer.
    """
    answers: list[Any] = []
    left = limit
    while True:
        answer = ask_page(after, min(_PAGE, left))
        answers.append(answer)
        keys = keys_of(answer)
        left -= len(keys)
        if not answer.more or not keys or left <= 0:
            return answers
        after = keys[-1]


def gaps(answer: Any) -> dict[str, list[Any]]:
    """Return what is missing from an answer, for JSON: silent nodes, and shards not served."""
    return {"silent": list(answer.silent), "unserved": list(answer.unserved)}
