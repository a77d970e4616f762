"""Request ids: increasing, and not to be foretold."""

from __future__ import annotations

import itertools

from holdfast.ids import EFFECT, KEYED, RequestIds, effect_id, idempotent_id


def test_ids_increase_and_are_uuids_of_version_7() -> None:
    ids = RequestIds()
    made = [ids.next() for _ in range(10_000)]
    assert made == sorted(set(made))
    assert all(len(one) == 16 and one[6] >> 4 == 7 and one[8] >> 6 == 2 for one in made)


def test_nobody_tells_the_next_id_from_those_before() -> None:
    ids = RequestIds()
    low = [int.from_bytes(ids.next()[8:], "big") & 0x3FFF_FFFF_FFFF_FFFF for _ in range(1_000)]
    steps = {(later - earlier) % (1 << 62) for earlier, later in itertools.pairwise(low)}
    assert len(steps) == 999
    assert 400 < sum(one >> 61 for one in low) < 600


def test_no_time_no_key_and_no_effect_begin_alike() -> None:
    assert RequestIds().next()[0] < EFFECT
    assert (effect_id(b"a")[0], idempotent_id("K", "k", "a")[0]) == (EFFECT, KEYED)
    assert effect_id(b"a", b"b") == effect_id(b"a", b"b") != effect_id(b"ab")
