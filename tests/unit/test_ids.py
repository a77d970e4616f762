"""Request ids: increasing, and not to be foretold."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
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


FORKS = """
import os
from holdfast.ids import RequestIds, new_request_id

def in_a_fork(make, count):
    reads, writes = os.pipe()
    if os.fork() == 0:
        os.write(writes, b"".join(make() for _ in range(count)))
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads, "rb") as stream:
        told = stream.read()
    os.wait()
    return [told[at : at + 16] for at in range(0, len(told), 16)]

ids = RequestIds()
for _ in range(USED_BEFORE):
    ids.next()
for make in (ids.next, new_request_id):
    made = [*in_a_fork(make, 600), *in_a_fork(make, 600)]
    made += in_a_fork(lambda: in_a_fork(make, 1)[0], 1)
    made += [make() for _ in range(600)]
    assert len(set(made)) == 1801
    # the random bits differ: the time and the counter may well be the same
    assert len({one[8:] for one in made}) == 1801
"""


@pytest.mark.parametrize("used_before", [0, 1, 255, 256, 300])
def test_forked_processes_make_ids_of_their_own(used_before: int) -> None:
    """In a process of its own: this one has threads in gRPC, and may not fork."""
    script = FORKS.replace("USED_BEFORE", str(used_before))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_a_copied_maker_makes_other_ids() -> None:
    """A machine that runs on from a snapshot of its memory twice has all of a maker twice, and its
    process id."""
    ids = RequestIds()
    ids.next()
    twin = copy.deepcopy(ids)
    assert not {ids.next()[8:] for _ in range(600)} & {twin.next()[8:] for _ in range(600)}


def test_threads_that_share_a_maker_make_different_ids() -> None:
    ids = RequestIds()
    barrier = threading.Barrier(8)

    def make(_: int) -> list[bytes]:
        barrier.wait(10)
        return [ids.next() for _ in range(5_000)]

    with ThreadPoolExecutor(8) as pool:
        made = [one for part in pool.map(make, range(8)) for one in part]
    assert len(set(made)) == 40_000
    assert all(one[6] >> 4 == 7 and one[8] >> 6 == 2 for one in made)


def test_no_time_no_key_and_no_effect_begin_alike() -> None:
    assert RequestIds().next()[0] < EFFECT
    assert (effect_id(b"a")[0], idempotent_id("K", "k", "a")[0]) == (EFFECT, KEYED)
    assert effect_id(b"a", b"b") == effect_id(b"a", b"b") != effect_id(b"ab")
