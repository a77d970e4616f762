"""Answers of a gateway that come in pages, and what is missing from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from holdfast.admin_limits import PAGE_MAX

K = TypeVar("K", str, bytes)


def ask_pages(
    ask_page: Callable[[K, int], Any],
    keys_of: Callable[[Any], Sequence[K]],
    limit: int,
    after: K,
) -> list[Any]:
    """Ask for page after page until there are `limit` rows, or no more. Return the answers.

    `ask_page` gets the key after which the page begins, and how many rows it may have. `keys_of`
    returns the keys of the rows of an answer. `after`: the key after which the first page begins;
    empty: it begins with the first row.
    """
    answers: list[Any] = []
    left = limit
    while True:
        answer = ask_page(after, min(PAGE_MAX, left))
        answers.append(answer)
        keys = keys_of(answer)
        left -= len(keys)
        if not answer.more or not keys or left <= 0:
            return answers
        after = keys[-1]


def gaps(*answers: Any) -> dict[str, list[Any]]:
    """Return what is missing from answers, for JSON: silent nodes, and shards not served.

    Give all pages of a list: a row that an early page lacks is in no later page.
    """
    return {
        "silent": sorted({node for answer in answers for node in answer.silent}),
        "unserved": sorted({shard for answer in answers for shard in answer.unserved}),
    }
