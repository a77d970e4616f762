"""The active objects of a node, in the order of their use, and what their caches take together."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from holdfast_node.activation import Activation
from holdfast_node.shards import Shard


class Activations:
    """`cached_bytes` is the size of all hot caches. An activation that was forgotten counts no more, whatever it still does."""

    def __init__(self) -> None:
        self._by_ident: OrderedDict[tuple[str, str], Activation] = OrderedDict()
        self.cached_bytes = 0

    def __len__(self) -> int:
        return len(self._by_ident)

    def use(self, kind: str, key: str) -> Activation | None:
        """The object's activation, which is now the most recently used; None when it is not active."""
        ident = (kind, key)
        activation = self._by_ident.get(ident)
        if activation is not None:
            self._by_ident.move_to_end(ident)
        return activation

    def get(self, kind: str, key: str) -> Activation | None:
        """The object's activation, without using it."""
        return self._by_ident.get((kind, key))

    def add(self, activation: Activation) -> None:
        self._by_ident[activation.kind.name, activation.key] = activation

    def forget(self, activation: Activation) -> None:
        """Take it out, if it is still in."""
        if not activation.forgotten:
            activation.forgotten = True
            del self._by_ident[activation.kind.name, activation.key]
            self.cached_bytes -= activation.cached_bytes

    def account(self, activation: Activation) -> None:
        """Take note of what its cache has grown or shrunk by."""
        grown = activation.storage.cached_bytes - activation.cached_bytes
        if grown and not activation.forgotten:
            activation.cached_bytes += grown
            self.cached_bytes += grown

    def of_shards(self, shards: set[Shard]) -> list[Activation]:
        return [activation for activation in self._by_ident.values() if activation.shard in shards]

    def kinds(self) -> Iterator[str]:
        """The kind of each."""
        return (kind for kind, _ in self._by_ident)

    def oldest(self) -> Activation | None:
        """The least recently used one."""
        return next(iter(self._by_ident.values()), None)

    def at_rest(self) -> Iterator[Activation]:
        """Those without a turn, a waiting call or writes that the store does not show yet, least recently used first.

        Do not change it meanwhile.
        """
        for activation in self._by_ident.values():
            if activation.at_rest():
                yield activation
