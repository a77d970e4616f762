"""Bad input gets a clear error, and nothing is lost by it."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path
from typing import Any

import grpc
import holdfast
import pytest
from holdfast.local import free_port
from holdfast.v1 import objects_pb2 as pb
from holdfast.v1 import objects_pb2_grpc

from tests.cluster.processes import APP, BENCH_APP, Processes, run

# -- calls


@pytest.mark.parametrize(
    ("kind", "method", "nearest"),
    [
        ("Countr", "increment", "did you mean Counter"),
        ("Counter", "incremnt", "did you mean increment"),
        ("Counter", "_private", "has no method"),
        ("Counter", "__init__", "has no method"),
        ("Counter", "on_activate", "has no method"),
    ],
)
async def test_an_unknown_kind_or_method_is_told_with_the_nearest_names(
    client: holdfast.Client, kind: str, method: str, nearest: str
) -> None:
    with pytest.raises(holdfast.NotFound, match=nearest) as unknown:
        await client.call(kind, "a", method)
    assert unknown.value.definite
    assert not unknown.value.retryable


@pytest.mark.parametrize(
    ("kind", "method", "arguments", "path", "message"),
    [
        ("Counter", "increment", {"by": "x"}, "$.by", "Expected `int`, got `str`"),
        ("Counter", "wait_and_increment", {"seconds": 1.0}, "$.limit", "lacks 'limit'"),
        ("Counter", "increment", {"by": 1, "more": 2}, "$.more", "has no argument 'more'"),
        ("Counter", "increment", [1, 2], "$", "takes at most 1 positional arguments, got 2"),
        ("echo", "parcel", {"parcel": {"id": "no"}}, "$.parcel.id", "Invalid UUID"),
        (
            "echo",
            "named",
            {"first": 1, "second": {"x": "1", "y": "1"}},
            "$.second.x",
            "Expected `int`, got `str`",
        ),
    ],
)
async def test_a_wrong_or_missing_argument_is_told_with_its_path_and_type(
    client: holdfast.Client, kind: str, method: str, arguments: Any, path: str, message: str
) -> None:
    stub = getattr(client.get(kind, "a"), method)
    with pytest.raises(holdfast.InvalidArgument, match=message) as wrong:
        await (stub(**arguments) if isinstance(arguments, dict) else stub(*arguments))
    assert wrong.value.path == path
    assert wrong.value.definite


@pytest.mark.parametrize("key", ["", "k" * 1025, "ü" * 513])
async def test_an_empty_or_over_long_key_is_refused(client: holdfast.Client, key: str) -> None:
    with pytest.raises(holdfast.InvalidArgument, match="key has 1 to 1024 bytes") as wrong:
        await client.get("Counter", key).increment()
    assert wrong.value.path == "key"


async def test_a_key_of_1024_bytes_of_any_text_is_fine(client: holdfast.Client) -> None:
    for key in ("ü" * 512, "\0" * 1024, "k" * 1024):
        assert await client.get("Counter", key).increment() == 1


async def test_an_argument_that_is_too_large_is_refused_and_others_are_served(
    client: holdfast.Client,
) -> None:
    with pytest.raises(
        holdfast.TooLarge, match="arguments of 5242886 bytes, at most 4194304"
    ) as large:
        await client.get("echo", "e").text("x" * (5 << 20))
    assert large.value.definite
    text = "x" * ((4 << 20) - 100)
    assert await client.get("echo", "e").text(text) == text


async def test_a_message_beyond_grpcs_own_limit_fails_that_call_alone(
    client: holdfast.Client,
) -> None:
    others = [
        asyncio.create_task(client.get("Counter", f"beside {i}").increment()) for i in range(50)
    ]
    with pytest.raises(holdfast.TooLarge):
        await client.get("echo", "e").text("x" * (9 << 20))
    assert await asyncio.gather(*others) == [1] * 50


async def test_a_full_mailbox_refuses_with_when_to_come_back(client: holdfast.Client) -> None:
    busy = client.get("Counter", "full")
    running = asyncio.create_task(busy.wait_and_increment(0.5, 5.0))
    await asyncio.sleep(0.1)
    results = await asyncio.gather(*(busy.increment() for _ in range(60)), return_exceptions=True)
    refused = [error for error in results if isinstance(error, holdfast.Overloaded)]
    assert len(refused) == 10  # --mailbox-max 50
    assert refused[0].definite
    assert refused[0].retryable
    assert refused[0].retry_after_s > 0
    assert "50 calls wait for Counter/full" in refused[0].message
    assert await running == 1
    assert await busy.value() == 51


async def test_payloads_that_are_not_msgpack_or_json_are_refused(
    client: holdfast.Client, shared: Processes
) -> None:
    with pytest.raises(holdfast.InvalidArgument, match="cannot read its arguments"):
        await client.call("Counter", "a", "increment", b"\xc1\xff")
    async with grpc.aio.insecure_channel(shared.gateway) as channel:
        call = objects_pb2_grpc.ObjectsStub(channel).Call
        for request in (
            pb.CallRequest(kind="Counter", key="a", method="increment", json="{"),
            pb.CallRequest(kind="Counter", key="a", method="increment", request_id=b"short"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as wrong:
                await call(request)
            assert wrong.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_no_gateway_is_unavailable_at_the_deadline_and_names_the_endpoint() -> None:
    port = free_port()
    async with holdfast.connect(f"127.0.0.1:{port}", timeout=1.0) as nobody:
        with pytest.raises(
            holdfast.Unavailable,
            match=f"the client reached no gateway before the deadline; 127.0.0.1:{port}",
        ) as gone:
            await nobody.get("Counter", "a").increment()
    assert gone.value.definite
    assert gone.value.retryable


async def test_a_shard_whose_node_is_away_is_unavailable_and_never_appears_empty(
    processes: Processes,
) -> None:
    """Rule 7: with the only copy absent, calls wait and fail; the other node does not serve the
    shard as if it were new."""
    processes.start_all("--lease-ttl", "2", nodes=2)
    async with processes.connect() as client:
        keys = [f"k{i}" for i in range(64)]
        await asyncio.gather(*(client.get("Counter", key).increment() for key in keys))
        away = {
            key
            for key in keys
            if processes.ask("where", "Counter", key)[1]["shard"]["owner"].startswith("n1-")
        }
        assert 0 < len(away) < 64
        processes.kill("n1")
        await asyncio.sleep(4)
        for key in keys:
            quick: Any = client.get("Counter", key, timeout=0.3)
            if key in away:
                with pytest.raises(
                    holdfast.Unavailable, match=r"the only copy is on node n1-.*, which is absent"
                ) as gone:
                    await quick.value()
                assert gone.value.retryable
            else:
                assert await quick.value() == 1
        code, status = processes.ask("status")
        assert code == 2
        assert any("n1-" in problem["what"] + problem["why"] for problem in status["problems"])
        processes.node("n1", "--lease-ttl", "2")
        assert (
            await asyncio.gather(*(client.get("Counter", key).value() for key in keys)) == [1] * 64
        )


# -- starting


def a_node(data: Path, *options: str, app: str = APP) -> tuple[int, str]:
    """Run a node that is expected to refuse: its exit code and what it said last."""
    done = run("node", app, "--data", str(data), "--listen", "127.0.0.1:0", *options)
    return done.returncode, done.stderr.strip().splitlines()[-1]


def test_an_app_that_does_not_import_shows_its_own_traceback(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import holdfast\n\ndef f():\n    1 / 0\n\nf()\n")
    for command in (["dev", str(broken)], ["node", str(broken), "--data", str(tmp_path / "d")]):
        done = run(*command)
        assert done.returncode == 1
        assert "ZeroDivisionError: division by zero" in done.stderr
        assert 'broken.py", line 4, in f' in done.stderr
        assert "loading.py" not in done.stderr
        assert "site-packages" not in done.stderr


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1", "has no App"),
        ("from holdfast import App\napp = App()", "its App has no kinds"),
        ("from holdfast import App\na = App()\nb = App()", "has 2 Apps; name one"),
        (
            (
                "from holdfast import *\napp = App()\n@app.kind\nclass A(DurableObject):\n    async"
                " def f(self, *a): ..."
            ),
            "A.f: *a cannot be called over the wire",
        ),
    ],
)
def test_an_app_file_without_one_fitting_app_is_refused(
    tmp_path: Path, source: str, message: str
) -> None:
    (tmp_path / "mine.py").write_text(source)
    done = run("dev", str(tmp_path / "mine.py"))
    assert done.returncode == 1
    assert message in done.stderr


def test_a_missing_file_or_module_is_told(tmp_path: Path) -> None:
    assert "no such file" in run("dev", str(tmp_path / "none.py")).stderr
    assert "no module named 'nothing_like_this'" in run("dev", "nothing_like_this").stderr


def test_a_port_in_use_is_told_by_nodes_and_gateways(processes: Processes) -> None:
    processes.start_all()
    processes.wait_ready(processes.gateway)
    done = run("gateway", "--listen", processes.gateway, "--etcd-endpoints", processes.etcd)
    assert done.returncode == 1
    assert f"cannot listen at {processes.gateway}: the port is in use by process " in done.stderr
    done = run(
        "node",
        APP,
        "--data",
        str(processes.folder / "other"),
        "--listen",
        processes.gateway,
        "--etcd-endpoints",
        processes.etcd,
    )
    assert done.returncode == 1
    assert f"cannot listen at {processes.gateway}: the port is in use by process " in done.stderr


async def test_a_data_directory_in_use_of_another_node_cluster_or_time_is_refused(
    processes: Processes, tmp_path: Path
) -> None:
    processes.start_all()
    async with processes.connect() as client:
        assert await client.get("Counter", "a").increment() == 1
        data = processes.folder / "n1"
        at = ("--etcd-endpoints", processes.etcd)
        assert a_node(data, *at) == (
            1,
            f"Error: data directory {data} is in use by another process",
        )
        processes.kill("n1")
        copy = tmp_path / "copy"
        shutil.copytree(data, copy)
        code, said = a_node(data, *at, "--name", "other")
        assert code == 1
        assert "is node n1-" in said
        assert "not 'other'" in said
        processes.start_node(
            "lost", APP, "--data", str(data), "--name", "n1", "--cluster", "elsewhere"
        )
        # a directory with data forms no cluster
        while "forms no new cluster" not in processes.said("lost"):
            await asyncio.sleep(0.1)
        processes.kill("lost")
        processes.start_node("founder", APP, "--cluster", "elsewhere")
        while "formed the cluster" not in processes.said("founder"):
            await asyncio.sleep(0.1)
        code, said = a_node(data, *at, "--cluster", "elsewhere")
        assert code == 1
        assert "belongs to cluster" in said
        assert "nothing is served" in said
        processes.node("n1")
        assert await client.get("Counter", "a").increment() == 2
        processes.kill("n1")
        code, said = a_node(copy, *at)
        assert code == 1
        assert "it was restored from a copy, or is in use elsewhere" in said
        processes.node("n1")
        assert await client.get("Counter", "a").value() == 2  # nothing of this has done any harm


async def test_a_corrupted_store_is_refused_and_the_file_named(processes: Processes) -> None:
    processes.start_all()
    async with processes.connect() as client:
        await asyncio.gather(*(client.get("Counter", f"k{i}").increment() for i in range(2000)))
    processes.kill("n1")
    data = processes.folder / "n1"
    log = max(data.glob("*.log"), key=lambda file: file.stat().st_size)
    raw = bytearray(log.read_bytes())
    for i in range(len(raw) // 2, len(raw) // 2 + 64):
        raw[i] ^= 0xFF
    log.write_bytes(raw)
    code, said = a_node(data, "--etcd-endpoints", processes.etcd)
    assert code == 1
    assert f"data directory {data} is corrupted" in said
    assert "not opened, so that nothing is silently lost" in said
    assert log.name in said


def test_a_missing_table_file_is_refused_and_named(processes: Processes) -> None:
    processes.start_all()
    with holdfast.connect_blocking(processes.gateway) as client:
        client.get("Counter", "a").increment()
    processes.kill("n1", 15)
    processes.node("n1")
    with holdfast.connect_blocking(processes.gateway) as client:
        client.get("Counter", "a").increment()
    processes.kill("n1", 15)
    data = processes.folder / "n1"
    table = next(data.glob("*.sst"))
    table.unlink()
    code, said = a_node(data, "--etcd-endpoints", processes.etcd)
    assert code == 1
    assert table.name in said


def test_an_etcd_that_cannot_be_reached_is_named_and_tried_again(processes: Processes) -> None:
    processes.node("n1")
    processes.front()
    deadline = time.monotonic() + 20
    for name in ("n1", "gateway"):
        while f"etcd does not answer ({processes.etcd}" not in processes.said(name):
            assert time.monotonic() < deadline, processes.said(name)
            time.sleep(0.1)
        assert "still trying" in processes.said(name)
    processes.start_etcd()
    with holdfast.connect_blocking(processes.gateway, timeout=30) as client:
        assert client.get("Counter", "a").increment() == 1


def test_what_waits_for_etcd_or_a_cluster_ends_on_sigterm(processes: Processes) -> None:
    processes.node("n1")
    processes.front()
    for name in ("n1", "gateway"):
        while "etcd does not answer" not in processes.said(name):
            time.sleep(0.1)
        processes.processes[name].terminate()
        assert processes.exit_code(name, 5) == 0
    processes.start_etcd()
    processes.front()
    while "is not formed yet" not in processes.said("gateway"):
        time.sleep(0.1)
    processes.processes["gateway"].terminate()
    assert processes.exit_code("gateway", 5) == 0


def test_commands_say_soon_that_there_is_no_gateway() -> None:
    port = free_port()
    for command in (["call", "Counter", "a", "value"], ["status"], ["where", "Counter", "a"]):
        began = time.monotonic()
        done = run(*command, "--gateway", f"127.0.0.1:{port}")
        assert done.returncode == 1
        assert f"no gateway at 127.0.0.1:{port}: start one with `holdfast dev APP`" in done.stderr
        assert time.monotonic() - began < 10
    assert (
        "'localhost' is not an address: write host:port"
        in run("status", "--gateway", "localhost").stderr
    )
    assert "the rows are echo/grpc" in run("bench", "--only", "nonsense").stderr
    assert "give numbers of at least 1" in run("bench", "--in-flight", "x").stderr
    assert "0 is not in the range" in run("bench", "--shards", "0").stderr
    assert (
        "has a fixed number of shards"
        in run("bench", "--target", f"127.0.0.1:{port}", "--shards", "8").stderr
    )


@pytest.mark.parametrize("name", ["n2", "gateway2"])
def test_a_second_process_with_other_settings_is_refused_and_told_which(
    processes: Processes, name: str
) -> None:
    processes.start_all(app=BENCH_APP)
    with holdfast.connect_blocking(processes.gateway) as client:
        client.get("holdfast.bench", "a").increment()
    if name == "n2":
        processes.node("n2", "--shards", "128", "--points", "64")
    else:
        processes.start_gateway("gateway2", free_port(), "--shards", "128", "--points", "64")
    assert processes.exit_code(name) == 1
    assert "shards: 128 here, 256 there; points: 64 here, 128 there" in processes.said(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lease-ttl", "1"], "lease-ttl is 1; 2 to 600 seconds"),
        (["--weight", "0"], "weight is 0; 1 to 100"),
        (["--members-min", "0"], "members-min is 0; at least 1"),
        (["--replies-window", "5"], "replies-window is 5.0; at least 60 seconds"),
        (["--name", "a b"], "node name 'a b'"),
    ],
)
def test_options_out_of_range_are_told_with_their_range(
    tmp_path: Path, options: list[str], message: str
) -> None:
    code, said = a_node(tmp_path / "d", *options)
    assert code == 1
    assert message in said


def test_options_can_be_given_by_environment(tmp_path: Path) -> None:
    done = run("node", APP, "--data", str(tmp_path / "d"), HOLDFAST_WEIGHT="0")
    assert done.returncode == 1
    assert "weight is 0" in done.stderr
