"""`holdfast dev`: one command, a cluster; one signal, nothing left."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import holdfast
import psutil

APP = Path(__file__).parent / "cluster_app.py"


def start(port: int, data: Path) -> Any:
    command = [sys.executable, "-m", "holdfast", "dev", str(APP), "--nodes", "2", "--port", str(port), "--data", str(data)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("ready: 2 nodes")
    return process


async def test_dev_starts_serves_ends_everything_and_continues_where_it_was(tmp_path: Path, processes: Any) -> None:
    for expected in (1, 2):
        process = start(processes.gateway_port, tmp_path / "data")
        children = psutil.Process(process.pid).children(recursive=True)
        try:
            async with holdfast.connect(processes.gateway) as client:
                assert await client.get("Counter", "a").increment() == expected  # type: ignore[attr-defined]
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        assert len(children) >= 4
        assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_dev_shows_the_users_own_traceback(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import holdfast\n\n1 / 0\n")
    done = subprocess.run([sys.executable, "-m", "holdfast", "dev", str(broken)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "loading.py" not in done.stderr


def test_dev_refuses_a_port_that_another_cluster_has_and_a_folder_that_had_more_nodes(tmp_path: Path, processes: Any) -> None:
    process = start(processes.gateway_port, tmp_path / "data")
    try:
        command = [sys.executable, "-m", "holdfast", "dev", str(APP), "--port", str(processes.gateway_port)]
        done = subprocess.run([*command, "--data", str(tmp_path / "other")], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert f"port {processes.gateway_port} is in use" in done.stderr
        assert "ready" not in done.stdout
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    done = subprocess.run([*command, "--nodes", "1", "--data", str(tmp_path / "data")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "has 2 nodes, and what they own is with them: use --nodes 2" in done.stderr


def ask(*arguments: str) -> tuple[int, Any]:
    done = subprocess.run([sys.executable, "-m", "holdfast", *arguments, "--json"], capture_output=True, text=True, timeout=60)
    return done.returncode, json.loads(done.stdout)


def test_call_where_and_status_tell_the_same_story(tmp_path: Path, processes: Any) -> None:
    gateway = ("--gateway", processes.gateway)
    process = start(processes.gateway_port, tmp_path / "data")
    try:
        assert ask("call", "Counter", "a", "increment", '{"by": 2}', *gateway) == (0, 2)
        code, refused = ask("call", "Counter", "a", "increment", '{"by": -2}', *gateway)
        assert (code, refused["error"]["code"], refused["error"]["definite"]) == (1, "APPLICATION", True)
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
