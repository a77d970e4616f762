"""What is stored of notifications, alarms and dead letters. msgpack arrays; a later version adds
fields at the end, with defaults."""

from __future__ import annotations

from typing import Any

import msgspec
from holdfast.alarms import Misfire
from holdfast.errors import TooLarge
from holdfast.tracing import TRACEPARENT
from holdfast.v1 import objects_pb2 as pb


def sender_name(kind: str, key: str) -> str:
    """How people are told who sent a notification."""
    if kind:
        return f"{kind}/{key}"
    return f"client {key}" if key else "a client"


METADATA = "metadata"
"""The key in `options` under which the metadata lies of the call that sent a notification, or set
an alarm."""


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
    """`metadata`: that of the call that sent it. Else kept free for what one notification
    asks for."""

    @property
    def size(self) -> int:
        """About what it takes in memory beside its names."""
        metadata = metadata_of(self.options) or {}
        return len(self.arguments) + sum(len(name) + len(value) for name, value in metadata.items())

    @property
    def caller(self) -> str:
        """Who sent it, as its receiver is told. A client's has no `sender_kind`; its `sender_key`
        is the client's subject."""
        return (
            f"object:{self.sender_kind}/{self.sender_key}" if self.sender_kind else self.sender_key
        )

    @property
    def sender(self) -> str:
        """Who sent it, for people."""
        return sender_name(self.sender_kind, self.sender_key)


class AlarmRecord(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One alarm of an object. Times are Unix time in ms; `due_ms` is later than `scheduled_ms` once
    it has failed."""

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
    """`us`: microseconds of the time that it was set for, beyond `scheduled_ms`. `times`: how often
    it fires yet, this time counted. `until`: the Unix time in ms after which it is not repeated.
    `metadata`: that of the call that set it. Else kept free."""


class DeadLetter(msgspec.Struct, array_like=True, gc=False):
    """A dead letter: a notification of `sender`'s that could not be delivered, or an alarm of its
    own (`method` is `on_alarm`)."""

    notification: Notification
    died_ms: int
    code: str
    error: str
    alarm: AlarmRecord | None = None
    alarm_name: str = ""


_encode = msgspec.msgpack.Encoder().encode
decode_notification = msgspec.msgpack.Decoder(Notification).decode
decode_alarm = msgspec.msgpack.Decoder(AlarmRecord).decode
decode_letter = msgspec.msgpack.Decoder(DeadLetter).decode


def encode(record: Notification | AlarmRecord | DeadLetter) -> bytes:
    return _encode(record)


CARRIED_BYTES_MAX = 16 << 10
"""Metadata that a notification, or an alarm, takes along."""


def carried(call: pb.Call) -> dict[str, Any] | None:
    """What a notification, or an alarm, takes along from the call that made it: its metadata. As
    `options` of the record."""
    if not call.metadata:
        return None
    metadata = {name: value for name, value in call.metadata.items() if name != TRACEPARENT}
    size = sum(len(name.encode()) + len(value.encode()) for name, value in metadata.items())
    if size > CARRIED_BYTES_MAX:
        message = (
            f"metadata of {size} bytes would go along with a notification or an alarm, which takes"
            f" {CARRIED_BYTES_MAX} at most"
        )
        raise TooLarge(message, definite=True)
    return {METADATA: metadata} if metadata else None


def metadata_of(options: dict[str, Any] | None) -> dict[str, str] | None:
    """The metadata in a record's options."""
    return (options or {}).get(METADATA)
