"""Handlers decode, check and explain their arguments."""

from __future__ import annotations

import datetime
from typing import Any

import msgspec
import pytest
from holdfast.errors import InvalidArgument
from holdfast.signature import Handler, encode_arguments


class Change(msgspec.Struct):
    price: int


class Thing:
    def method(self, a: int, b: str = "x", *, when: datetime.datetime | None = None) -> Any:
        return a, b, when

    def nested(self, change: Change, more: list[int] = []) -> Any:  # noqa: B006
        return change, more

    def star(self, *args: int) -> None: ...


METHOD = Handler("method", Thing.method, "Thing")
NESTED = Handler("nested", Thing.nested, "Thing")


def invoke(handler: Handler, as_json: bool, *positional: Any, **named: Any) -> Any:
    payload = encode_arguments(positional, named)
    if as_json:
        payload = msgspec.json.encode(msgspec.msgpack.decode(payload))
    return handler.invoke(Thing(), payload, as_json)


@pytest.mark.parametrize("as_json", [False, True])
def test_positional_named_and_mixed_arguments_arrive(as_json: bool) -> None:
    now = datetime.datetime.now(datetime.UTC)
    assert invoke(METHOD, as_json, 1) == (1, "x", None)
    assert invoke(METHOD, as_json, 1, "y") == (1, "y", None)
    assert invoke(METHOD, as_json, a=3, when=now) == (3, "x", now)
    assert invoke(METHOD, as_json, 1, b="z") == (1, "z", None)
    assert invoke(NESTED, as_json, Change(7), [1]) == (Change(7), [1])


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    ("handler", "positional", "named", "path", "says"),
    [
        (METHOD, (), {}, "$.a", "lacks 'a'"),
        (METHOD, ("x",), {}, "$.a", "Expected `int`, got `str`"),
        (METHOD, (), {"a": "x"}, "$.a", "Expected `int`, got `str`"),
        (METHOD, (1, "y", 3), {}, "$", "takes at most 2 positional arguments, got 3"),
        (METHOD, (1,), {"a": 2}, "$.a", "got 'a' twice"),
        (METHOD, (1,), {"d": 2}, "$.d", "has no argument 'd'"),
        (NESTED, ({"price": "q"},), {}, "$.change.price", "Expected `int`, got `str`"),
        (NESTED, ({"price": 1}, [1, "a"]), {}, "$.more[1]", "Expected `int`, got `str`"),
    ],
)
def test_wrong_arguments_are_refused_with_their_path(
    as_json: bool, handler: Handler, positional: Any, named: Any, path: str, says: str
) -> None:
    with pytest.raises(InvalidArgument, match=r"\(\)") as caught:
        invoke(handler, as_json, *positional, **named)
    assert caught.value.path == path
    assert says in caught.value.message
    assert caught.value.definite


def test_garbage_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="cannot read its arguments"):
        METHOD.invoke(Thing(), b"\xff\x00garbage")


def test_handlers_with_variable_arguments_cannot_be_registered() -> None:
    with pytest.raises(TypeError, match=r"Thing\.star: \*args"):
        Handler("star", Thing.star, "Thing")
