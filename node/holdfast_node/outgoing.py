"""The calls that turns make to other objects, and the notifications that they send."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from holdfast import codec
from holdfast.app import kind_name
from holdfast.deadlines import checked_timedelta, checked_timeout
from holdfast.errors import InvalidArgument, TooLarge, error_from_proto
from holdfast.ids import EFFECT
from holdfast.signature import Handler, check_notified, decode_result, encode_arguments, return_type
from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.dispatch import KEY_BYTES_MAX, DispatchLimits

from holdfast_node.effects.records import Notification, carried
from holdfast_node.effects.sent import SendNotification, Sent
from holdfast_node.turn import RUNNING

if TYPE_CHECKING:
    from holdfast_node.activation import Activation
    from holdfast_node.shards import Entry
    from holdfast_node.turn import Turn

T = TypeVar("T")

CHAIN_MAX = 16
"""How many turns may wait for each other in a chain of calls."""


DELAY_MAX = timedelta(days=366)
_ARGUMENT_BYTES_MAX = DispatchLimits().argument_bytes_max


class Outgoing(Protocol):
    """What takes the calls: a dispatcher."""

    def submit(self, call: pb.Call, origin: Any) -> int: ...
    def cancel(self, number: int, heir: Any) -> bool: ...
    def reachable(self, kind: str, key: str) -> bool: ...


class Calling(Protocol):
    """What calls others: an activation, or a read beside its turns. `in_chain`: how chains of calls name it."""

    turn: Turn | None

    @property
    def name(self) -> str: ...
    @property
    def in_chain(self) -> str: ...
    @property
    def uncommitted(self) -> Entry | None: ...


class ObjectCalls:
    """`self.objects` of an object. Implements `holdfast.object.Objects`."""

    __slots__ = ("_activation", "_outgoing")

    def __init__(self, activation: Calling, outgoing: Outgoing) -> None:
        self._activation = activation
        self._outgoing = outgoing

    def get(self, kind: type[T] | str, key: str, *, timeout: float | None = None) -> Any:
        """A stub of another object; `timeout` in seconds, never past the turn's own deadline."""
        return _Stub(self._activation, self._outgoing, kind, key, timeout)


class _Stub:
    __slots__ = ("_activation", "_key", "_kind", "_name", "_outgoing", "_timeout")

    def __init__(self, activation: Calling, outgoing: Outgoing, kind: type | str, key: str, timeout: float | None) -> None:
        self._activation = activation
        self._outgoing = outgoing
        self._kind = kind
        self._name = kind_name(kind)
        self._key = key
        self._timeout = None if timeout is None else checked_timeout(timeout)

    def __getattr__(self, method: str) -> Any:
        if method.startswith("__"):
            raise AttributeError(method)
        returns = return_type(self._kind, method)

        def call(*positional: Any, **named: Any) -> Coroutine[Any, Any, Any]:
            return self._call(method, returns, encode_arguments(positional, named))

        return call

    async def _call(self, method: str, returns: Any, arguments: bytes) -> Any:
        activation = self._activation
        turn = activation.turn
        if turn is None:
            raise RuntimeError("objects can be called only while a turn runs")
        chain = [*turn.call.chain, activation.in_chain]
        if len(chain) > CHAIN_MAX:
            raise TooLarge(f"a chain of more than {CHAIN_MAX} calls: {' -> '.join(chain)}", definite=True)
        number = turn.call_number
        turn.call_number += 1
        turn.calls_made += 1
        # What earlier turns wrote must be committed before anything that may rest on it leaves the object.
        if (entry := activation.uncommitted) is not None:  # entries commit in order: those before it are then as well
            await entry.wait()
        if turn.state != RUNNING:
            raise RuntimeError("the turn was abandoned at its deadline: it was answered, and may not call any more")
        remaining = turn.remaining_s if self._timeout is None else min(self._timeout, turn.remaining_s)
        call = pb.Call(
            kind=self._name,
            key=self._key,
            method=method,
            arguments=arguments,
            request_id=derived_id(turn.request_id, number, self._name, self._key, method, arguments),
            # An alarm, a notification or a deletion runs again under its id, which does not tell whether it ran before.
            attempt=turn.attempt or int(turn.request_id[0] >= EFFECT),
            timeout_ms=max(1, int(remaining * 1000)),
            metadata=turn.call.metadata,  # with the turn's span, when it has one
            chain=chain,
            caller=f"object:{activation.name}",
        )
        caller = _Caller(f"{self._name}/{self._key}.{method}()")
        number = self._outgoing.submit(call, caller)
        try:
            result = await caller.future
        except asyncio.CancelledError:  # of the turn, or of this call alone
            self._outgoing.cancel(number, caller)
            raise
        return decode_result(result, returns, self._name, method)


