"""Clients in programs that make processes: every acknowledged increment is in the counter, once,
whichever process made it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import holdfast
import pytest
from holdfast.local import free_port

from tests.cluster.processes import Processes

FOLDER = Path(__file__).parent


def forking(shared: Processes, way: str, key: str) -> Any:
    command = (sys.executable, str(FOLDER / "forking.py"), way, shared.gateway, key)
    environment = {
        name: value for name, value in os.environ.items() if name != "GRPC_ENABLE_FORK_SUPPORT"
    }
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("way", "used_before"),
    [
        ("cold", 0),
        ("warm", 3),
        ("untold", 3),
        ("grandchildren", 3),
        ("threads", 3),
        ("threads and forks", 3),
        ("fork", 3),
        ("spawn", 3),
        ("forkserver", 3),
        ("ProcessPoolExecutor", 3),
        ("asyncio before", 1),
    ],
)
async def test_every_acknowledged_call_of_every_process_took_effect_once(
    shared: Processes, client: holdfast.Client, way: str, used_before: int
) -> None:
    key = f"fork-{uuid.uuid4().hex[:8]}"
    results = forking(shared, way, key)
    assert all(isinstance(process, list) for process in results), results
    everything = [n for process in results for n in process]
    assert sorted(everything) == list(range(used_before + 1, used_before + 1 + len(everything)))
    assert await client.get("Counter", key).value() == used_before + len(everything)


async def test_a_child_that_inherits_an_open_asyncio_client_is_told_so(
    shared: Processes, client: holdfast.Client
) -> None:
    key = f"fork-{uuid.uuid4().hex[:8]}"
    ((called, entered, closed, opened, blocking),) = forking(shared, "asyncio", key)
    assert "ForkedError: this asyncio client was open when its process was forked" in called
    assert "ForkedError: this asyncio client" in entered
    assert closed == "done"
    assert "ForkedError: this process cannot use gRPC" in opened
    assert "ForkedError: this process cannot use gRPC" in blocking
    assert await client.get("Counter", key).value() == 2  # the parent's client went on


async def test_workers_of_a_prefork_server_share_a_client_that_was_used_before(
    shared: Processes, client: holdfast.Client, tmp_path: Path
) -> None:
    port, key, calls = free_port(), f"fork-{uuid.uuid4().hex[:8]}", 400
    command = (
        sys.executable,
        "-m",
        "gunicorn",
        "--preload",
        "--workers",
        "4",
        "--bind",
        f"127.0.0.1:{port}",
        "forking_wsgi:app",
    )
    environment = {**os.environ, "GATEWAY": shared.gateway, "KEY": key, "PYTHONPATH": str(FOLDER)}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log)
    try:

        def request(_: int) -> Any:
            with urlopen(f"http://127.0.0.1:{port}/", timeout=40) as answer:
                return json.loads(answer.read())

        deadline = time.monotonic() + 30
        while True:
            try:
                first = request(0)
                break
            except OSError:
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.1)
        with ThreadPoolExecutor(16) as pool:
            answers = [first, *pool.map(request, range(calls - 1))]
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(30)
        finally:
            server.kill()
    assert len({answer["pid"] for answer in answers}) > 1
    assert sorted(answer["n"] for answer in answers) == list(range(2, calls + 2))
    assert await client.get("Counter", key).value() == calls + 1
