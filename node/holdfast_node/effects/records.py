"""The stored records of notifications, alarms and dead letters. They are msgpack arrays. A later
version adds fields at the end, with defaults."""

from __future__ import annotations

from typing import Any

import msgspec
from holdfast.alarms import Misfire
from holdfast.errors import TooLarge
from holdfast.tracing import TRACEPARENT
from holdfast.v1 import objects_pb2 as pb


def sender_name(kind: str, key: str) -> str:
    """Return the name of a notification's sender, for people."""
    if kind:
        return f"{kind}/{key}"
    return f"client {key}" if key else "a client"


METADATA = "metadata"
"""The key in `options` of the metadata. It comes from the call that sent the notification, or set
the alarm."""


class Notification(msgspec.Struct, array_like=True, gc=False):
    """A notification that waits to be delivered. Times are Unix time in ms."""

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
    """The time of the first attempt that failed; 0 if none has failed."""
    error: str = ""
    """The error of the last failed attempt."""
    trace: str = ""
    """The `traceparent` of the turn that sent it, if that turn was traced."""
    options: dict[str, Any] | None = None
    """`metadata`: that of the call that sent it. Other keys are kept free for options of one
    notification."""

    @property
    def size(self) -> int:
        """About how many bytes it takes in memory beside its names."""
        metadata = metadata_of(self.options) or {}
        return len(self.arguments) + sum(len(name) + len(value) for name, value in metadata.items())

    @property
    def caller(self) -> str:
        """The sender as `caller` of the receiving turn. A client's notification has no
        `sender_kind`; its `sender_key` is the client's subject."""
        return (
            f"object:{self.sender_kind}/{self.sender_key}" if self.sender_kind else self.sender_key
        )

    @property
    def sender(self) -> str:
        """The sender's name, for people."""
        return sender_name(self.sender_kind, self.sender_key)


class AlarmRecord(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One alarm of an object. Times are Unix time in ms. `due_ms` is later than `scheduled_ms`
    after a failed firing."""

    due_ms: int
    scheduled_ms: int
    payload: bytes
    every: int | str | None = None
    timezone: str = "UTC"
    misfire: Misfire = "once"
    attempt: int = 0
    nonce: bytes = b""
    """Random bytes, made when the alarm was set. They tell it from another alarm for the same
    time."""
    options: dict[str, Any] | None = None
    """`us`: the microseconds of its time beyond `scheduled_ms`. `times`: how often it is still to
    fire, this time included. `until`: the Unix time in ms after which it is not repeated.
    `metadata`: that of the call that set it. Other keys are kept free."""


class DeadLetter(msgspec.Struct, array_like=True, gc=False):
    """A dead letter: a notification that could not be delivered, or an alarm whose firing failed.
    For an alarm the `notification` has the method `on_alarm`."""

    notification: Notification
    died_ms: int
    code: str
    error: str
    alarm: AlarmRecord | None = None
    alarm_name: str = ""


_encode = msgspec.msgpack.Encoder().encode
decode_notification = msgspec.msgpack.Decoder(Notification).decode
decode_alarm = msgspec.msgpack.Decoder(AlarmRecord).decode
decode_dead_letter = msgspec.msgpack.Decoder(DeadLetter).decode


def encode(record: Notification | AlarmRecord | DeadLetter) -> bytes:
    return _encode(record)


CARRIED_BYTES_MAX = 16 << 10
"""The most bytes of metadata that a notification or an alarm takes along."""


def carried(call: pb.Call) -> dict[str, Any] | None:
    """Return the metadata that a notification or an alarm takes along from the call that made it,
    as `options` of the record. Raises TooLarge above CARRIED_BYTES_MAX."""
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
    """Return the metadata in a record's options."""
    return (options or {}).get(METADATA)
