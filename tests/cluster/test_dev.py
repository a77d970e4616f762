"""`holdfast dev`: one command, a cluster; one signal, nothing left."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import holdfast
import psutil
import pytest

from tests.certs import Authority
from tests.cluster.processes import Processes

APP = Path(__file__).parent / "cluster_app.py"


def start(port: int, data: Path) -> Any:
    command = [
        sys.executable,
        "-m",
        "holdfast",
        "dev",
        str(APP),
        "--nodes",
        "2",
        "--port",
        str(port),
        "--data",
        str(data),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    said(process, "ready: 2 nodes")
    return process


def said(process: Any, wanted: str) -> list[str]:
    """Read what a process says until a line begins with what is wanted; all that it said."""
    lines: list[str] = []
    while not lines or not lines[-1].startswith(wanted):
        lines.append(process.stdout.readline())
        assert lines[-1], f"it ended, and said {lines}"
    return lines


async def test_dev_starts_serves_ends_everything_and_continues_where_it_was(
    tmp_path: Path, processes: Processes
) -> None:
    for expected in (1, 2):
        process = start(processes.gateway_port, tmp_path / "data")
        children = psutil.Process(process.pid).children(recursive=True)
        try:
            async with holdfast.connect(processes.gateway) as client:
                assert await client.get("Counter", "a").increment() == expected
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        assert len(children) >= 4
        assert not [
            child
            for child in children
            if child.is_running() and child.status() != psutil.STATUS_ZOMBIE
        ]


def test_dev_shows_the_users_own_traceback(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import holdfast\n\n1 / 0\n")
    done = subprocess.run(
        [sys.executable, "-m", "holdfast", "dev", str(broken)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "loading.py" not in done.stderr


def test_dev_refuses_a_port_that_another_cluster_has_and_a_folder_that_had_more_nodes(
    tmp_path: Path, processes: Processes
) -> None:
    process = start(processes.gateway_port, tmp_path / "data")
    try:
        command = [
            sys.executable,
            "-m",
            "holdfast",
            "dev",
            str(APP),
            "--port",
            str(processes.gateway_port),
        ]
        done = subprocess.run(
            [*command, "--data", str(tmp_path / "other")],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1
        assert f"port {processes.gateway_port} is in use by process " in done.stderr
        assert "holdfast gateway" in done.stderr
        assert "ready" not in done.stdout
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    done = subprocess.run(
        [*command, "--nodes", "1", "--data", str(tmp_path / "data")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "has the data of 2 nodes: use --nodes 2" in done.stderr


def ask(*arguments: str) -> tuple[int, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "holdfast", *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, json.loads(done.stdout)


def test_call_where_and_status_tell_the_same_story(tmp_path: Path, processes: Processes) -> None:
    gateway = ("--gateway", processes.gateway)
    process = start(processes.gateway_port, tmp_path / "data")
    try:
        assert ask("call", "Counter", "a", "increment", '{"by": 2}', *gateway) == (0, 2)
        code, refused = ask("call", "Counter", "a", "increment", '{"by": -2}', *gateway)
        assert (code, refused["error"]["code"], refused["error"]["definite"]) == (
            1,
            "APPLICATION",
            True,
        )
        _, place = ask("where", "Counter", "a", *gateway)
        code, status = ask("status", *gateway)
        assert code == 0
        assert status["problems"] == []
        assert sum(node["shards_owned"] for node in status["nodes"]) == 256
        assert place["shard"] == status["assignments"][place["shard"]["shard"]]
        assert place["preference"][0] == place["shard"]["owner"]
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


SHOP = """
import logging
from holdfast import App, DurableObject

app = App()


@app.kind
class Cart(DurableObject):
    async def add(self, what: str) -> int:
        n = self.storage.get("n", int, default=0) + 1
        self.storage.put("n", n)
        print("adding", what)
        logging.getLogger("shop").info("added %s", what)
        if what == "stone":
            raise ValueError("too heavy")
        return n
