"""The environment that all objects of a node share."""

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
    """A dispatcher, which takes the calls and notifications that leave objects."""

    def submit(self, call: pb.Call, origin: Any) -> int: ...
    def cancel(self, number: int, heir: Any) -> bool: ...
    def reachable(self, kind: str, key: str) -> bool: ...


@dataclass(slots=True)
class CacheSize:
    """The bytes of the hot caches of all activations in memory."""

    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Environment:
    """The parts that all objects of a node use. `outgoing`: takes calls to other objects. `sent`:
    takes notifications. `alarms` and `expiry`: the indexes by time."""

    store: Store
    limits: StorageLimits
    outgoing: Outgoing
    sent: Sent
    alarms: DueIndex
    expiry: ExpiryIndex
    cache: CacheSize
    tracing: Tracing | None = None
