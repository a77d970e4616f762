"""The notifications that objects and clients send."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from holdfast import codec
from holdfast.app import kind_name
from holdfast.deadlines import checked_timedelta
from holdfast.errors import InvalidArgument, TooLarge
from holdfast.signature import Handler, check_notified, encode_arguments
from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.routing.pending import KEY_BYTES_MAX, DispatchLimits

from holdfast_node.effects.records import Notification, carried
from holdfast_node.effects.sent import SendNotification, Sent
from holdfast_node.objects.activation import Activation, Turn

DELAY_MAX = timedelta(days=366)
_ARGUMENT_BYTES_MAX = DispatchLimits().argument_bytes_max


class Notifier:
    """The stub that `self.notify(kind, key)` returns: each of its methods sends a notification."""

    __slots__ = ("_activation", "_delay_ms", "_key", "_kind", "_name", "_sent")

    def __init__(
        self,
        activation: Activation,
        sent: Sent,
        kind: type | str,
        key: str,
        delay: timedelta | None,
    ) -> None:
        if not isinstance(key, str):
            raise TypeError(f"an object's key is text, not {type(key).__name__}: {key!r}")
        if not 0 < len(key.encode()) <= KEY_BYTES_MAX:
            raise InvalidArgument(
                f"an object's key has 1 to {KEY_BYTES_MAX} bytes, this one {len(key.encode())}",
                path="key",
            )
        if delay is not None and checked_timedelta("a delay", delay) > DELAY_MAX:
            raise ValueError(
                f"a notification can be delayed by {DELAY_MAX.days} days at most, not by {delay}"
            )
        self._activation = activation
        self._sent = sent
        self._kind = kind
        self._name = kind_name(kind)
        self._key = key
        self._delay_ms = 0 if delay is None else max(0, round(delay.total_seconds() * 1000))

    def __getattr__(self, method: str) -> Any:
        if method.startswith("__"):
            raise AttributeError(method)
        check_notified(self._kind, method)

        def send(*positional: Any, **named: Any) -> None:
            self._send(method, encode_arguments(positional, named))

        return send

    def _send(self, method: str, arguments: bytes) -> None:
        activation = self._activation
        storage = activation.storage
        if len(arguments) > _ARGUMENT_BYTES_MAX:
            raise TooLarge(
                f"arguments of {len(arguments)} bytes, at most {_ARGUMENT_BYTES_MAX}", definite=True
            )
        before = sum(type(effect) is SendNotification for effect in storage.effects)
        self._sent.check_room(
            activation.shard, (activation.kind.name, activation.key), before, self._delay_ms
        )
        now_ms = activation.shard.clock.now_ms()
        row = Notification(
            activation.kind.name, activation.key, self._name, self._key, method, arguments, now_ms
        )
        if activation.turn is not None:
            row.options = carried(activation.turn.call)
            if activation.turn.span is not None:
                row.trace = activation.turn.span.header()
        storage.add_effect(SendNotification(self._sent, row, self._delay_ms))


def delay_of(call: pb.Call) -> int:
    """Return the delay of a call that is stored, in ms. Raises InvalidArgument above DELAY_MAX."""
    if call.delay_ms > DELAY_MAX / timedelta(milliseconds=1):
        raise InvalidArgument(
            f"a call that is sent can be delayed by {DELAY_MAX.days} days at most",
            path="delay_ms",
            definite=True,
        )
    return call.delay_ms


def sent_by_client(sent: Sent, turn: Turn, handler: Handler) -> SendNotification:
    """Return the notification that a client sends. Its arguments are stored as msgpack. Raises
    UnfitArguments, and TooLarge for too many bytes of arguments."""
    call = turn.call
    is_json = call.codec == pb.CODEC_JSON
    named = handler.bind(call.arguments, is_json)
    arguments = codec.encode(named) if is_json else call.arguments
    if len(arguments) > _ARGUMENT_BYTES_MAX:
        raise TooLarge(
            f"arguments of {len(arguments)} bytes as msgpack, at most {_ARGUMENT_BYTES_MAX}",
            definite=True,
        )
    row = Notification(
        "",
        call.caller,
        call.kind,
        call.key,
        call.method,
        arguments,
        turn.activation.shard.clock.now_ms(),
    )
    row.options = carried(call)
    if turn.span is not None:
        row.trace = turn.span.header()
    return SendNotification(sent, row, delay_of(call))