class Notifier:
    """What `self.notify(kind, key)` returns: every attribute sends one."""

    __slots__ = ("_activation", "_delay_ms", "_key", "_kind", "_name", "_sent")

    def __init__(self, activation: Activation, sent: Sent, kind: type | str, key: str, delay: timedelta | None) -> None:
        if not isinstance(key, str):
            raise TypeError(f"an object's key is text, not {type(key).__name__}: {key!r}")
        if not 0 < len(key.encode()) <= KEY_BYTES_MAX:
            raise InvalidArgument(f"an object's key has 1 to {KEY_BYTES_MAX} bytes, this one {len(key.encode())}", path="key")
        if delay is not None and checked_timedelta("a delay", delay) > DELAY_MAX:
            raise ValueError(f"a notification can be delayed by {DELAY_MAX.days} days at most, not by {delay}")
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
            raise TooLarge(f"arguments of {len(arguments)} bytes, at most {_ARGUMENT_BYTES_MAX}", definite=True)
        before = sum(type(effect) is SendNotification for effect in storage.effects)
        self._sent.check_room(activation.shard, (activation.kind.name, activation.key), before, self._delay_ms)
        now_ms = activation.shard.clock.now_ms()
        row = Notification(activation.kind.name, activation.key, self._name, self._key, method, arguments, now_ms)
        if activation.turn is not None:
            row.options = carried(activation.turn.call)
            if activation.turn.span is not None:
                row.trace = activation.turn.span.header()
        storage.add_effect(SendNotification(self._sent, row, self._delay_ms))


def delay_of(call: pb.Call) -> int:
    """By how many ms a call that is sent is delayed. Raises InvalidArgument for more than may be."""
    if call.delay_ms > DELAY_MAX / timedelta(milliseconds=1):
        raise InvalidArgument(f"a call that is sent can be delayed by {DELAY_MAX.days} days at most", path="delay_ms", definite=True)
    return call.delay_ms


def sent_by_client(sent: Sent, turn: Turn, handler: Handler) -> SendNotification:
    """The notification that a client sends. Raises UnfitArguments; its arguments are stored as msgpack, in which they travel."""
    call = turn.call
    is_json = call.codec == pb.CODEC_JSON
    named = handler.bind(call.arguments, is_json)
    arguments = codec.encode(named) if is_json else call.arguments
    if len(arguments) > _ARGUMENT_BYTES_MAX:
        raise TooLarge(f"arguments of {len(arguments)} bytes as msgpack, at most {_ARGUMENT_BYTES_MAX}", definite=True)
    row = Notification("", call.caller, call.kind, call.key, call.method, arguments, turn.activation.shard.clock.now_ms())
    row.options = carried(call)
    if turn.span is not None:
        row.trace = turn.span.header()
    return SendNotification(sent, row, delay_of(call))


class _Caller:
    """Waits for one reply. Implements `holdfast_cluster.dispatch.Origin`."""

    __slots__ = ("_callee", "future")

    def __init__(self, callee: str) -> None:
        self._callee = callee
        self.future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def push(self, reply: pb.Reply, size: int) -> None:
        if self.future.done():
            return
        if reply.result:
            self.future.set_result(reply.result)
        else:
            error = error_from_proto(reply.error)
            error.callee = self._callee
            self.future.set_exception(error)


def derived_id(parent: bytes, number: int, kind: str, key: str, method: str, arguments: bytes) -> bytes:
    """The request id of a turn's call: the same when the turn is run again and calls the same, with the parent's time.

    It is a UUIDv7 in form: 48 bits of time, version and variant bits, 74 bits of BLAKE2b.
    """
    digest = blake2b(parent, digest_size=10)
    for part in (number.to_bytes(4, "big"), kind.encode(), key.encode(), method.encode(), arguments):
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part)
    raw = bytearray(parent[:6] + digest.digest())
    raw[6] = 0x70 | (raw[6] & 0x0F)
    raw[8] = 0x80 | (raw[8] & 0x3F)
    return bytes(raw)