"""


def dev(folder: Path, port: int, *arguments: str) -> Any:
    command = [sys.executable, "-P", "-m", "holdfast", "dev", *arguments, "--port", str(port)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder
    )


def test_dev_shows_what_happens_and_takes_new_code_and_keeps_the_old_when_that_is_broken(
    tmp_path: Path, processes: Processes
) -> None:
    """Its file is called like a module of Python's own."""
    app = tmp_path / "queue.py"
    app.write_text(SHOP)
    process = dev(tmp_path, processes.gateway_port, "queue.py", "--nodes", "2")
    try:
        started = said(process, "ready: 2 nodes")
        assert started[0] == "starting etcd, 1 gateway and 2 nodes for queue.py: Cart\n"
        with holdfast.connect_blocking(processes.gateway) as client:
            cart = client.get("Cart", "c")
            assert cart.add("tea") == 1
            with pytest.raises(holdfast.ApplicationError, match="too heavy"):
                cart.add("stone")
            told = "".join(said_until(process, "ValueError: too heavy"))
            assert "| adding tea" in told
            assert "added tea" in told
            assert "ERROR Cart/c.add failed: too heavy (request " in told
            assert 'raise ValueError("too heavy")' in told
            app.write_text(SHOP.replace("return n", "return n * 1000"))
            said(process, "queue.py changed: restarting n1, n2")
            said(process, "reloaded in ")
            assert cart.add("tea") == 2000
            app.write_text(SHOP + "\ndef broken(\n")
            said(
                process,
                "queue.py changed and cannot be loaded: the nodes keep the code that they have",
            )
            assert "SyntaxError" in "".join(said_until(process, "SyntaxError"))
            assert cart.add("tea") == 3000
            app.write_text(SHOP)
            said(process, "reloaded in ")
            assert cart.add("tea") == 4
    finally:
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(30) == 0


def said_until(process: Any, wanted: str) -> list[str]:
    lines: list[str] = []
    while not lines or wanted not in lines[-1]:
        lines.append(process.stdout.readline())
        assert lines[-1], f"it ended, and said {lines}"
    return lines


def test_what_dev_started_ends_when_it_is_killed(tmp_path: Path, processes: Processes) -> None:
    process = start(processes.gateway_port, tmp_path / "data")
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 5
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


def test_what_a_test_started_ends_when_it_is_killed() -> None:
    code = (
        f"from holdfast import testing\nwith testing.local_cluster({str(APP)!r}):\n   "
        " print('ready', flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    said(process, "ready")
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 4
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


def test_dev_with_certificates_and_an_access_file(tmp_path: Path, processes: Processes) -> None:
    ca = Authority(tmp_path, "ca")
    cert, key = ca.sign("node", "default.holdfast")
    (tmp_path / "access.toml").write_text(
        '[tokens]\nme = ["' + hashlib.sha256(b"secret").hexdigest() + '"]\n'
    )
    (tmp_path / "access.toml").write_text(
        (tmp_path / "access.toml").read_text()
        + "[[allow]]\nsubjects = ['me']\nkinds = ['*']\nmethods = ['*']\n"
    )
    options = (
        "--tls-cert",
        str(cert),
        "--tls-key",
        str(key),
        "--tls-ca",
        str(ca.file),
        "--access",
        str(tmp_path / "access.toml"),
    )
    (tmp_path / "shop.py").write_text(SHOP)
    process = dev(tmp_path, processes.gateway_port, "shop.py", "--nodes", "1", *options)
    try:
        said(process, "ready: 1 node")
        tls = holdfast.TLS(ca.file, server_name="default.holdfast")
        with holdfast.connect_blocking(processes.gateway, tls=tls, token="secret") as client:
            assert client.get("Cart", "c").add("tea") == 1
        with (
            holdfast.connect_blocking(processes.gateway, tls=tls) as client,
            pytest.raises(holdfast.PermissionDenied),
        ):
            client.get("Cart", "c").add("tea")
        (tmp_path / "shop.py").write_text(SHOP.replace("return n", "return n * 1000"))
        said(process, "reloaded in ")
        with holdfast.connect_blocking(processes.gateway, tls=tls, token="secret") as client:
            assert client.get("Cart", "c").add("tea") == 2000
    finally:
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(30) == 0
    process = dev(tmp_path, processes.gateway_port, "shop.py", *options[:2])
    assert process.wait(30) == 1
    assert "TLS needs all of --tls-cert, --tls-key and --tls-ca" in process.stdout.read()
