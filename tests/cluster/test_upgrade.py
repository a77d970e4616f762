"""Version N and the next one together: a rolling upgrade under load, and back.

The next version is this one with one more field in every message, every record and every key of
etcd. docs/operating.md allows a version to add that.
"""

from __future__ import annotations

import ast
import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import holdfast
import pytest

from tests.cluster.processes import Processes
from tests.cluster.test_replication import whole
from tests.cluster.test_restarts import Load

ROOT = Path(__file__).parents[2]
PACKAGES = ("sdk", "cluster", "node", "gateway")
STRUCTS = (
    "cluster/holdfast_cluster/placement/model.py",
    "cluster/holdfast_cluster/streams/tcp.py",
    "node/holdfast_node/effects/records.py",
    "node/holdfast_node/log/changes.py",
    "node/holdfast_node/replication/copies.py",
    "node/holdfast_node/replication/core/events.py",
)
SAID = {  # where a message gets the new field
    "cluster/holdfast_cluster/routing/dispatch.py": (
        "call.id = number",
        "call.id = number; call.later = 'new'",
    ),
    "node/holdfast_node/process/peer.py": (
        "peer_pb2.PipeResponse(",
        "peer_pb2.PipeResponse(later='new', ",
    ),
}


def make_next_version(folder: Path) -> str:
    """Copy the packages below a folder and add the fields; the PYTHONPATH to run it with."""
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in STRUCTS:
        file = folder / name
        lines = file.read_text().splitlines()
        classes = [
            node for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)
        ]
        structs = [
            node for node in classes if any("Struct" in ast.unparse(base) for base in node.bases)
        ]
        assert structs, name
        for node in sorted(structs, key=lambda node: -node.lineno):
            assert node.end_lineno is not None
            lines.insert(node.end_lineno, '    later: str = "new"')
        file.write_text("\n".join(lines) + "\n")
    for name, (old, new) in SAID.items():
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))
    for package, proto in (("sdk", "holdfast/v1"), ("cluster", "holdfast_cluster/peerpb")):
        shutil.copytree(ROOT / "proto" / proto, folder / "proto" / proto)
        files = list((folder / "proto" / proto).glob("*.proto"))
        for file in files:
            file.write_text(
                re.sub(
                    r"^(\s*message \w+ \{)",
                    r"\1 string later = 99;",
                    file.read_text(),
                    flags=re.MULTILINE,
                )
            )
        subprocess.run(
            [
                sys.executable,
                "-m",
                "grpc_tools.protoc",
                f"-I{folder / 'proto'}",
                f"--python_out={folder / package}",
                f"--pyi_out={folder / package}",
                *map(str, files),
            ],
            check=True,
        )
    return os.pathsep.join(str(folder / package) for package in PACKAGES)


class Mixed(Processes):
    """Processes named in `upgraded` run the next version."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, replication=3)
        self.upgraded: set[str] = set()
        self.path = make_next_version(folder / "next")

    def start(self, name: str, *command: str) -> None:
        prefix = ("env", f"PYTHONPATH={self.path}") if name in self.upgraded else ()
        super().start(name, *prefix, *command)

    def roll(self, name: str) -> None:
        """Stop a process as an operator does, and start it again."""
        self.kill(name, signal.SIGTERM)
        if name == "gateway":
            self.front()
        else:
            self.node(name, "--members-min", "3")

    def in_etcd(self, node: str) -> str:
        found = subprocess.run(
            [
                "etcdctl",
                "--endpoints",
                self.etcd,
                "get",
                "--prefix",
                "--print-value-only",
                f"/holdfast/default/members/{node}-",
            ],
            capture_output=True,
            text=True,
            check=True,
            env={
                **os.environ,
                "ETCDCTL_API": "3",
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            },
        )
        return found.stdout


@pytest.fixture
def mixed(tmp_path: Path) -> Iterator[Mixed]:
    cluster = Mixed(tmp_path)
    try:
        cluster.start_all(nodes=3)
        cluster.wait_ready(cluster.gateway)
        yield cluster
    finally:
        cluster.stop()


async def test_a_rolling_upgrade_and_its_way_back_cost_no_call_and_lose_nothing(
    mixed: Mixed,
) -> None:
    sent = 0

    async def effects(client: holdfast.Client) -> None:
        """Leave notifications and an alarm behind that the next version delivers, or the one
        before."""
        nonlocal sent
        await client.get("Sender", "s").send("r", 5, delay_ms=1500)
        await client.get("Receiver", f"alarm{sent}").alarm(1500)
        sent += 1

    async def healthy() -> None:
        deadline = time.monotonic() + 60
        while True:
            _, status = await asyncio.to_thread(mixed.ask, "status")
            if whole(status) and len(status["nodes"]) == 3:
                return
            assert time.monotonic() < deadline, status["problems"]
            await asyncio.sleep(0.1)

    async with mixed.connect(timeout=60) as client:
        async with Load(client) as load:
            for upgraded, names in (
                (True, ("gateway", "n1", "n2", "n3")),
                (False, ("n2", "gateway")),
            ):
                for name in names:
                    await effects(client)
                    (mixed.upgraded.add if upgraded else mixed.upgraded.discard)(name)
                    await asyncio.to_thread(mixed.roll, name)
                    await load.goes_on()
                    await healthy()
                    if name != "gateway":
                        assert ('"later":"new"' in mixed.in_etcd(name)) is upgraded
            await load.goes_on()
        await load.check()
        assert load.slowest_s < 20
        async with asyncio.timeout(20):
            while len(await client.get("Receiver", "r").took()) < 5 * sent:
                await asyncio.sleep(0.1)
            for i in range(sent):
                while not await client.get("Receiver", f"alarm{i}").took():
                    await asyncio.sleep(0.1)
                assert len(await client.get("Receiver", f"alarm{i}").took()) == 1
        assert len(await client.get("Receiver", "r").took()) == 5 * sent
    assert mixed.ask("deadletters", "list")[1]["letters"] == []
    for name in ("gateway", "n1", "n2", "n3"):
        assert "Traceback" not in mixed.said(name)
