"""What all objects of a node have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from holdfast.tracing import Tracing
from holdfast.v1 import objects_pb2 as pb

from holdfast_node.effects.due_index import DueIndex
from holdfast_node.effects.expiry import ExpiryIndex
from holdfast_node.effects.rows import StorageLimits
from holdfast_node.effects.sent import Sent
from holdfast_node.store.rocks import Store


class Outgoing(Protocol):
    """What takes the calls and notifications that leave objects: a dispatcher."""

    def submit(self, call: pb.Call, origin: Any) -> int: ...
    def cancel(self, number: int, heir: Any) -> bool: ...
    def reachable(self, kind: str, key: str) -> bool: ...


@dataclass(slots=True)
class CacheSize:
    """The bytes of the hot caches of all activations that are in memory."""

    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Environment:
    """`outgoing`: what takes calls to other objects. `sent`: what objects send. `alarms` and
    `expiry`: what is due when."""

    store: Store
    limits: StorageLimits
    outgoing: Outgoing
    sent: Sent
    alarms: DueIndex
    expiry: ExpiryIndex
    cache: CacheSize
    tracing: Tracing | None = None
