"""The calls that turns make to other objects."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from hashlib import blake2b
from typing import Any, Protocol, TypeVar

from holdfast.app import kind_name
from holdfast.deadlines import checked_timeout
from holdfast.errors import TooLarge, error_from_proto
from holdfast.ids import EFFECT
from holdfast.signature import decode_result, encode_arguments, return_type
from holdfast.v1 import objects_pb2 as pb

from holdfast_node.objects.activation import RUNNING, Activation, Turn
from holdfast_node.objects.environment import Outgoing

T = TypeVar("T")

CHAIN_MAX = 16
"""The most turns that may wait for each other in a chain of calls."""


class Calling(Protocol):
    """The caller of other objects: an object in its turns, or a read."""

    @property
    def turn(self) -> Turn | None:
        """The running turn or read; None if none runs."""

    @property
    def activation(self) -> Activation: ...

    @property
    def in_chain(self) -> str:
        """The caller's name in chains of calls."""


class ObjectCalls:
    """`self.objects` of an object. Implements `holdfast.object.Objects`."""

    __slots__ = ("_calling", "_outgoing")

    def __init__(self, calling: Calling, outgoing: Outgoing) -> None:
        self._calling = calling
        self._outgoing = outgoing

    def get(self, kind: type[T] | str, key: str, *, timeout: float | None = None) -> Any:
        """Return a stub of another object. `timeout`: in seconds; a call never outlasts the turn's
        own deadline."""
        return _Stub(self._calling, self._outgoing, kind, key, timeout)


class _Stub:
    __slots__ = ("_calling", "_key", "_kind", "_name", "_outgoing", "_timeout")

    def __init__(
        self,
        calling: Calling,
        outgoing: Outgoing,
        kind: type | str,
        key: str,
        timeout: float | None,
    ) -> None:
        self._calling = calling
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
        calling = self._calling
        activation, turn = calling.activation, calling.turn
        if turn is None:
            raise RuntimeError("objects can be called only while a turn runs")
        chain = [*turn.call.chain, calling.in_chain]
        if len(chain) > CHAIN_MAX:
            raise TooLarge(
                f"a chain of more than {CHAIN_MAX} calls: {' -> '.join(chain)}", definite=True
            )
        number = turn.call_number
        turn.call_number += 1
        turn.calls_made += 1
        # The writes of earlier turns must be committed before a call that may depend on them leaves
        # the object. Entries commit in order, so waiting for the newest one is enough.
        if (entry := activation.uncommitted) is not None:
            await entry.wait()
        if turn.state != RUNNING:
            raise RuntimeError(
                "the turn was abandoned at its deadline: it was answered, and may not call any more"
            )
        remaining = (
            turn.remaining_s if self._timeout is None else min(self._timeout, turn.remaining_s)
        )
        call = pb.Call(
            kind=self._name,
            key=self._key,
            method=method,
            arguments=arguments,
            request_id=derived_id(
                turn.request_id, number, self._name, self._key, method, arguments
            ),
            # An alarm, a notification or a deletion runs again under the same id. The id does not
            # tell whether it ran before, so its calls count as repeated.
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


class _Caller:
    """A caller that waits for one reply. Implements `holdfast_cluster.routing.pending.Origin`."""

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


def derived_id(
    parent: bytes, number: int, kind: str, key: str, method: str, arguments: bytes
) -> bytes:
    """Return the request id of a turn's call. It has the parent's time. It is the same when the
    turn runs again and makes the same call.

    It has the form of a UUIDv7: 48 bits of time, version and variant bits, 74 bits of BLAKE2b.
    """
    digest = blake2b(parent, digest_size=10)
    for part in (
        number.to_bytes(4, "big"),
        kind.encode(),
        key.encode(),
        method.encode(),
        arguments,
    ):
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part)
    raw = bytearray(parent[:6] + digest.digest())
    raw[6] = 0x70 | (raw[6] & 0x0F)
    raw[8] = 0x80 | (raw[8] & 0x3F)
    return bytes(raw)
