"""How values look in JSON, as `objects.proto` and docs/guide/other-languages.md say."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import enum
import json
import time
import typing
from decimal import Decimal
from typing import Any
from urllib.parse import quote
from uuid import UUID

import msgspec
import pytest
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status
from holdfast import codec
from holdfast.errors import InvalidArgument, Overloaded, UnfitArguments, error_to_proto
from holdfast.signature import Handler
from holdfast.v1 import objects_pb2 as pb
from holdfast_gateway.edges.status import DOMAIN, cut, details_of
from holdfast_gateway.edges.wide_integers import wide_integers_as_text


class Color(enum.Enum):
    RED = 1


class Pair(typing.NamedTuple):
    a: int
    b: str


@dataclasses.dataclass
class Point:
    x: int


class Struct(msgspec.Struct):
    y: float


VALUES: list[tuple[Any, str, Any]] = [
    (None, "null", type(None)),
    (True, "true", bool),
    (-(2**63), "-9223372036854775808", int),
    (2**64 - 1, "18446744073709551615", int),
    (1.5, "1.5", float),
    (b"\x00\xff", '"AP8="', bytes),
    (Decimal("1.10"), '"1.10"', Decimal),
    (UUID(int=5), '"00000000-0000-0000-0000-000000000005"', UUID),
    (
        dt.datetime(2026, 1, 2, 3, 4, 5, 678000, dt.UTC),
        '"2026-01-02T03:04:05.678000Z"',
        dt.datetime,
    ),
    (dt.datetime(2026, 1, 2), '"2026-01-02T00:00:00"', dt.datetime),
    (dt.date(2026, 1, 2), '"2026-01-02"', dt.date),
    (dt.time(1, 2), '"01:02:00"', dt.time),
    (dt.timedelta(seconds=90.5), '"PT90.5S"', dt.timedelta),
    (Color.RED, "1", Color),
    ((1, "a"), '[1,"a"]', tuple[int, str]),
    ({3}, "[3]", set[int]),
    (Pair(1, "b"), '[1,"b"]', Pair),
    (Point(5), '{"x":5}', Point),
    (Struct(0.5), '{"y":0.5}', Struct),
    ({5: 1}, '{"5":1}', dict[int, int]),
    ({dt.date(2026, 1, 2): 1}, '{"2026-01-02":1}', dict[dt.date, int]),
]


@pytest.mark.parametrize(("value", "text", "hint"), VALUES, ids=[text for _, text, _ in VALUES])
def test_a_value_is_the_same_there_and_back(value: Any, text: str, hint: Any) -> None:
    def takes(self: Any, a: Any) -> None: ...

    takes.__annotations__["a"] = hint
    assert codec.encode_json(value).decode() == text
    handler = Handler("takes", takes, "Kind")
    assert handler.bind(f"[{text}]".encode(), True) == {"a": value}
    assert handler.bind(f'{{"a": {text}}}'.encode(), True) == {"a": value}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_floats_that_are_no_numbers_are_null(value: float) -> None:
    assert codec.encode_json(value) == b"null"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("9007199254740991", "9007199254740991"),
        ("9007199254740992", '"9007199254740992"'),
        ("-9007199254740993", '"-9007199254740993"'),
        ('{"id":18446744073709551615,"n":1}', '{"id":"18446744073709551615","n":1}'),
        ("[1,9007199254740993,2.5]", '[1,"9007199254740993",2.5]'),
        ("0.12345678901234567", "0.12345678901234567"),
        ("12345678901234567.5", "12345678901234567.5"),
        ("1.2345678901234567e300", "1.2345678901234567e300"),
        ("12345678901234567e3", "12345678901234567e3"),
        ('"9007199254740993"', '"9007199254740993"'),
        ('"a \\" 9007199254740993"', '"a \\" 9007199254740993"'),
        ('"\\\\",9007199254740993', '"\\\\","9007199254740993"'),
    ],
)
def test_integers_that_no_double_holds_are_text_when_that_is_asked_for(
    before: str, after: str
) -> None:
    assert wide_integers_as_text(before.encode()).decode() == after
    assert json.loads(f"[{after}]") is not None


def test_an_integer_beyond_2_to_the_53_may_come_as_text_and_no_other() -> None:
    def takes(self: Any, a: int, b: str = "", c: list[int] | None = None) -> None: ...

    handler = Handler("takes", takes, "Kind")
    assert handler.bind(b'["9007199254740993"]', True) == {"a": 9007199254740993}
    assert handler.bind(b'{"a": "-9007199254740993"}', True) == {"a": -9007199254740993}
    assert handler.bind(b'[1, "9007199254740993"]', True) == {"a": 1, "b": "9007199254740993"}
    assert handler.bind(b'{"a": 1, "c": [1, "18446744073709551615"]}', True) == {
        "a": 1,
        "c": [1, 2**64 - 1],
    }
    for wrong in (
        b'["5"]',
        b'["9007199254740991"]',
        b'["99999999999999999999999"]',
        b'["9007199254740993x"]',
    ):
        with pytest.raises(UnfitArguments, match=r"got `str`|64 bits"):
            handler.bind(wrong, True)
    with pytest.raises(UnfitArguments):
        handler.bind(codec.encode(["9007199254740993"]), False)


def test_a_wide_integer_as_text_changes_nothing_else() -> None:
    def takes(self: Any, a: int, name: str = "", data: Any = None) -> None: ...

    handler = Handler("takes", takes, "Kind")
    bound = handler.bind(
        b'{"a": "9007199254740993", "name": "90071992547409930", "data": {"id":'
        b' "00090071992547409930", "n": "90071992547409931"}}',
        True,
    )
    assert bound["name"] == "90071992547409930"
    assert bound["data"] == {"id": "00090071992547409930", "n": "90071992547409931"}
    assert bound["a"] == 9007199254740993


def test_a_large_text_costs_little() -> None:
    text = b'"' + b'1234567890123456 a\\"' * 200_000 + b'"'
    began = time.perf_counter()
    assert wide_integers_as_text(text) == text
    assert time.perf_counter() - began < 1.0


@pytest.mark.parametrize("character", ["a", "\u00e9", "\u6f22", "\U0001f600", "%"])
def test_the_details_of_an_error_fit_into_what_any_client_takes(character: str) -> None:
    wrong = error_to_proto(
        InvalidArgument(character * 9_000, path="$." + character * 1_000, request_id=b"\x01" * 16)
    )
    wrong.message = cut(wrong.message)
    wrong.type = character * 300
    status = Status(code=3, message=wrong.message, details=details_of(wrong))
    sent = len(quote(wrong.message)) + len(base64.b64encode(status.SerializeToString()))
    assert sent < 8_000
    own = pb.Error()
    assert status.details[0].Unpack(own)
    assert own == wrong


def test_an_error_is_told_in_the_forms_of_google_rpc_as_well() -> None:
    wrong = error_to_proto(
        InvalidArgument(
            "lacks `price`", path="$.change.price", definite=True, request_id=b"\x01" * 16
        )
    )
    own, info, request = details_of(wrong)
    error, facts, bad = pb.Error(), error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert own.Unpack(error)
    assert info.Unpack(facts)
    assert request.Unpack(bad)
    assert error == wrong
    assert (facts.reason, facts.domain) == ("INVALID_ARGUMENT", DOMAIN)
    assert dict(facts.metadata) == {
        "definite": "true",
        "request_id": "01" * 16,
        "path": "$.change.price",
    }
    [violation] = bad.field_violations
    assert (violation.field, violation.description) == ("change.price", "lacks `price`")
    _, _, again = details_of(error_to_proto(Overloaded("full", retryable=True, retry_after_s=1.5)))
    retry = error_details_pb2.RetryInfo()
    assert again.Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1500
