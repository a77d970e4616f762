"""What a class has to be to be a kind, and what its arguments may be: told at registration, with
what to do."""

from __future__ import annotations

import dataclasses
import enum
import ipaddress
import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NewType, TypedDict

import annotated_types
import attrs
import msgspec
import pydantic
import pytest
from holdfast import App, DurableObject, InvalidArgument, codec
from holdfast.signature import Handler, encode_arguments


class Inner(pydantic.BaseModel):
    at: datetime
    tags: set[str] = set()


class Order(pydantic.BaseModel):
    id: int = pydantic.Field(gt=0, alias="orderId")
    inner: Inner
    before: Order | None = None


@attrs.define
class Point:
    x: int
    y: int = 2


class Pair(NamedTuple):
    a: int
    b: str


class Options(TypedDict, total=False):
    name: str


class Colour(enum.Enum):
    RED = "red"


class Places(pydantic.BaseModel):
    """Of types that msgspec does not know."""

    url: pydantic.HttpUrl
    path: Path
    ip: ipaddress.IPv4Address
    raw: bytes = b"\xff\x00"


class Counted(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)
    n: int
    at: datetime

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def twice(self) -> int:
        return 2 * self.n


class ReadAs(pydantic.BaseModel):
    a: int = pydantic.Field(validation_alias="b")


class WrittenAs(pydantic.BaseModel):
    a: int = pydantic.Field(serialization_alias="b")


class Excluded(pydantic.BaseModel):
    a: int = pydantic.Field(exclude=True)


class Login(pydantic.BaseModel):
    password: pydantic.SecretStr


class HoldsLogin(pydantic.BaseModel):
    logins: list[dict[str, Login | None]]


@pydantic.dataclasses.dataclass
class Validated:
    x: int = pydantic.Field(default=0, ge=0)


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    id: uuid.UUID
    at: datetime


@dataclasses.dataclass
class Unbounded:
    x: Annotated[int, annotated_types.Gt(0)]


@dataclasses.dataclass
class Bounded:
    x: Annotated[int, msgspec.Meta(gt=0)]


class Opaque:
    pass


@dataclasses.dataclass
class Holds:
    deep: list[dict[str, Opaque]]


class Tree(msgspec.Struct):
    children: list[Tree] = []


# The hints of nested classes are looked up here.
globals().update(
    {
        cls.__name__: cls
        for cls in (
            Inner,
            Order,
            Point,
            Pair,
            Options,
            Colour,
            Opaque,
            Holds,
            Tree,
            Places,
            Counted,
        )
    }
)


def register(**members: Any) -> None:
    App().kind(type("Thing", (DurableObject,), members))


@pytest.mark.parametrize(
    "name",
    [
        "log",
        "notify",
        "key",
        "kind",
        "request",
        "caller",
        "objects",
        "storage",
        "get_alarm",
        "epoch",
    ],
)
@pytest.mark.parametrize(
    "value",
    [lambda self: None, property(lambda self: 1), 7],
    ids=["method", "property", "attribute"],
)
def test_what_would_hide_the_base_class_is_refused(name: str, value: Any) -> None:
    with pytest.raises(
        TypeError, match=rf"Thing\.{name} would hide DurableObject\.{name}: give it another name"
    ):
        register(**{name: value})


def test_what_a_mixin_hides_is_refused_too() -> None:
    class Mixin:
        def log(self) -> None: ...

    with pytest.raises(TypeError, match=r"Thing\.log would hide"):
        App().kind(type("Thing", (Mixin, DurableObject), {}))


def test_the_hooks_are_for_overriding() -> None:
    def hook(self: Any, *given: Any) -> None: ...

    register(
        on_alarm=hook, on_activate=hook, on_evict=hook, __init__=hook, _private=staticmethod(hook)
    )
    with pytest.raises(TypeError, match=r"Holdfast calls Thing\.on_alarm, so it must be a method"):
        register(on_alarm=7)


@pytest.mark.parametrize("make", [staticmethod, classmethod])
def test_what_has_no_object_is_no_handler(make: Any) -> None:
    with pytest.raises(TypeError, match=rf"Thing\.helper is a {make.__name__}, .*`_helper`"):
        register(helper=make(lambda *given: None))


