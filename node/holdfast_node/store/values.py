"""Stored values, and what may stand before them.

A value is what `holdfast.codec` encodes, or options and then that. No msgpack begins with the byte
`OPTIONS`. The only option today is the time at which the value expires.
"""

from __future__ import annotations

from holdfast.storage import OPTIONS

_EXPIRY = OPTIONS + b"\x01"
"""The beginning of a value that expires: 8 bytes follow, the Unix time in ms, and then the
value."""
_EXPIRY_BYTES = len(_EXPIRY) + 8
OPTIONS_BYTE = OPTIONS[0]


def expiry_option(due_ms: int) -> bytes:
    """Return what stands before a value that expires at this Unix time in ms."""
    return _EXPIRY + due_ms.to_bytes(8, "big")


def read_expiry(raw: bytes) -> int | None:
    """Return the Unix time in ms at which a stored value expires; None when it does not."""
    return (
        int.from_bytes(raw[len(_EXPIRY) : _EXPIRY_BYTES], "big")
        if raw.startswith(_EXPIRY)
        else None
    )


def read_value(raw: bytes) -> bytes:
    """Return a stored value without its expiry."""
    return raw[_EXPIRY_BYTES:] if raw.startswith(_EXPIRY) else raw
