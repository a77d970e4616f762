"""Frames of calls are counted before they are decoded."""

from __future__ import annotations

import os
import time

from holdfast.frames import ENVELOPE_BYTES_MAX, MESSAGES_MAX, too_many, too_wide
from holdfast.v1 import objects_pb2 as pb
from hypothesis import given, settings
from hypothesis import strategies as st

EMPTY = b"\x0a\x00"
FIELDS_MAX = 2 * MESSAGES_MAX


def test_as_many_calls_as_may_be_pass_and_one_more_does_not() -> None:
    assert not too_many(EMPTY * FIELDS_MAX)
    assert too_many(EMPTY * (FIELDS_MAX + 1))
    assert not too_many(b"")


def test_long_forms_of_the_tag_count_as_well() -> None:
    for tag in (b"\x8a\x00", b"\x8a\x80\x00", b"\x8a\x80\x80\x80\x00"):
        frame = (tag + b"\x00") * (FIELDS_MAX + 1)
        assert len(pb.SessionRequest.FromString(frame).calls) == FIELDS_MAX + 1
        assert too_many(frame)


def test_calls_whose_contents_look_like_tags_pass() -> None:
    calls = [pb.Call(id=i, arguments=EMPTY * 500 + os.urandom(2000)) for i in range(300)]
    frame = pb.SessionRequest(calls=calls, cancel=range(900)).SerializeToString()
    assert frame.count(b"\x0a") > FIELDS_MAX
    assert not too_many(frame)


def test_what_cannot_be_read_is_too_much() -> None:
    start = EMPTY * FIELDS_MAX
    for rest in (
        b"\x0a",
        b"\x0a\x05abc",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x8a",
        b"\x0a\x80",
    ):
        assert too_many(start + rest)


@settings(max_examples=300)
@given(st.lists(st.one_of(st.just(EMPTY), st.binary(max_size=6)), max_size=5000))
def test_no_frame_that_passes_has_more(parts: list[bytes]) -> None:
    frame = b"".join(parts)
    if too_many(frame):
        return
    try:
        calls = pb.SessionRequest.FromString(frame).calls
    except Exception:
        return
    assert len(calls) <= FIELDS_MAX


def test_a_frame_of_eight_mebibytes_costs_little() -> None:
    bomb = EMPTY * (4 << 20)
    began = time.thread_time()
    assert too_many(bomb)
    assert time.thread_time() - began < 0.5, "decoded it would be seconds and gigabytes"


def test_a_call_with_a_huge_envelope_is_refused_and_one_with_large_arguments_is_not() -> None:
    large = pb.Call(
        id=1,
        kind="K",
        key="a",
        method="m",
        arguments=EMPTY * (2 << 20),
        metadata={"a": "x" * 200_000},
    )
    assert not too_many(pb.SessionRequest(calls=[large] * 2).SerializeToString())
    for bomb in (
        pb.Call(id=1, metadata={f"{i:x}": "" for i in range(200_000)}),
        pb.Call(id=1, metadata={"a": "x" * (2 * ENVELOPE_BYTES_MAX)}),
        pb.Call(id=1, chain=[""] * 600_000),
        pb.Call(id=1, kind="k" * (2 * ENVELOPE_BYTES_MAX)),
    ):
        frame = pb.SessionRequest(calls=[pb.Call(id=2), bomb]).SerializeToString()
        began = time.thread_time()
        assert too_many(frame)
        assert time.thread_time() - began < 0.5
    most = pb.Call(id=1, metadata={f"{i:x}": "" for i in range(20_000)})
    assert most.ByteSize() < ENVELOPE_BYTES_MAX
    assert not too_many(pb.SessionRequest(calls=[most]).SerializeToString())


def test_a_unary_request_is_measured_by_its_own_fields() -> None:
    def wide(request: pb.CallRequest) -> bool:
        raw = request.SerializeToString()
        return too_wide(raw, 0, len(raw), frozenset((4, 5)))

    assert not wide(
        pb.CallRequest(kind="K", key="a", json="x" * (4 << 20), timeout_ms=5, drawn=True)
    )
    assert not wide(pb.CallRequest(kind="K", key="a", msgpack=b"x" * (4 << 20)))
    assert wide(pb.CallRequest(kind="K", key="a", metadata={f"{i:x}": "" for i in range(200_000)}))
    assert too_wide(b"\x0d\0\0\0\0", 0, 5, frozenset()), "a call has no such fields"