def test_positional_only_arguments_and_a_missing_self_are_refused() -> None:
    def by_position(self: Any, a: int, /, b: int) -> None: ...

    def no_self() -> None: ...

    def only_named(*, a: int) -> None: ...

    def fine(self: Any, /, a: int) -> None: ...

    with pytest.raises(TypeError, match=r"Thing\.m: a is positional-only: remove the `/`"):
        register(m=by_position)
    for function in (no_self, only_named):
        with pytest.raises(TypeError, match=r"Thing\.m has no `self`"):
            register(m=function)
    register(m=fine)


@pytest.mark.parametrize(
    ("hint", "says"),
    [
        (complex, "values of complex cannot be encoded: use a list of two floats"),
        (Opaque, "values of Opaque cannot be encoded: use a dataclass"),
        (Holds, "values of Opaque cannot be encoded"),
        (dict[str, list[Opaque]], "values of Opaque"),
        (Opaque | None, "values of Opaque"),
        (Callable[[], int], "values of Callable"),
        (Iterable[int], "values of Iterable"),
        (object, "use Any"),
        (type, "values of type"),
        (Annotated[int, msgspec.Meta(min_length=2)], "cannot be sent over the wire"),
        (ReadAs, "ReadAs.a is read as 'b' and written as 'a': give it one `alias`"),
        (list[WrittenAs], "WrittenAs.a is read as 'a' and written as 'b'"),
        (Excluded, "Excluded.a is excluded when it is written, but required when it is read"),
        (Login, "Login.password: pydantic masks a secret"),
        (list[HoldsLogin], "Login.password: pydantic masks a secret"),
        (Validated, "Validated is a pydantic dataclass, which would not be validated"),
        (Annotated[str, annotated_types.Predicate(str.isupper)], "would not be checked"),
        (Annotated[float, pydantic.Field(allow_inf_nan=False)], "would not be checked"),
        (Annotated[int, pydantic.AfterValidator(abs)], "would not be checked"),
        (Unbounded, "the bounds of Unbounded.x would not be checked: use msgspec.Meta"),
        (dict[str, Unbounded], "the bounds of Unbounded.x would not be checked"),
    ],
)
def test_a_hint_whose_values_cannot_be_sent_is_refused(hint: Any, says: str) -> None:
    def takes(self: Any, a: Any) -> None: ...

    def gives(self: Any) -> Any: ...

    takes.__annotations__ = {"a": hint}
    gives.__annotations__ = {"return": hint}
    for function in (takes, gives):
        with pytest.raises(
            TypeError,
            match=(
                r"Thing\.m: (a type hint cannot be sent over the wire|the bounds of an argument"
                r" cannot be checked)"
            ),
        ) as refused:
            register(m=function)
        assert says in str(refused.value)


VALUES = [
    (
        Order,
        Order(orderId=3, inner=Inner(at=datetime(2030, 1, 2, 3, 4, 5, 678, UTC), tags={"a", "b"})),
    ),
    (list[Order | None], [None, Order(orderId=3, inner=Inner(at=datetime.now(UTC)), before=None)]),
    (
        Order,
        Order(
            orderId=3,
            inner=Inner(at=datetime.now(UTC)),
            before=Order(orderId=2, inner=Inner(at=datetime.now(UTC))),
        ),
    ),
    (Point, Point(1)),
    (Pair, Pair(1, "b")),
    (Options, {"name": "x"}),
    (Colour, Colour.RED),
    (Tree, Tree([Tree(), Tree([Tree()])])),
    (dict[str, Annotated[int, annotated_types.Ge(0)]], {"a": 0}),
    (Literal["a", 2], 2),
]


@pytest.mark.parametrize(("hint", "value"), VALUES)
@pytest.mark.parametrize("as_json", [False, True])
def test_what_can_be_sent_arrives_as_it_was(hint: Any, value: Any, as_json: bool) -> None:
    def echo(self: Any, a: Any) -> Any:
        return a

    echo.__annotations__ = {"a": hint, "return": hint}
    handler = Handler("echo", echo, "Thing")
    for payload in (encode_arguments((value,), {}), encode_arguments((), {"a": value})):
        if as_json:
            payload = codec.encode_json((value,))
        assert handler.invoke(None, payload, as_json) == value
    assert codec.decode(codec.encode(value), hint) == value


