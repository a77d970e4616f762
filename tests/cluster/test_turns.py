"""Turns on a real cluster: alone, whole or not at all, bounded in time."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import holdfast
import pytest

from tests.cluster.processes import Processes


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("raise", holdfast.ApplicationError, "half-way"),
        ("raise after waiting", holdfast.ApplicationError, "half-way"),
        ("reject", holdfast.Rejected, "no"),
        ("cancel", holdfast.InternalError, "cancelled"),
        (
            "write a huge value",
            holdfast.TooLarge,
            "value of 'huge': 3145733 bytes, at most 2097152",
        ),
        ("return what cannot be sent", holdfast.ApplicationError, "object"),
        ("return a huge result", holdfast.TooLarge, "a result of"),
        ("raise what cannot be told", holdfast.InternalError, "Untellable, which cannot be read"),
        ("reject with data that cannot be sent", holdfast.Rejected, "its data was left behind"),
        ("raise with half a character", holdfast.ApplicationError, "bad . name"),
        ("raise a long story", holdfast.ApplicationError, "xxx"),
        ("leave", holdfast.ApplicationError, "3"),
        ("return nothing at all", holdfast.ApplicationError, "encoded to nothing"),
        ("raise WrongOwner", holdfast.InternalError, "not here"),
        ("call itself", holdfast.Deadlock, "Counter/.* -> Counter/"),
    ],
)
async def test_a_turn_that_fails_in_any_way_is_rolled_back_and_the_next_one_is_fine(
    client: holdfast.Client, what: str, error: Any, message: str
) -> None:
    counter = client.get("Counter", f"fails: {what}")
    assert await counter.increment(by=3) == 3
    with pytest.raises(error, match=message) as failed:
        await counter.increment_then(what)
    assert failed.value.request_id
    # An error is not definite when a call had left the turn, or when that cannot be told.
    assert failed.value.definite == (
        what not in ("call itself", "raise WrongOwner", "raise what cannot be told")
    )
    assert await counter.value() == 3
    assert await counter.increment() == 4


async def test_a_turn_that_fails_logs_once_with_its_request_id_and_traceback_and_is_counted(
    client: holdfast.Client, shared: Processes
) -> None:
    before = sum(int(shared.stats(node)["turns_failed"]) for node in ("n1", "n2", "n3"))
    with pytest.raises(holdfast.ApplicationError) as failed:
        await client.get("Counter", "log").increment_then("raise")
    lines = [
        json.loads(line) for node in ("n1", "n2", "n3") for line in shared.said(node).splitlines()
    ]
    mine = [line for line in lines if line.get("request_id") == failed.value.request_id.hex()]
    assert [(line["kind"], line["key"], line["method"]) for line in mine] == [
        ("Counter", "log", "increment_then")
    ]
    assert "RuntimeError: half-way" in mine[0]["traceback"]
    assert sum(int(shared.stats(node)["turns_failed"]) for node in ("n1", "n2", "n3")) == before + 1


async def test_an_objects_log_carries_who_it_is_and_which_request(
    client: holdfast.Client, shared: Processes
) -> None:
    request_id = holdfast.new_request_id()
    await client.get("Counter", "talks", request_id=request_id).say("hello there")
    lines = [
        json.loads(line)
        for node in ("n1", "n2", "n3")
        for line in shared.said(node).splitlines()
        if "hello there" in line
    ]
    assert len(lines) == 1
    assert (lines[0]["kind"], lines[0]["key"], lines[0]["request_id"]) == (
        "Counter",
        "talks",
        request_id.hex(),
    )
    assert lines[0]["epoch"] == 1


async def test_a_turn_past_its_deadline_is_cancelled_and_rolled_back(
    client: holdfast.Client,
) -> None:
    counter = client.get("Counter", "late", timeout=0.3)
    with pytest.raises(holdfast.DeadlineExceeded, match="while it ran: it was rolled back") as late:
        await counter.increment_then("wait for ever")
    assert late.value.definite
    assert await counter.value() == 0


async def test_a_turn_is_cancelled_after_the_nodes_own_limit_whatever_the_caller_allows(
    client: holdfast.Client,
) -> None:
    began = time.monotonic()
    with pytest.raises(holdfast.DeadlineExceeded):
        await client.get("Counter", "too long").increment_then("wait for ever")
    assert 4 < time.monotonic() - began < 15  # --turn-timeout 5, the call's own deadline 40


async def test_a_call_whose_deadline_passes_in_the_mailbox_never_runs(
    client: holdfast.Client,
) -> None:
    slow, hurried = client.get("Counter", "queue"), client.get("Counter", "queue", timeout=0.2)
    running = asyncio.create_task(slow.wait_and_increment(1.0, 5.0))
    await asyncio.sleep(0.05)
    with pytest.raises(holdfast.DeadlineExceeded, match="while it waited for its turn") as late:
        await hurried.increment()
    assert late.value.definite
    assert await running == 1
    assert await slow.value() == 1


async def test_a_read_sees_the_write_before_it_and_no_reply_overtakes_another(
    client: holdfast.Client,
) -> None:
    counter = client.get("Counter", "read after write")
    for i in range(1, 51):
        written, read = await asyncio.gather(counter.increment(), counter.value())
        assert (written, read) == (i, i)


async def test_a_slow_handler_of_one_object_delays_no_other(client: holdfast.Client) -> None:
    slow = asyncio.create_task(client.get("Counter", "slow").wait_and_increment(3.0, 5.0))
    await asyncio.sleep(0.1)
    began = time.monotonic()
    await asyncio.gather(*(client.get("Counter", f"quick {i}").increment() for i in range(200)))
    assert time.monotonic() - began < 2.0
    assert not slow.done()
    assert await slow == 1


async def test_handlers_may_use_asyncios_timeouts_and_task_groups(client: holdfast.Client) -> None:
    counter = client.get("Counter", "asyncio")
    assert await counter.wait_and_increment(0.05, 5.0) == 1
    with pytest.raises(holdfast.ApplicationError) as timed_out:
        await counter.wait_and_increment(5.0, 0.05)
    assert timed_out.value.type == "TimeoutError"
    assert await counter.value() == 1


async def test_a_nested_transaction_undoes_its_part_only(client: holdfast.Client) -> None:
    counter = client.get("Counter", "nested")
    assert await counter.undo_a_part() == 10
    assert await counter.value() == 10


async def test_a_cycle_of_calls_fails_at_once_and_names_its_objects(
    client: holdfast.Client,
) -> None:
    began = time.monotonic()
    with pytest.raises(holdfast.Deadlock) as cycle:
        await client.get("Counter", "a").call_back("b")
    assert cycle.value.cycle == ("Counter/a", "Counter/b", "Counter/a")
    assert time.monotonic() - began < 2


async def test_objects_call_each_other(client: holdfast.Client) -> None:
    assert await client.get("Counter", "caller").add_from("called") == 5
    assert await client.get("Counter", "called").value() == 5


async def test_a_plain_function_is_a_handler_too(client: holdfast.Client) -> None:
    assert await client.get("Counter", "plain").plain(4) == 4
    assert await client.get("Counter", "plain").value() == 4


async def test_a_handler_that_blocks_the_loop_is_reported_by_kind_and_method(
    client: holdfast.Client, shared: Processes
) -> None:
    await client.get("Counter", "blocks").block(2.0)
    said = shared.said("n1") + shared.said("n2") + shared.said("n3")
    assert "Counter/blocks.block blocks the event loop for more than 1.0 s" in said
    assert "time.sleep(seconds)" in said


async def test_an_idle_object_is_evicted_and_loses_nothing(processes: Processes) -> None:
    processes.start_all("--idle", "0.5")
    async with processes.connect() as client:
        diary: Any = client.get("Diary", "d")
        assert await diary.read() == [1, 1, 0]
        assert await diary.read() == [1, 1, 0]
        await asyncio.sleep(1.5)
        assert await diary.read() == [2, 2, 1]
    assert int(processes.stats()["evictions"]) >= 1


async def test_a_handler_that_swallows_its_cancellation_is_abandoned_and_the_object_goes_on(
    client: holdfast.Client,
) -> None:
    counter, hurried = (
        client.get("Counter", "stubborn"),
        client.get("Counter", "stubborn", timeout=0.3),
    )
    assert await counter.increment() == 1
    stubborn = asyncio.create_task(hurried.will_not_end())
    await asyncio.sleep(0.1)
    behind = asyncio.create_task(counter.increment())
    with pytest.raises(holdfast.DeadlineExceeded):
        await stubborn
    assert await behind == 2  # what the stubborn turn wrote is gone
    assert await counter.value() == 2


async def test_eviction_takes_the_idle_ones_only_and_on_evict_may_call_and_may_not_hang(
    processes: Processes,
) -> None:
    processes.start_all("--idle", "3", "--turn-timeout", "2")
    async with processes.connect() as client:
        await asyncio.gather(client.get("Tidy", "old").touch(), client.get("Tidy", "stuck").touch())
        for _ in range(10):
            await client.get("Tidy", "fresh").touch()
            await asyncio.sleep(0.5)
        assert await client.get("Counter", "evicted-old").value() == 1
        assert await client.get("Counter", "evicted-fresh").value() == 0
        await client.get("Tidy", "stuck").touch()  # its on_evict was cancelled at its deadline
        assert int(processes.stats()["calls_in_flight"]) == 0


async def test_activations_are_bounded_by_evicting_the_least_recently_used(
    processes: Processes,
) -> None:
    processes.start_all("--activations-max", "100")
    async with processes.connect() as client:
        for i in range(300):
            await client.get("Counter", f"c{i}").increment()
        assert int(processes.stats()["activations"]) <= 100
        assert (
            await asyncio.gather(*(client.get("Counter", f"c{i}").value() for i in range(300)))
            == [1] * 300
        )
