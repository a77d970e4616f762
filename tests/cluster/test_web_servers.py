"""docs/guide/web-servers.md: each of its examples, served and called as there."""

from __future__ import annotations

import asyncio
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import holdfast
import pytest
from holdfast import testing
from holdfast.local import free_port

from examples.web.counter import Counter

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "examples" / "web" / "requirements.txt"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def gateway() -> Iterator[str]:
    with testing.local_cluster(str(ROOT / "examples/web/counter.py")) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def packages() -> Path:
    """What the examples need, below `.venv`, where it stays for the next time."""
    folder = ROOT / ".venv" / "web"
    stamp = folder / "made-for"
    needs = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != needs:
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--upgrade",
            "--target",
            str(folder),
        ]
        done = subprocess.run([*pip, "-r", str(REQUIREMENTS)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        stamp.write_text(needs)
    return folder


@pytest.fixture
def environment(gateway: str, packages: Path) -> dict[str, str]:
    return {
        **os.environ,
        "HOLDFAST_GATEWAY": gateway,
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(packages))),
    }


@contextmanager
def serving(environment: dict[str, str], port: int, *command: str) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        env=environment,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1)
            except urllib.error.HTTPError:
                break
            except OSError:
                assert process.poll() is None, process.stderr.read() if process.stderr else ""
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.communicate(timeout=30)


def ask(url: str, method: str = "GET", **headers: str) -> Any:
    request = urllib.request.Request(
        url,
        method=method,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.status, json.loads(answer.read() or b"null")


def value(gateway: str, key: str) -> int:
    with holdfast.connect_blocking(gateway) as client:
        return int(client.get(Counter, key).value())


def test_fastapi_on_uvicorn_with_two_workers(gateway: str, environment: dict[str, str]) -> None:
    port = free_port()
    command = (
        "uvicorn",
        "--factory",
        "examples.web.fastapi_app:make_app",
        "--workers",
        "2",
        "--port",
        str(port),
    )
    with serving(environment, port, *command):
        url = f"http://127.0.0.1:{port}/counters/fastapi"
        answers = [ask(url, "POST")[1] for _ in range(20)]
        assert [answer["n"] for answer in answers] == list(range(1, 21))
        assert {ask(url, "POST", idempotency_key="once")[1]["n"] for _ in range(3)} == {21}
        assert ask(f"{url}/later", "POST")[0] == 202
        deadline = time.monotonic() + 10
        while value(gateway, "fastapi") != 22:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_django_on_gunicorn_with_threads_and_preload(environment: dict[str, str]) -> None:
    port = free_port()
    options = ("--workers", "2", "--threads", "4", "--preload", "--bind", f"127.0.0.1:{port}")
    with (
        serving(environment, port, "gunicorn", *options, "examples.web.django_app:application"),
        ThreadPoolExecutor(8) as pool,
    ):
        answers = list(
            pool.map(lambda _: ask(f"http://127.0.0.1:{port}/counters/django")[1], range(40))
        )
    assert sorted(answer["n"] for answer in answers) == list(range(1, 41))


def test_celery_with_prefork_workers(environment: dict[str, str], tmp_path: Path) -> None:
    environment = {**environment, "CELERY_FOLDER": str(tmp_path)}
    options = (
        "--app",
        "examples.web.celery_app",
        "worker",
        "--pool",
        "prefork",
        "--concurrency",
        "2",
    )
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", *options],
        env=environment,
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    try:
        code = (
            "from examples.web.celery_app import increment\nprint(sorted(result.get(timeout=60) for"
            " result in [increment.delay('celery') for _ in range(6)]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.stdout == "[1, 2, 3, 4, 5, 6]\n", done.stderr
    finally:
        worker.terminate()
        worker.wait(30)


def test_gevent_waits_for_many_calls_at_once(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "examples.web.gevent_app"]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("20 calls of a second each in ")
    assert float(done.stdout.split(" in ")[1].split()[0]) < 10
    assert done.stdout.rstrip().endswith(": 20")


def test_a_notebook_keeps_an_open_client_from_cell_to_cell(
    environment: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "examples.web.notebook"]
    told = {**environment, "IPYTHONDIR": str(tmp_path)}
    done = subprocess.run(command, env=told, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["1", "2", "3"], done.stdout + done.stderr


async def test_event_loops_threads_and_cancellation(gateway: str) -> None:
    client = await holdfast.connect(gateway).open()
    with pytest.raises(RuntimeError, match="opened already"):
        await client.open()

    def on_another_loop() -> None:
        async def use() -> None:
            await client.get(Counter, "loops").increment()

        asyncio.run(use())

    with pytest.raises(RuntimeError, match="opened on another event loop"):
        await asyncio.to_thread(on_another_loop)
    loop = asyncio.get_running_loop()

    def from_a_thread() -> int:
        return asyncio.run_coroutine_threadsafe(
            client.get(Counter, "loops").increment(), loop
        ).result(10)

    assert await asyncio.to_thread(from_a_thread) == 1
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await client.get(Counter, "cancelled").slow_increment(1.0)
    await asyncio.sleep(1.2)
    assert await client.get(Counter, "cancelled").value() == 0, "the turn was rolled back"
    blocking = holdfast.connect_blocking(gateway)
    assert await asyncio.to_thread(blocking.get(Counter, "loops").increment) == 2
    await client.close()
    with pytest.raises(RuntimeError, match="not open"):
        await client.get(Counter, "loops").increment()
    blocking.close()


def _child(gateway: str) -> int:
    with holdfast.connect_blocking(gateway) as client:
        return int(client.get(Counter, "spawned").increment())


def test_processes_that_are_spawned_have_clients_of_their_own(gateway: str) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert sorted(pool.map(_child, [gateway] * 4)) == [1, 2, 3, 4]
