"""The chain of a log: which owners' terms it is made of. Pure.

A *term* is what one owner appended under one epoch. It begins with an entry that holds the nonce of
the assignment which made that owner. Two logs that have the same term have the same entries up to
its beginning, because a replica appends only behind an entry that equals the owner's. So the chains
of two logs tell where the logs part, and how many entries of turns lie behind that, without a look
at the entries.

Numbers alone cannot tell a fork from progress: a disk, or an etcd, that was put back makes two logs
with the same epochs and seqs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

TERMS_MAX = 512
"""Terms that a chain keeps. What came before them is not checked any more."""


class Term(NamedTuple):
    """One owner's part of a log. `first` is the seq of its first entry; it ends where the next one
    begins."""

    epoch: int
    nonce: int
    first: int


def term_at(chain: Sequence[Term], seq: int) -> Term | None:
    """The term that an entry belongs to; None before the first that is known."""
    for term in reversed(chain):
        if term.first <= seq:
            return term
    return None


def until(chain: Iterable[Term], seq: int) -> list[Term]:
    """The chain of a log that ends with this seq: the newest `TERMS_MAX` terms."""
    return [term for term in chain if term.first <= seq][-TERMS_MAX:]


def parting(one: Sequence[Term], one_last: int, other: Sequence[Term], other_last: int) -> int:
    """The last seq up to which two logs, that end with these seqs, are the same; 0 when they have
    nothing in common."""
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
    """How many entries in (after, last] are of turns: all but the first ones of terms."""
    return max(0, last - after - sum(after < term.first <= last for term in chain))


def _end(chain: Sequence[Term], i: int, last: int) -> int:
    return min(last, chain[i + 1].first - 1) if i + 1 < len(chain) else last


def _unknown(chain: Sequence[Term], last: int) -> bool:
    """Whether a log's beginning is not known: a copy that was converted from format 1, or one with
    more terms than are kept."""
    return last > 0 and (not chain or chain[0].nonce == 0 or len(chain) >= TERMS_MAX)