BOUNDED = [
    Annotated[int, msgspec.Meta(ge=0, lt=10)],
    Annotated[int, annotated_types.Ge(0), annotated_types.Lt(10)],
    Annotated[int, annotated_types.Interval(ge=0, lt=10)],
    Annotated[int, pydantic.Field(ge=0, lt=10)],
    Annotated[int, pydantic.Field(ge=0, lt=10, description="how many", title="n")],
    NewType("Few", Annotated[int, annotated_types.Interval(ge=0, lt=10)]),
    Annotated[int, "a note that means nothing here", msgspec.Meta(ge=0), annotated_types.Lt(10)],
]


def test_bounds_that_exclude_each_other_are_refused_by_name() -> None:
    def takes(self: Any, a: Any) -> None: ...

    takes.__annotations__ = {"a": Annotated[int, annotated_types.Gt(0), annotated_types.Ge(0)]}
    with pytest.raises(TypeError, match=r"Thing\.m: the bounds of an argument cannot be checked"):
        register(m=takes)


@pytest.mark.parametrize(
    "value",
    [
        Places(url="https://example.org/x", path="/tmp", ip="10.0.0.1"),  # type: ignore[arg-type]
        Counted(n=3, at=datetime.now(UTC)),
        Strict(id=uuid.uuid4(), at=datetime.now(UTC)),
    ],
)
def test_models_of_any_fields_can_be_stored(value: Any) -> None:
    codec.check(type(value))
    if isinstance(value, Places):
        with pytest.raises(UnicodeDecodeError):
            # pydantic's own form is JSON's, which has no bytes that are no text
            codec.encode(value)
        value = value.model_copy(update={"raw": b"text"})
    assert codec.decode(codec.encode(value), type(value)) == value
    rows: Any = list[dict[str, type(value)]]  # type: ignore[misc]
    assert codec.decode(codec.encode([{"a": value}]), rows) == [{"a": value}]


def test_bounds_of_msgspecs_own_are_checked_in_classes() -> None:
    codec.check(Bounded)
    with pytest.raises(msgspec.ValidationError):
        codec.decode(codec.encode({"x": 0}), Bounded)


@pytest.mark.parametrize("hint", BOUNDED)
@pytest.mark.parametrize("as_json", [False, True])
def test_bounds_of_annotated_are_checked(hint: Any, as_json: bool) -> None:
    def takes(self: Any, a: Any, more: Any = None) -> Any:
        return a

    takes.__annotations__ = {"a": hint, "more": list[hint] | None}
    handler = Handler("takes", takes, "Thing")
    encode = codec.encode_json if as_json else codec.encode
    assert handler.invoke(None, encode([9, [0]]), as_json) == 9
    for given, path in (([10], "$.a"), ([-1], "$.a"), ([1, [1, 10]], "$.more[1]")):
        with pytest.raises(InvalidArgument) as wrong:
            handler.invoke(None, encode(given), as_json)
        assert wrong.value.path == path


def test_what_a_model_refuses_names_the_argument() -> None:
    def takes(self: Any, order: Order) -> None: ...

    handler = Handler("takes", takes, "Thing")
    with pytest.raises(InvalidArgument, match="greater than 0") as wrong:
        handler.invoke(
            None, codec.encode([{"orderId": 0, "inner": {"at": "2030-01-01T00:00:00Z"}}])
        )
    assert wrong.value.path == "$.order"


@pytest.mark.parametrize("as_json", [False, True])
def test_arguments_that_are_too_deep_are_the_callers_fault(as_json: bool) -> None:
    def takes(self: Any, a: Any) -> None: ...

    handler = Handler("takes", takes, "Thing")
    depth = 100_000  # CPython 3.13 reads 3,000
    deep = b"[" * depth + b"]" * depth if as_json else b"\x91" * depth + b"\x90"
    with pytest.raises(InvalidArgument):
        handler.invoke(None, deep, as_json)
    with pytest.raises(InvalidArgument):
        handler.invoke(None, (b'{"a": ' + deep + b"}") if as_json else b"\x81\xa1a" + deep, as_json)
