"""What is counted, and how it is shown."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from holdfast import metrics, tracing
from holdfast.channels import AddressInUse
from holdfast.errors import code_name
from holdfast.metrics import Histogram, MetricsPage, counter, gauge, histogram, measure_lag
from holdfast.v1 import objects_pb2 as pb
from holdfast_node.log.shards import Shard, Shards
from holdfast_node.objects.stats import KindStats
from holdfast_node.objects.top_keys import HALVE_S, SAMPLE, SIZE, TopKeys
from holdfast_node.services import alarm_counter
from holdfast_node.services.alarm_counter import AlarmCounter
from holdfast_node.store import keys
from holdfast_node.store.rocks import Store
from prometheus_client.core import Metric

from tests.unit.no_log import NO_LOG


def test_a_histogram_counts_a_value_at_the_first_bound_that_holds_it() -> None:
    seen = Histogram((0.1, 1.0))
    for value in (0.0, 0.1, 0.10001, 1.0, 7.0):
        seen.observe(value)
    assert seen.buckets() == [("0.1", 2), ("1.0", 4), ("+Inf", 5)]
    assert seen.count == 5
    assert seen.total == pytest.approx(8.20001)


def test_calls_are_counted_by_how_they_ended() -> None:
    stats = KindStats()["m"]
    failed = pb.Error(code=pb.CODE_APPLICATION)
    at = 100.0
    stats.ended(at, at, 100.2, 100.3, None)
    stats.ended(at, 100.5, 101.0, 101.0, failed)  # waited for half a second
    stats.ended(at, at, 0.0, 130.0, pb.Error(code=pb.CODE_DEADLINE_EXCEEDED))  # had no turn
    stats.ended(
        at, at, 100.2, 100.3, pb.Error(code=pb.CODE_APPLICATION, type="Rejected", rejected=True)
    )
    stats.refused[pb.CODE_OVERLOADED] = 4
    assert dict(stats.codes()) == {
        "OK": 1,
        "APPLICATION": 1,
        "REJECTED": 1,
        "DEADLINE_EXCEEDED": 1,
        "OVERLOADED": 4,
    }
    assert (stats.total.count, stats.turn.count, stats.queue.count) == (4, 3, 1)
    assert stats.total.total == pytest.approx(31.6)
    assert stats.turn.total == pytest.approx(0.9)
    assert stats.queue.total == pytest.approx(0.5)


def test_a_code_of_a_later_version_has_its_number_for_a_name() -> None:
    assert code_name(pb.CODE_UNSPECIFIED) == "OK"
    assert code_name(pb.CODE_WRONG_OWNER) == "WRONG_OWNER"
    assert code_name(4711) == "4711"


async def test_a_page_shows_what_the_loop_has_counted_and_takes_no_other_port() -> None:
    calls = Histogram((1.0,))
    calls.observe(0.5)
    loop_thread = threading.get_ident()

    def collect() -> Iterator[Metric]:
        assert threading.get_ident() == loop_thread
        yield counter("x_calls", "Calls.", [(("a", "OK"), 3)], ("kind", "code"))
        yield gauge("x_alive", "Alive.", 2)
        yield histogram("x_seconds", "Seconds.", [(("a",), calls)], ("kind",))

    page = MetricsPage(collect)
    await page.listen("127.0.0.1:0")
    try:
        url = f"http://127.0.0.1:{page.port}/metrics"
        text = await asyncio.to_thread(
            lambda: urllib.request.urlopen(url, timeout=5).read().decode()
        )
        for line in (
            'x_calls_total{code="OK",kind="a"} 3.0',
            "x_alive 2.0",
            'x_seconds_bucket{kind="a",le="+Inf"} 1.0',
            'x_seconds_sum{kind="a"} 0.5',
            "# TYPE x_seconds histogram",
        ):
            assert line in text, text
        assert "process_resident_memory_bytes" in text
        with pytest.raises(AddressInUse):
            await MetricsPage(collect).listen(f"127.0.0.1:{page.port}")
    finally:
        await page.close()
    with pytest.raises(urllib.error.URLError):
        await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5))


async def said(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


async def test_a_page_tells_strangers_nothing_and_bounds_what_they_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "_SCRAPE_S", 0.5)
    broken = False

    def collect() -> Iterator[Metric]:
        if broken:
            raise RuntimeError("a bug")
        yield gauge("x_alive", "Alive.", 2)

    page = MetricsPage(collect)
    port = await page.listen("127.0.0.1:0")
    try:
        assert (await said(port, b"POST /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 405")
        assert (await said(port, b"GET /etc/passwd HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404")
        head = await said(
            port, b"HEAD /metrics?x=1 HTTP/1.1\r\nAccept: application/openmetrics-text\r\n\r\n"
        )
        assert b"openmetrics-text" in head
        assert head.endswith(b"\r\n\r\n")
        assert await said(port, b"\xff" * 100) == b"", "it says no whole request, and is closed"
        assert await said(port, b"GET /" + b"x" * 50_000) == b""
        idle = await asyncio.gather(
            *(asyncio.open_connection("127.0.0.1", port) for _ in range(200))
        )
        await asyncio.sleep(0.1)
        assert len(page._open) <= 32
        assert b"x_alive 2.0" in await said(port, b"GET /metrics HTTP/1.1\r\n\r\n")
        for _, writer in idle:
            writer.close()
        broken = True
        assert (await said(port, b"GET /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 500")
    finally:
        await page.close()


async def test_the_loop_s_lag_is_what_a_blocked_loop_costs() -> None:
    lag = Histogram((0.05, 0.15, 10.0))
    task = asyncio.create_task(measure_lag(lag, 0.01))
    await asyncio.sleep(0.05)
    threading.Event().wait(0.3)
    await asyncio.sleep(0.05)
    task.cancel()
    assert lag.counts[2] == 1
    assert lag.counts[0] >= 2


def test_the_hottest_objects_are_found_among_very_many() -> None:
    rng = random.Random(3)
    top_keys = TopKeys(0.0)
    wanted = Counter({("K", f"hot{i}"): 4000 // (i + 1) for i in range(5)})
    turns = [ident for ident, n in wanted.items() for _ in range(n)] + [
        ("K", f"cold{i}") for i in range(20_000)
    ]
    rng.shuffle(turns)
    for ident in turns:
        top_keys.count(ident)
    top = top_keys.top(5, 10.0)
    assert {ident for ident, _ in top} == set(wanted)
    for ident, rate in top:
        # never too few, and not many too many
        assert wanted[ident] <= rate * 10 / SAMPLE <= wanted[ident] + 20_000 / SIZE * 2
    assert len(top_keys.top(1000, 10.0)) == SIZE


def test_what_was_hot_long_ago_is_forgotten_and_rates_are_right_at_any_time() -> None:
    top_keys = TopKeys(0.0)
    now = 0.0
    for _ in range(40):  # ten a second, for 200 s
        now += 5.0
        for _ in range(50):
            top_keys.count(("K", "steady"))
        top_keys.tick(now)
        [(_, rate)] = top_keys.top(9, now)
        assert rate == pytest.approx(10 * SAMPLE, rel=0.01)
    for _ in range(20):
        now += HALVE_S
        top_keys.tick(now)
    assert top_keys.top(9, now) == []


def test_alarms_are_counted_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alarm_counter, "ROWS", 10)
    store = Store(tmp_path)
    shards = Shards(8)
    now = 1_000_000
    batch = store.batch()
    for number in range(4):
        shards.take(Shard(number, 1, NO_LOG))
        for i in range(number * 13):
            batch.put(
                "state",
                keys.due_key(number, keys.ALARMS, now - 5_000 + 1_000 * i, i.to_bytes(8, "big")),
                b"x",
            )
    batch.put("state", keys.due_key(9, keys.ALARMS, 1, b"not of ours"), b"x")
    store.write(batch)
    counting = AlarmCounter(store, shards)
    steps = 0
    while counting.pending == 0:
        counting.tick(now)
        steps += 1
        assert steps < 100
    assert steps > 6
    assert (counting.pending, counting.late) == (78, 3 * 4)
    store.close()


def test_without_the_extra_tracing_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"] + [
        "opentelemetry"
    ]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(tracing.TracingMissing, match="needs the extra `otel`"):
        tracing.start("holdfast-node", "n1", 1.0)
    with pytest.raises(tracing.TracingMissing, match="tracing=True needs the extra"):
        tracing.of_application()


def test_a_process_that_does_not_trace_imports_nothing_of_it() -> None:
    command = (
        "import sys, holdfast.cli.main, holdfast_node.process.server,"
        " holdfast_gateway.process.server; print('opentelemetry' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="this system has no such policy")
def test_a_process_can_prefer_batches_and_its_threads_do_too() -> None:
    script = """
import os, threading
from holdfast.processes import use_batch_scheduling
use_batch_scheduling()
found = []
thread = threading.Thread(target=lambda: found.append(os.sched_getscheduler(0)))
thread.start(); thread.join()
print(found == [os.SCHED_BATCH] == [os.sched_getscheduler(0)])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30
    )
    assert done.stdout == "True\n", done.stderr
