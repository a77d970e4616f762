"""What is stored of notifications, alarms and dead letters. msgpack arrays; a later version adds fields at the end, with defaults."""

from __future__ import annotations

from typing import Any

import msgspec
from holdfast.alarms import Misfire


class Notification(msgspec.Struct, array_like=True, gc=False):
    """One that is to be delivered. Times are Unix time in ms."""

    sender_kind: str
    sender_key: str
    kind: str
    key: str
    method: str
    arguments: bytes
    created_ms: int
    attempts: int = 0
    """Failures of the receiver's handler so far."""
    first_ms: int = 0
    """The first attempt that was not answered with an OK."""
    error: str = ""
    """Of the last one."""
    trace: str = ""
    """The `traceparent` of the turn that sent it, when that was traced."""
    options: dict[str, Any] | None = None
    """Kept free for what one notification asks for (an expiry, metadata); None in this version."""


class AlarmRecord(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One alarm of an object. Times are Unix time in ms; `due_ms` is later than `scheduled_ms` once it has failed."""

    due_ms: int
    scheduled_ms: int
    payload: bytes
    every: int | str | None = None
    timezone: str = "UTC"
    misfire: Misfire = "once"
    attempt: int = 0
    nonce: bytes = b""
    """Made when it was set: tells it apart from another one for the same time."""
    options: dict[str, Any] | None = None
    """`us`: microseconds of the time that it was set for, beyond `scheduled_ms`. Else kept free for what one alarm asks for."""


class Letter(msgspec.Struct, array_like=True, gc=False):
    """A dead letter: a notification of `sender`'s that could not be delivered, or an alarm of its own (`method` is `on_alarm`)."""

    notification: Notification
    died_ms: int
    code: str
    error: str
    alarm: AlarmRecord | None = None
    alarm_name: str = ""


_encode = msgspec.msgpack.Encoder().encode
decode_notification = msgspec.msgpack.Decoder(Notification).decode
decode_alarm = msgspec.msgpack.Decoder(AlarmRecord).decode
decode_letter = msgspec.msgpack.Decoder(Letter).decode


def encode(record: Notification | AlarmRecord | Letter) -> bytes:
    return _encode(record)
