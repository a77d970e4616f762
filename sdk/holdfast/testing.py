"""For tests of applications.

`virtual_cluster` is a whole cluster in the test's own process, on virtual time: it starts in
milliseconds, and a day passes in an instant. `local_cluster` is one of real processes. With pytest
both are fixtures, which are there without an import (`holdfast.pytest_plugin`): `holdfast_cluster`
and `holdfast_processes`.

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
    """A cluster in the test's own process. Its time stands still between calls, and jumps to what
    is due next within one.

    There is one node. The engine is that of production; what is simulated is the disk, the network
    and the time. Times on the network are drawn from `seed`: with the same seed a test runs in the
    same way. `datetime.now()` in handlers is not virtual; `now()` is.
    """

    seed: int
    client: Any
    """`get` and `notify` for coroutines that `run` runs: `await cluster.client.get(Cart,
    "c").add("tea")`."""

    @overload
    def get(self, kind: type[T], key: str, **options: Any) -> Any: ...
    @overload
    def get(self, kind: str, key: str, **options: Any) -> Any: ...
    def get(self, kind: Any, key: str, **options: Any) -> Any:
        """A stub whose calls return results: `cluster.get(Cart, "c-1").add("tea")`. Options are
        those of `BlockingClient.get`, and `caller`, as whom a gateway would have known who calls.
        """

    @overload
    def notify(self, kind: type[T], key: str, **options: Any) -> Any: ...
    @overload
    def notify(self, kind: str, key: str, **options: Any) -> Any: ...
    def notify(self, kind: Any, key: str, **options: Any) -> Any:
        """A stub whose calls are stored, to be run later: see `BlockingClient.notify`."""

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the cluster's loop and time; its result. For calls that are to be
        under way together."""

    def now(self) -> datetime:
        """The cluster's time, UTC. It begins with the real one, or with what the cluster was made
        with."""

    def advance(self, delta: timedelta) -> None:
        """Let time pass: alarms fire, delayed notifications leave, what has a ttl expires, idle
        objects leave memory."""

    def settle(self) -> None:
        """Let everything happen that is due by now: calls, notifications and their
        retries, alarms."""

    def fire_alarm(self, kind: type | str, key: str, name: str = "default") -> None:
        """Have an alarm fire now. Raises LookupError when the object has none of that name, and
        what its handler raises."""

    def evict(self, kind: type | str, key: str) -> bool:
        """Take an object out of memory; whether it was there."""

    def crash_owner(self, kind: type | str = "", key: str = "") -> None:
        """Have the node that owns an object crash, and start again: what is not durable is gone,
        and so are all instances.

        Calls that were under way are sent again, as clients do.
        """

    def drop_next_reply(self) -> None:
        """Have the reply to the next call get lost after it has taken effect. The call is sent
        again with its request id."""

    def stored(self, kind: type | str, key: str) -> dict[str, Any]:
        """What an object has stored, in plain types."""

    def alarms(self, kind: type | str, key: str) -> list[Alarm]:
        """The alarms of an object, the next one first."""

    def dead_letters(self) -> list[dict[str, Any]]:
        """What could not be delivered: `from`, `to`, `method`, `alarm`, `arguments`, `attempts` and
        `error` of each."""

    def close(self) -> None:
        """End it."""


@contextmanager
def virtual_cluster(
    app: App, *, seed: int | None = None, now: datetime | None = None
) -> Iterator[Cluster]:
    """Run `app` on a cluster in this process, on virtual time. `seed`: by default drawn anew.
    `now`: its time at first."""
    (entry,) = entry_points(group="holdfast.testing", name="cluster")
    cluster: Cluster = entry.load()(app, seed, now)
    try:
        yield cluster
    finally:
        cluster.close()


@contextmanager
def local_cluster(app: str, *, nodes: int = 1, data: Path | None = None) -> Iterator[str]:
    """Run `app` (a file or a module) on a cluster of `nodes` processes; the gateway's address, once
    calls reach them.

    It takes about two seconds; one is enough for all tests of a session. `data`: where the
    processes' data and logs stay (below `logs/`); without it they are removed at the end. Raises
    ClusterFailed with the end of the log when a process does not start.
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
