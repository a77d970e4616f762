"""Where two logs part, by their chains."""

from __future__ import annotations

import pytest
from holdfast_node.replication.core.chain import (
    TERMS_MAX,
    Term,
    parting,
    term_at,
    turns_between,
    until,
)

A, B, C, D = Term(1, 11, 1), Term(2, 22, 5), Term(3, 33, 9), Term(3, 44, 9)


@pytest.mark.parametrize(
    ("one", "one_last", "other", "other_last", "same"),
    [
        ([A, B], 8, [A, B], 6, 6),  # one is ahead in the same term
        ([A, B, C], 12, [A, B], 8, 8),
        ([A, B, C], 12, [A, B], 11, 8),  # one went on under a new term, the other in the old one
        ([A, B, C], 12, [A, B, D], 12, 8),  # one epoch twice: etcd was put back
        ([A, C], 12, [A, B], 7, 4),
        ([A], 4, [Term(1, 12, 1)], 4, 0),
        ([], 0, [A], 4, 0),
        ([], 7, [A], 4, 4),  # converted from format 1: its beginning is not known
        ([Term(2, 0, 1)], 7, [A, Term(4, 55, 9)], 12, 7),
    ],
)
def test_two_logs_part_behind_their_last_common_term(
    one: list[Term], one_last: int, other: list[Term], other_last: int, same: int
) -> None:
    assert parting(one, one_last, other, other_last) == same
    assert parting(other, other_last, one, one_last) == same


def test_entries_of_turns_are_all_but_the_first_of_each_term() -> None:
    chain = [A, B, C]
    assert turns_between(chain, 0, 12) == 9
    assert turns_between(chain, 4, 5) == 0
    assert turns_between(chain, 8, 9) == 0
    assert turns_between(chain, 8, 10) == 1
    assert turns_between(chain, 10, 8) == 0


def test_a_chain_knows_whose_an_entry_is_and_keeps_so_many_terms() -> None:
    chain = [A, B, C]
    assert [term_at(chain, seq) for seq in (0, 1, 4, 5, 20)] == [None, A, A, B, C]
    assert until(chain, 8) == [A, B]
    long = [Term(n, n, n) for n in range(1, TERMS_MAX + 10)]
    assert until(long, 1 << 20) == long[-TERMS_MAX:]
