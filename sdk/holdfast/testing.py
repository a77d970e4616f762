"""For tests of an application: a real cluster on loopback, in a `with` block.

    with holdfast.testing.local_cluster("shop/app.py") as gateway, holdfast.connect_blocking(gateway) as client:
        assert client.get(Cart, "c-1").add("tea") == 1

It starts etcd, nodes and a gateway as processes of their own and ends them with the block; one is enough for all tests of a session.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from holdfast.local import ClusterFailed, LocalCluster, free_port

__all__ = ["ClusterFailed", "local_cluster"]


@contextmanager
def local_cluster(app: str, *, nodes: int = 1, data: Path | None = None) -> Iterator[str]:
    """Run `app` (a file or a module) on a cluster of `nodes`; the gateway's address, once calls reach them.

    `data`: where the processes' data and logs stay (below `logs/`); without it they are removed at the end.
    Raises ClusterFailed with the end of the log when a process does not start.
    """
    folder = data or Path(tempfile.mkdtemp(prefix="holdfast-test-"))
    cluster = LocalCluster(folder)
    try:
        port = free_port()
        cluster.start_etcd()
        for i in range(1, nodes + 1):
            cluster.start_node(f"n{i}", app, "--members-min", str(nodes), "--replication", str(min(nodes, 3)))
        cluster.start_gateway("gateway", port)
        cluster.wait_ready(f"127.0.0.1:{port}")
        yield f"127.0.0.1:{port}"
    finally:
        cluster.stop()
        if data is None:
            shutil.rmtree(folder, ignore_errors=True)
