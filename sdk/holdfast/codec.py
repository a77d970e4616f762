"""Payloads: msgpack or JSON by msgspec, checked against type hints. Never pickle.

Types: None, bool, int (64 bit), float, str, bytes, list, tuple, set, dict, dataclasses, msgspec
Structs, TypedDicts, NamedTuples, attrs classes, pydantic models, datetime, date, time, timedelta,
UUID, Decimal, Enum, Literal, and unions of these as msgspec knows them.

Bounds in `Annotated` are checked: msgspec's own `Meta`, and the bounds of annotated-types and of
pydantic's `Field`. Without a type hint a value comes back in its plainest form: a tuple as a list;
a UUID, Decimal or Enum as its text or value; a dataclass as a dict.

Pydantic is no dependency: a class that has `model_dump` and `model_validate` counts as a model. A
model travels as its `model_dump`, and `model_validate` reads it.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from typing import Any

import msgspec

_BOUNDS = ("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "pattern")
_HARMLESS = ("DocInfo",)
_INSTEAD: dict[Any, str] = {object: "Any", complex: "a list of two floats", range: "a list of ints"}


def _is_model(cls: Any) -> bool:
    return isinstance(cls, type) and hasattr(cls, "model_validate") and hasattr(cls, "model_dump")


_encode_plain = msgspec.msgpack.Encoder().encode


def _dump(value: Any) -> Any:
    """Return the msgpack form of a value of a type that msgspec does not know."""
    if not _is_model(type(value)):
        raise TypeError(f"Encoding objects of type {type(value).__name__} is unsupported")
    try:
        return msgspec.Raw(_encode_plain(value.model_dump(by_alias=True, round_trip=True)))
    except TypeError:
        # msgspec does not know the type of a field, such as a URL or a path: take pydantic's form
        return value.model_dump(mode="json", by_alias=True, round_trip=True)


def _dump_json(value: Any) -> Any:
    """Return the JSON form of such a value, as pydantic writes it."""
    if not _is_model(type(value)):
        raise TypeError(f"Encoding objects of type {type(value).__name__} is unsupported")
    return value.model_dump(mode="json", by_alias=True, round_trip=True)


def _build(cls: type[Any], plain: Any) -> Any:
    """Make a value of a type that msgspec does not know from its encoded form.

    msgspec adds the path to a ValueError.
    """
    if _is_model(cls):
        # types that msgpack lacks come as text, so a strict model must accept text here too
        return cls.model_validate(plain, strict=False)
    raise TypeError(f"values of type {cls.__name__} cannot be decoded")


encode: Callable[[Any], bytes] = msgspec.msgpack.Encoder(enc_hook=_dump).encode
encode_json: Callable[[Any], bytes] = msgspec.json.Encoder(enc_hook=_dump_json).encode


def decoder(type: Any) -> msgspec.msgpack.Decoder[Any]:
    """Return a msgpack decoder for a type. Raise TypeError for a type that cannot be sent."""
    return msgspec.msgpack.Decoder(with_bounds(type), dec_hook=_build)


def json_decoder(type: Any) -> msgspec.json.Decoder[Any]:
    """Return a JSON decoder for a type. Raise TypeError for a type that cannot be sent."""
    return msgspec.json.Decoder(with_bounds(type), dec_hook=_build)


_decoders: dict[Any, Callable[[bytes], Any]] = {Any: msgspec.msgpack.Decoder().decode}


def decode(data: bytes, type: Any = Any) -> Any:
    """Return the value of a msgpack payload as `type`.

    Raises msgspec.ValidationError if the payload does not fit the type. Decoders are kept for each
    type. They are few, because types come from code, not from data.
    """
    known = _decoders.get(type)
    if known is None:
        known = _decoders[type] = decoder(type).decode
    return known(data)


def check(type: Any) -> None:
    """Raise TypeError, which names the class, if values of the type cannot be sent. Nested types
    are checked too.
    """
    _check(msgspec.inspect.type_info(with_bounds(type)), set())


def _check(found: Any, seen: set[int]) -> None:
    if id(found) in seen:
        return
    seen.add(id(found))
    if isinstance(found, msgspec.inspect.CustomType | msgspec.inspect.RawType):
        cls = found.cls if isinstance(found, msgspec.inspect.CustomType) else msgspec.Raw
        if _is_model(cls):
            _check_model(cls, seen)
        elif cls is not msgspec.Raw:
            instead = _INSTEAD.get(
                cls, "a dataclass, a msgspec Struct, a pydantic model, or plain types"
            )
            raise TypeError(
                f"values of {getattr(cls, '__name__', cls)} cannot be encoded: use {instead}"
            )
        return
    if hasattr(found, "cls") and not isinstance(found, msgspec.inspect.EnumType):
        _check_fields(found.cls)
    for name in found.__struct_fields__ if isinstance(found, msgspec.Struct) else ():
        value = getattr(found, name)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, msgspec.inspect.Type | msgspec.inspect.Field):
                _check(one, seen)


def _check_models_in(hint: Any, seen: set[int]) -> None:
    if _is_model(hint):
        _check_model(hint, seen)
    for one in typing.get_args(hint):
        _check_models_in(one, seen)


def _check_model(model: Any, seen: set[int]) -> None:
    """Raise TypeError if a field of a model, or of a nested model, is read in another way than it
    is written. Stored values of such a model could not be read again.
    """
    if id(model) in seen:
        return
    seen.add(id(model))
    for name, field in model.model_fields.items():
        where = f"{model.__name__}.{name}"
        if field.exclude and field.is_required():
            raise TypeError(f"{where} is excluded when it is written, but required when it is read")
        if "Secret" in repr(field.annotation):
            raise TypeError(f"{where}: pydantic masks a secret when it is written: use str")
        _check_models_in(field.annotation, seen)
        read, written = (
            field.validation_alias or field.alias or name,
            field.serialization_alias or field.alias or name,
        )
        if read != written and not model.model_config.get("populate_by_name"):
            raise TypeError(
                f"{where} is read as {read!r} and written as {written!r}: give it one `alias`"
            )


def _check_fields(cls: Any) -> None:
    if hasattr(cls, "__pydantic_validator__"):
        raise TypeError(
            f"{cls.__name__} is a pydantic dataclass, which would not be validated: use BaseModel"
            " or a plain dataclass"
        )
    _check_bounds(cls)


def _check_bounds(cls: Any) -> None:
    """Raise TypeError if a class that is no model has bounds of annotated-types or pydantic.

    Such bounds are checked only in hints of arguments, and by pydantic in models.
    """
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except Exception:  # msgspec reads such a class in another way
        return
    for name, hint in hints.items():
        if with_bounds(hint) != hint and _has_bounds(hint):
            raise TypeError(
                f"the bounds of {cls.__name__}.{name} would not be checked: use msgspec.Meta in a"
                " class that is no pydantic model"
            )


def _has_bounds(hint: Any) -> bool:
    if typing.get_origin(hint) is typing.Annotated and any(
        _bounds_of(note) for note in hint.__metadata__
    ):
        return True
    return any(_has_bounds(one) for one in typing.get_args(hint))


def with_bounds(hint: Any) -> Any:
    """Return the hint with the bounds of annotated-types and pydantic as msgspec's own, the only
    ones that msgspec knows.
    """
    if isinstance(hint, typing.NewType):
        return with_bounds(hint.__supertype__)
    origin = typing.get_origin(hint)
    if origin is None:
        return hint
    arguments = typing.get_args(hint)
    if origin is typing.Annotated:
        base, *notes = arguments
        bounds: dict[str, Any] = {}
        kept = []
        for note in notes:
            found = _bounds_of(note)
            bounds.update(found)
            if isinstance(note, msgspec.Meta):
                kept.append(note)
        if bounds:
            kept.append(msgspec.Meta(**bounds))
        base = with_bounds(base)
        return typing.Annotated[(base, *kept)] if kept else base
    if origin is typing.Literal:
        return hint
    inner = tuple(with_bounds(one) if one is not Ellipsis else one for one in arguments)
    if inner == arguments:
        return hint
    if origin is typing.Union or origin is types.UnionType:
        return typing.Union[inner]  # noqa: UP007  (of types that are known only now)
    return origin[inner]


def _bounds_of(note: Any) -> dict[str, Any]:
    if isinstance(note, msgspec.Meta) or type(note).__module__.partition(".")[0] not in (
        "annotated_types",
        "pydantic",
    ):
        return {}
    found = {name: value for name in _BOUNDS if (value := getattr(note, name, None)) is not None}
    parts = getattr(note, "metadata", None)
    for part in parts or ():  # of pydantic's Field
        found |= _bounds_of(part)
    more = {
        name for name, value in getattr(note, "__dict__", {}).items() if value is not None
    } - set(_BOUNDS)
    if parts is None and (more or not found) and type(note).__name__ not in _HARMLESS:
        raise TypeError(
            f"{note!r:.100} would not be checked: in Annotated, use only {', '.join(_BOUNDS)}"
        )
    return found
