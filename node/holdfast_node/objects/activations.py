"""The active objects of a node, in the order of their use, and what their caches take together."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from heapq import merge

from holdfast_node.log.shards import Shard
from holdfast_node.objects.activation import Activation
from holdfast_node.objects.environment import CacheSize


class Activations:
    """`cache`: counts the hot caches. An activation that was forgotten counts no more, whatever it
    still does.

    Those of a kind are kept in the order of their use: kinds differ in how long an idle object
    stays.
    """

    def __init__(self, cache: CacheSize) -> None:
        self._cache = cache
        self._of_kind: dict[str, OrderedDict[str, Activation]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def use(self, kind: str, key: str) -> Activation | None:
        """The object's activation, which is now the most recently used of its kind; None when it is
        not active."""
        of_kind = self._of_kind.get(kind)
        if of_kind is None:
            return None
        activation = of_kind.get(key)
        if activation is not None:
            of_kind.move_to_end(key)
        return activation

    def get(self, kind: str, key: str) -> Activation | None:
        """The object's activation, without using it."""
        of_kind = self._of_kind.get(kind)
        return None if of_kind is None else of_kind.get(key)

    def add(self, activation: Activation) -> None:
        of_kind = self._of_kind.get(activation.kind.name)
        if of_kind is None:
            of_kind = self._of_kind[activation.kind.name] = OrderedDict()
        of_kind[activation.key] = activation
        self._count += 1

    def forget(self, activation: Activation) -> None:
        """Take it out, if it is still in."""
        if not activation.forgotten:
            activation.forgotten = True
            del self._of_kind[activation.kind.name][activation.key]
            self._count -= 1
            self._cache.bytes -= activation.cached_bytes

    def retire(self, activation: Activation) -> None:
        """Take it for the least recently used of its kind: it may leave at once."""
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
        """How many there are of each kind."""
        return {kind: len(of_kind) for kind, of_kind in self._of_kind.items()}

    def of_kind(self, kind: str) -> Iterator[Activation]:
        """Those of a kind, least recently used first. Do not change it meanwhile."""
        return iter(self._of_kind.get(kind, {}).values())

    def oldest_first(self) -> Iterator[Activation]:
        """All, least recently used first. Do not change it meanwhile."""
        return merge(*(of_kind.values() for of_kind in self._of_kind.values()), key=_last_used)


def _last_used(activation: Activation) -> float:
    return activation.last_used
