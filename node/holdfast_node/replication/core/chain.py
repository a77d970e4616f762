"""The chain of a log: the list of its terms. Pure.

A *term* is the part of a log that one owner appended under one epoch. It begins with an entry that
holds the nonce of the assignment that made this node the owner. Two logs with the same term have
the same entries up to its beginning: a replica appends only behind an entry equal to the owner's.
So two chains show where their logs part, and how many entries of turns lie behind that place. The
entries themselves are not needed.

Numbers alone do not distinguish a fork from progress. If an operator restores a disk or etcd from
a backup, two different logs can have the same epochs and seqs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

TERMS_MAX = 512
"""The number of terms that a chain keeps. Older terms are not checked any more."""


class Term(NamedTuple):
    """One owner's part of a log. `first` is the seq of its first entry. The term ends where the
    next one begins."""

    epoch: int
    nonce: int
    first: int


def term_at(chain: Sequence[Term], seq: int) -> Term | None:
    """Return the term of an entry; None if the entry is older than the first known term."""
    for term in reversed(chain):
        if term.first <= seq:
            return term
    return None


def until(chain: Iterable[Term], seq: int) -> list[Term]:
    """Return the chain of a log that ends with this seq: its newest `TERMS_MAX` terms."""
    return [term for term in chain if term.first <= seq][-TERMS_MAX:]


def parting(one: Sequence[Term], one_last: int, other: Sequence[Term], other_last: int) -> int:
    """Return the last seq up to which two logs are the same; 0 if they have nothing in common.

    The logs end with the seqs `one_last` and `other_last`.
    """
    if not one or not other:
        return (
            min(one_last, other_last)
            if _unknown(one, one_last) or _unknown(other, other_last)
            else 0
        )
    places = {(term.epoch, term.nonce): i for i, term in enumerate(other)}
    for i in range(len(one) - 1, -1, -1):
        j = places.get((one[i].epoch, one[i].nonce))
        if j is not None:
            return min(_end(one, i, one_last), _end(other, j, other_last))
    return (
        min(one_last, other_last) if _unknown(one, one_last) or _unknown(other, other_last) else 0
    )


def turns_between(chain: Sequence[Term], after: int, last: int) -> int:
    """Return how many entries in (after, last] are of turns: all but the first ones of terms."""
    return max(0, last - after - sum(after < term.first <= last for term in chain))


def _end(chain: Sequence[Term], i: int, last: int) -> int:
    return min(last, chain[i + 1].first - 1) if i + 1 < len(chain) else last


def _unknown(chain: Sequence[Term], last: int) -> bool:
    """Return whether a log's beginning is unknown.

    This holds for a copy converted from format 1, and for one with more terms than a chain keeps.
    """
    return last > 0 and (not chain or chain[0].nonce == 0 or len(chain) >= TERMS_MAX)
