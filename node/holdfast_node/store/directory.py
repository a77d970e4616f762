"""The data directory: the node and cluster that it belongs to, and the number of its starts."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from holdfast_node.store import keys
from holdfast_node.store.rocks import Store

FORMAT = b"2"
"""The format of a directory: see docs/reference/format.md. A node converts directories of format 1
when it starts."""


class WrongDirectory(Exception):
    """The directory belongs to another node or cluster, or has an unknown format. The message names
    both sides."""


class DataDirectory:
    """Facts of a data directory, kept in its store. Implements
    `holdfast_cluster.membership.member.Directory`."""

    def __init__(self, store: Store, convert: Callable[[Store], None]) -> None:
        """`convert`: brings a directory of format 1 to this format. Raises WrongDirectory for an
        unknown format."""
        self._store = store
        found = store.get("meta", keys.FORMAT)
        if found is None:
            self._put(keys.FORMAT, FORMAT)
        elif found == b"1":
            convert(store)
            self._put(keys.FORMAT, FORMAT)
        elif found != FORMAT:
            raise WrongDirectory(
                f"{store.path} has format {found.decode()}, this version reads format"
                f" {FORMAT.decode()}"
            )

    def node_id(self, name: str | None) -> str:
        """Return the id of the node that this directory belongs to. The first start makes the id:
        `name` and a random part.

        Raises WrongDirectory if the directory was started under another name.
        """
        raw = self._store.get("meta", keys.NODE_ID)
        if raw is None:
            node = f"{name or 'node'}-{secrets.token_hex(3)}"
            self._put(keys.NODE_ID, node.encode())
            return node
        node = raw.decode()
        if name is not None and node.rpartition("-")[0] != name:
            raise WrongDirectory(
                f"data directory {self._store.path} is node {node}'s, not {name!r}'s: give that"
                " node's own directory, or an empty one"
            )
        return node

    @property
    def cluster_id(self) -> str:
        """The id of the cluster that the directory is bound to; empty if it is not bound."""
        return (self._store.get("meta", keys.CLUSTER_ID) or b"").decode()

    @property
    def incarnation(self) -> int:
        """How often the node has started or joined again."""
        return int(self._store.get("meta", keys.INCARNATION) or b"0")

    def claim(self, cluster_id: str) -> None:
        """Bind the directory to a cluster at its first start. Raises WrongDirectory if it is bound
        to another cluster."""
        raw = self._store.get("meta", keys.CLUSTER_ID)
        if raw is None:
            self._put(keys.CLUSTER_ID, cluster_id.encode())
        elif raw.decode() != cluster_id:
            raise WrongDirectory(
                f"data directory {self._store.path} belongs to cluster {raw.decode()}, but etcd"
                f" describes cluster {cluster_id}. Either the node was pointed at another cluster's"
                " etcd, or that etcd was emptied; nothing is served"
            )

    def next_incarnation(self) -> int:
        """Raise the start counter by one and return it. The new value is on disk before this
        returns."""
        incarnation = self.incarnation + 1
        self._put(keys.INCARNATION, str(incarnation).encode())
        return incarnation

    def _put(self, key: bytes, value: bytes) -> None:
        batch = self._store.batch()
        batch.put("meta", key, value)
        self._store.write(batch)
        self._store.sync()
