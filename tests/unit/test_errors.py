"""The one table of errors, and their way over the wire."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from holdfast import errors
from holdfast.v1 import objects_pb2 as pb


def every_error() -> list[errors.HoldfastError]:
    rest: dict[str, Any] = {
        "definite": True,
        "retryable": True,
        "retry_after_s": 0.5,
        "request_id": b"r" * 16,
    }
    return [
        errors.NotFound("m", **rest),
        errors.InvalidArgument("m", path="$.x", **rest),
        errors.ApplicationError("m", type="ValueError", data={"a": 1}, **rest),
        errors.Rejected("m", limit=3),
        errors.WrongOwner("m", **rest),
        errors.Unavailable("m", **rest),
        errors.Overloaded("m", **rest),
        errors.DeadlineExceeded("m", **rest),
        errors.Aborted("m", **rest),
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


class _Untellable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (ValueError("too late"), "too late"),
        (ValueError(), "ValueError"),
        (5, "5"),
        (None, "None"),
        (b"x", "b'x'"),
        (_Untellable(), "_Untellable"),
        ("", ""),
    ],
)
def test_an_error_can_be_made_of_anything(message: object, text: str) -> None:
    for cls in (
        errors.Rejected,
        errors.ApplicationError,
        errors.TooLarge,
        errors.InvalidArgument,
        errors.Deadlock,
        errors.Unavailable,
    ):
        error = cls(message)
        assert (error.message, str(error)) == (text, text)
        assert errors.error_to_proto(error).message == text
    assert errors.error_to_proto(errors.InvalidArgument("x", path=5)).path == "5"  # type: ignore[arg-type]


def test_a_refusal_and_a_crash_have_two_statuses() -> None:
    assert (
        errors.grpc_status(errors.error_to_proto(errors.Rejected("no")))
        is grpc.StatusCode.FAILED_PRECONDITION
    )
    assert (
        errors.grpc_status(errors.error_to_proto(errors.ApplicationError("no", type="ValueError")))
        is grpc.StatusCode.UNKNOWN
    )
    assert errors.grpc_status(pb.Error(code=999)) is grpc.StatusCode.INTERNAL  # type: ignore[arg-type]


def test_a_refusal_of_the_users_own_class_is_one() -> None:
    class TooLate(errors.Rejected):
        pass

    for told in (
        errors.error_to_proto(TooLate("no", limit=3)),
        pb.Error(code=pb.CODE_APPLICATION, type="Rejected", message="no"),
    ):
        assert errors.is_refusal(told)
        assert errors.grpc_status(told) is grpc.StatusCode.FAILED_PRECONDITION
        back = errors.error_from_proto(told)
        assert isinstance(back, errors.Rejected)
        assert back.type == told.type
    assert not errors.is_refusal(
        errors.error_to_proto(errors.ApplicationError("no", type="TooLate"))
    )


def test_what_callers_name_is_cut() -> None:
    told = errors.error_to_proto(errors.InvalidArgument("x" * 20_000, path="$." + "k" * (4 << 20)))
    assert len(told.path) < 400
    assert len(told.message) < 11_000
    assert told.path.endswith("... (4194306 characters)")


@pytest.mark.parametrize(
    "data", [b"\xc1", b"\xa1", b"[" * 5_000, b"\x91" * 5_000, b"\x81\x01\x02", b"\x05"]
)
def test_data_that_nobody_can_read_is_left_out(data: bytes) -> None:
    for codec in (pb.CODEC_MSGPACK, pb.CODEC_JSON):
        error = errors.error_from_proto(
            pb.Error(code=pb.CODE_APPLICATION, type="Rejected", message="no", data=data), codec
        )
        assert isinstance(error, errors.Rejected)
        assert error.data == {}


def test_an_error_of_a_call_says_which_call_what_was_raised_and_the_request() -> None:
    error = errors.error_from_proto(
        pb.Error(code=pb.CODE_APPLICATION, message="no", type="ValueError", request_id=b"\x01" * 16)
    )
    assert str(error) == "no"
    error.callee = "Cart/c.add()"
    assert str(error) == f"Cart/c.add(): ValueError: no (request {'01' * 16})"
    assert error.message == "no"
    late = errors.DeadlineExceeded("Cart/c.add(): no reply before the deadline")
    late.callee = "Cart/c.add()"
    assert str(late) == "Cart/c.add(): no reply before the deadline"
    assert str(errors.Rejected("too late", limit=3)) == "too late"
