"""Payloads: msgpack or JSON by msgspec, checked against type hints. Never pickle.

Types: None, bool, int (64 bit), float, str, bytes, list, tuple, set, dict, dataclasses, msgspec Structs, TypedDicts,
datetime, date, time, timedelta, UUID, Decimal, Enum, Literal, and unions of these as msgspec knows them. Without a type
hint a value comes back in its plainest form: a tuple as a list, a UUID, Decimal, Enum as its text or value, a dataclass as a dict.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

encode: Callable[[Any], bytes] = msgspec.msgpack.Encoder().encode
encode_json: Callable[[Any], bytes] = msgspec.json.Encoder().encode

_decoders: dict[Any, Callable[[bytes], Any]] = {Any: msgspec.msgpack.Decoder().decode}


def decode(data: bytes, type: Any = Any) -> Any:
    """The value of a msgpack payload as `type`. Raises msgspec.ValidationError when it is of another type.

    Decoders are kept for each type; types come from code, not from data, so there are few.
    """
    decoder = _decoders.get(type)
    if decoder is None:
        decoder = _decoders[type] = msgspec.msgpack.Decoder(type).decode
    return decoder(data)
