"""Calls on their way: what a dispatcher knows of each, what it takes, and why one waits."""

from __future__ import annotations

import random
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

from holdfast.errors import HoldfastError, InvalidArgument, TooLarge
from holdfast.frames import ENVELOPE_BYTES_MAX
from holdfast.ids import REQUEST_ID_BYTES
from holdfast.v1 import objects_pb2 as pb

from holdfast_cluster.placement.model import View
from holdfast_cluster.routing.pipe import Pipe

KEY_BYTES_MAX = 1024
_ATTEMPT_MAX = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class DispatchLimits:
    """Bounds of one dispatcher."""

    in_flight_max: int = 10_000
    """How many calls may be accepted and not answered yet, held ones included."""
    held_max: int = 10_000
    """How many calls may wait for their shard to be served."""
    argument_bytes_max: int = 4 << 20
    bytes_max: int = 512 << 20
    """The size of all calls accepted and not answered yet, arguments included."""
    timeout_s: float = 30.0
    """The deadline of calls that bring none."""


class Origin(Protocol):
    """The place that a call came from, and that its reply goes to."""

    def push(self, reply: pb.Reply, size: int) -> None:
        """Take the reply, of about `size` bytes. Its `id` is the one that the origin gave."""


class Pending:
    """A call on its way.

    `lacking`: a node refused it because the node lacks its kind. `cancelled`: its caller does not
    wait for it any more.
    """

    __slots__ = (
        "call",
        "cancelled",
        "deadline",
        "lacking",
        "late",
        "origin",
        "origin_id",
        "orphan",
        "pipe",
        "shard",
        "size",
        "submitted",
    )

    def __init__(
        self, call: pb.Call, origin: Origin, shard: int, deadline: float, size: int
    ) -> None:
        self.size = size
        self.call = call
        self.origin = origin
        self.origin_id = call.id
        self.shard = shard
        self.deadline = deadline
        self.pipe: Pipe | None = None
        self.lacking = False
        self.late = False
        self.cancelled = False
        self.orphan = False  # its origin has gone
        self.submitted = perf_counter()

    def outcome_unknown(self) -> None:
        """Record that the outcome of the attempt under way will stay unknown."""
        if self.call.attempt < _ATTEMPT_MAX:  # a caller may have started at any number
            self.call.attempt += 1


class Held:
    """The queue of a shard that cannot be reached."""

    __slots__ = ("backoff_max_s", "backoff_s", "calls", "retry_at")

    def __init__(self, now: float, backoff_s: tuple[float, float]) -> None:
        self.calls: list[Pending] = []
        self.backoff_s, self.backoff_max_s = backoff_s
        self.retry_at = now + self.backoff_s * random.uniform(0.5, 1.0)


def why_held(view: View, pending: Pending) -> str:
    """Return why a call waits, by this view."""
    shard = pending.shard
    versioned = view.assignments.get(shard)
    if versioned is None:
        return f"shard {shard} is not assigned yet"
    assignment = versioned.assignment
    member = view.members.get(assignment.owner)
    if member is None and len(assignment.in_sync) == 1:
        return f"shard {shard}: the only copy is on node {assignment.owner}, which is absent"
    if member is None:
        return (
            f"shard {shard}: its owner {assignment.owner} is absent; copies are on"
            f" {', '.join(assignment.in_sync)}"
        )
    if member.incarnation != assignment.incarnation:
        return (
            f"shard {shard}: node {assignment.owner} was started again and has not been"
            " assigned it yet"
        )
    if pending.lacking:
        hosts = ", ".join(
            sorted(m.id for m in view.members.values() if pending.call.kind in m.kinds)
        )
        where = f"nodes that have it: {hosts}" if hosts else "no present node has it"
        return (
            f"shard {shard}: its owner {assignment.owner} lacks kind {pending.call.kind}; {where}"
        )
    return (
        f"shard {shard}: node {assignment.owner} at {member.address} cannot be reached or does"
        " not serve it yet"
    )


def wrong_key(key: str) -> InvalidArgument | None:
    """Return what is wrong with an object's key; None if nothing is."""
    size = len(key.encode())
    if 0 < size <= KEY_BYTES_MAX:
        return None
    return InvalidArgument(
        f"an object's key has 1 to {KEY_BYTES_MAX} bytes, this one {size}",
        path="key",
        definite=True,
    )


def malformed(call: pb.Call, limits: DispatchLimits) -> HoldfastError | None:
    """Return what is wrong with a call itself; None if nothing is."""
    if (wrong := wrong_key(call.key)) is not None:
        return wrong
    if len(call.arguments) > limits.argument_bytes_max:
        return TooLarge(
            f"arguments of {len(call.arguments)} bytes, at most {limits.argument_bytes_max}",
            definite=True,
        )
    rest = call.ByteSize() - len(call.arguments)
    if rest > ENVELOPE_BYTES_MAX:
        return TooLarge(
            f"names and metadata of {rest} bytes, at most {ENVELOPE_BYTES_MAX}", definite=True
        )
    if len(call.request_id) != REQUEST_ID_BYTES:
        return InvalidArgument(
            f"a request id has {REQUEST_ID_BYTES} bytes (UUIDv7)",
            path="request_id",
            definite=True,
        )
    return None
