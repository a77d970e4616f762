"""The active objects of a node in the order of their use, and the total size of their caches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from heapq import merge

from holdfast_node.log.shards import Shard
from holdfast_node.objects.activation import Activation
from holdfast_node.objects.environment import CacheSize


class Activations:
    """The activations of a node. `cache`: counts the bytes of the hot caches. A forgotten
    activation does not count any more.

    The activations of each kind are kept in the order of their use, because each kind has its own
    idle time.
    """

    def __init__(self, cache: CacheSize) -> None:
        self._cache = cache
        self._of_kind: dict[str, OrderedDict[str, Activation]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def use(self, kind: str, key: str) -> Activation | None:
        """Return the object's activation, and make it the most recently used of its kind. Return
        None if the object is not active."""
        of_kind = self._of_kind.get(kind)
        if of_kind is None:
            return None
        activation = of_kind.get(key)
        if activation is not None:
            of_kind.move_to_end(key)
        return activation

    def get(self, kind: str, key: str) -> Activation | None:
        """Return the object's activation without using it; None if the object is not active."""
        of_kind = self._of_kind.get(kind)
        return None if of_kind is None else of_kind.get(key)

    def add(self, activation: Activation) -> None:
        of_kind = self._of_kind.get(activation.kind.name)
        if of_kind is None:
            of_kind = self._of_kind[activation.kind.name] = OrderedDict()
        of_kind[activation.key] = activation
        self._count += 1

    def forget(self, activation: Activation) -> None:
        """Remove an activation, if it is still there."""
        if not activation.forgotten:
            activation.forgotten = True
            del self._of_kind[activation.kind.name][activation.key]
            self._count -= 1
            self._cache.bytes -= activation.cached_bytes

    def retire(self, activation: Activation) -> None:
        """Make an activation the least recently used of its kind, so that it may be evicted at
        once."""
        if not activation.forgotten:
            activation.last_used = float("-inf")
            self._of_kind[activation.kind.name].move_to_end(activation.key, last=False)

    def of_shards(self, shards: set[Shard]) -> list[Activation]:
        return [
            each
            for of_kind in self._of_kind.values()
            for each in of_kind.values()
            if each.shard in shards
        ]

    def kinds(self) -> dict[str, int]:
        """Return the number of activations of each kind."""
        return {kind: len(of_kind) for kind, of_kind in self._of_kind.items()}

    def of_kind(self, kind: str) -> Iterator[Activation]:
        """Iterate over the activations of a kind, least recently used first. Add and remove none
        meanwhile."""
        return iter(self._of_kind.get(kind, {}).values())

    def oldest_first(self) -> Iterator[Activation]:
        """Iterate over all activations, least recently used first. Add and remove none
        meanwhile."""
        return merge(*(of_kind.values() for of_kind in self._of_kind.values()), key=_last_used)


def _last_used(activation: Activation) -> float:
    return activation.last_used
