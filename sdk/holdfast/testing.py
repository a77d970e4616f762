"""Clusters for tests of applications.

`virtual_cluster` is a whole cluster in the test's own process, on virtual time: it starts in
milliseconds, and a day passes in an instant. `local_cluster` is a cluster of real processes.

For pytest both are fixtures, `holdfast_cluster` and `holdfast_processes`. pytest finds them without
an import (`holdfast.pytest_plugin`).

    def test_a_cart_is_forgotten(holdfast_cluster):
        cart = holdfast_cluster.get(Cart, "c-1")
        cart.add("tea")
        holdfast_cluster.advance(timedelta(days=31))
        assert cart.items() == []
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

from holdfast.alarms import Alarm
from holdfast.app import App
from holdfast.local import ClusterFailed, LocalCluster, free_port

__all__ = ["Cluster", "ClusterFailed", "local_cluster", "virtual_cluster"]

T = TypeVar("T")


class Cluster(Protocol):
    """A cluster of one node in the test's own process. Its time stands still between calls; within
    a call it jumps to the next event that is due.

    The engine is that of production. Disk, network and time are simulated. The times on the network
    are drawn from `seed`: with the same seed a test runs in the same way. `now()` is virtual;
    `datetime.now()` in handlers is not.
    """

    seed: int
    """The seed from which the times on the network are drawn."""
    client: Any
    """An asyncio client with `get` and `notify`, for coroutines that `run` runs: `await
    cluster.client.get(Cart, "c").add("tea")`.
    """

    @overload
    def get(self, kind: type[T], key: str, **options: Any) -> Any: ...
    @overload
    def get(self, kind: str, key: str, **options: Any) -> Any: ...
    def get(self, kind: Any, key: str, **options: Any) -> Any:
        """Return a stub whose calls return results: `cluster.get(Cart, "c-1").add("tea")`.

        The options are those of `BlockingClient.get`, and `caller`: the subject that makes the
        calls, as a gateway would give it.
        """

    @overload
    def notify(self, kind: type[T], key: str, **options: Any) -> Any: ...
    @overload
    def notify(self, kind: str, key: str, **options: Any) -> Any: ...
    def notify(self, kind: Any, key: str, **options: Any) -> Any:
        """Return a stub whose calls are stored, to be run later; see `BlockingClient.notify`."""

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the cluster's loop and time, and return its result. Use it for calls
        that must be under way together.
        """

    def now(self) -> datetime:
        """Return the cluster's time, UTC. It begins with the real time, or with the `now` given to
        `virtual_cluster`.
        """

    def advance(self, delta: timedelta) -> None:
        """Let time pass: alarms fire, delayed notifications leave, values and objects with a ttl
        expire, idle objects leave memory.
        """

    def settle(self) -> None:
        """Let everything happen that is due now: calls, notifications and their retries, alarms."""

    def fire_alarm(self, kind: type | str, key: str, name: str = "default") -> None:
        """Fire an alarm now. Raise LookupError if the object has no alarm of that name. An
        exception of its handler is raised too.
        """

    def evict(self, kind: type | str, key: str) -> bool:
        """Take an object out of memory. Return whether it was there."""

    def crash_owner(self, kind: type | str = "", key: str = "") -> None:
        """Crash the node that owns an object, and start it again. All that is not durable is lost,
        and so are all instances.

        Calls that were under way are sent again, as clients do.
        """

    def drop_next_reply(self) -> None:
        """Lose the reply to the next call after the call has taken effect. The call is sent again
        with its request id.
        """

    def stored(self, kind: type | str, key: str) -> dict[str, Any]:
        """Return all that an object has stored, in plain types."""

    def alarms(self, kind: type | str, key: str) -> list[Alarm]:
        """Return the alarms of an object, the next one first."""

    def dead_letters(self) -> list[dict[str, Any]]:
        """Return the dead letters. Each has `from`, `to`, `method`, `alarm`, `arguments`,
        `attempts` and `error`.
        """

    def close(self) -> None:
        """End the cluster."""


@contextmanager
def virtual_cluster(
    app: App, *, seed: int | None = None, now: datetime | None = None
) -> Iterator[Cluster]:
    """Run `app` on a cluster in this process, on virtual time.

    `seed`: the seed of the times on the network; None: a new one. `now`: the cluster's time at the
    start; None: the real time.
    """
    (entry,) = entry_points(group="holdfast.testing", name="cluster")
    cluster: Cluster = entry.load()(app, seed, now)
    try:
        yield cluster
    finally:
        cluster.close()


@contextmanager
def local_cluster(app: str, *, nodes: int = 1, data: Path | None = None) -> Iterator[str]:
    """Run `app` (a file or a module) on a cluster of `nodes` node processes. Give the gateway's
    address when calls reach the nodes.

    The start takes about two seconds; one cluster is enough for all tests of a session. `data`: the
    folder in which data and logs (in `logs/`) stay. Without it they are removed at the end. Raises
    ClusterFailed, with the end of the log, if a process does not start.
    """
    folder = data or Path(tempfile.mkdtemp(prefix="holdfast-test-"))
    cluster = LocalCluster(folder)
    try:
        port = free_port()
        cluster.start_etcd()
        for i in range(1, nodes + 1):
            cluster.start_node(
                f"n{i}", app, "--members-min", str(nodes), "--replication", str(min(nodes, 3))
            )
        cluster.start_gateway("gateway", port)
        cluster.wait_ready(f"127.0.0.1:{port}")
        yield f"127.0.0.1:{port}"
    finally:
        cluster.stop()
        if data is None:
            shutil.rmtree(folder, ignore_errors=True)
