"""The one table of errors, and their way over the wire."""

from __future__ import annotations

import pytest
from holdfast import errors
from holdfast.v1 import objects_pb2 as pb


def every_error() -> list[errors.HoldfastError]:
    rest = {"definite": True, "retryable": True, "retry_after_s": 0.5, "request_id": b"r" * 16}
    return [
        errors.NotFound("m", **rest),
        errors.InvalidArgument("m", path="$.x", **rest),
        errors.ApplicationError("m", type="ValueError", data={"a": 1}, **rest),
        errors.Rejected("m", limit=3),
        errors.WrongOwner("m", **rest),
        errors.Unavailable("m", **rest),
        errors.Overloaded("m", **rest),
        errors.DeadlineExceeded("m", **rest),
        errors.Deadlock("m", cycle=("A/a", "B/b", "A/a"), **rest),
        errors.TooLarge("m", **rest),
        errors.InternalError("m", **rest),
    ]


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("codec", [pb.CODEC_MSGPACK, pb.CODEC_JSON])
def test_an_error_arrives_as_it_was_sent(error: errors.HoldfastError, codec: pb.Codec) -> None:
    back = errors.error_from_proto(errors.error_to_proto(error, codec), codec)
    assert type(back) is type(error)
    assert vars(back) == vars(error)


def test_every_code_is_in_the_table_with_a_class_and_a_status() -> None:
    numbers = {number for number, _, _ in errors.CODES.values()}
    assert numbers == set(pb.Code.values()) - {0}
    assert {cls.code for _, _, cls in errors.CODES.values()} == set(errors.CODES)


def test_an_unknown_code_is_an_internal_error() -> None:
    assert isinstance(errors.error_from_proto(pb.Error(code=99, message="m")), errors.InternalError)  # type: ignore[arg-type]


def test_what_an_error_carries_is_bounded() -> None:
    error = errors.ApplicationError("x" * 1_000_000, data={"d": "y" * 2_000_000})
    wire = errors.error_to_proto(error)
    assert wire.ByteSize() < 11_000
    assert "was left behind" in wire.message
