"""The engine with a store whose fsync waits: nothing that rests on a write leaves before it is on
disk."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from holdfast.v1 import objects_pb2 as pb
from holdfast_node.log.commit import ENTRY_BYTES
from holdfast_node.objects import requests
from holdfast_node.objects.limits import EngineLimits

from tests.unit.engine_bench import IDS, Bench, Port


async def test_no_reply_that_rests_on_a_write_leaves_before_its_fsync(bench: Bench) -> None:
    await bench.answered(bench.call("a", "increment"))
    bench.may_sync.clear()
    wrote = bench.call("a", "increment")
    read = bench.call("a", "value")
    failed = bench.call("a", "increment_then", "raise")
    elsewhere = bench.call("b", "value")
    assert await bench.answered(elsewhere) == [0]  # another object has nothing to wait for
    await asyncio.sleep(0.05)
    later = bench.call("a", "value")
    await asyncio.sleep(0.05)
    assert not {wrote, read, failed, later} & set(bench.port.replies)
    bench.may_sync.set()
    values = await bench.answered(wrote, read, failed, later)
    assert (values[0], values[1], values[3]) == (2, 2, 2)
    assert values[2].code == pb.CODE_APPLICATION


async def test_a_turn_that_ends_while_an_fsync_runs_waits_for_the_next_one(bench: Bench) -> None:
    bench.may_sync.clear()
    first = bench.call("a", "increment")
    await asyncio.sleep(0.02)  # its fsync is under way
    second = bench.call("b", "increment")
    syncs = bench.store.syncs
    bench.may_sync.set()
    await bench.answered(first, second)
    assert bench.store.syncs == syncs + 2


async def test_the_same_request_is_one_turn_however_often_it_comes(bench: Bench) -> None:
    request_id = IDS.next()
    bench.may_sync.clear()
    first = bench.call("a", "increment", request_id=request_id)
    again = bench.call("a", "increment", request_id=request_id, attempt=1)
    bench.may_sync.set()
    assert await bench.answered(first, again) == [1, 1]
    assert await bench.answered(bench.call("a", "increment", request_id=request_id, attempt=2)) == [
        1
    ]
    assert await bench.answered(bench.call("a", "value")) == [1]


async def test_a_first_attempt_that_arrives_after_its_retry_was_run_is_not_run_again(
    bench: Bench,
) -> None:
    request_id = IDS.next()
    assert await bench.answered(bench.call("a", "increment", request_id=request_id, attempt=1)) == [
        1
    ]
    assert await bench.answered(bench.call("a", "increment", request_id=request_id, attempt=0)) == [
        1
    ]


async def test_a_node_calls_no_error_definite_when_an_attempt_before_is_unknown(
    bench: Bench,
) -> None:
    for attempt in (0, 1):
        errors = await bench.answered(
            bench.call("a", "nonsense", attempt=attempt),
            bench.call("k" * 2000, "value", attempt=attempt),
            bench.call("a", "increment_then", "raise", attempt=attempt),
            bench.call("a", "increment", "no number", attempt=attempt),
        )
        assert {error.definite for error in errors} == {attempt == 0}, errors


async def test_who_joins_a_turn_as_a_retry_makes_its_error_indefinite_for_all(bench: Bench) -> None:
    bench.may_sync.clear()
    wrote = bench.call("a", "increment")
    request_id = IDS.next()
    # its error waits for the write before it
    first = bench.call("a", "increment_then", "raise", request_id=request_id)
    again = bench.call("a", "increment_then", "raise", request_id=request_id, attempt=1)
    # another call under the same id
    other = bench.call("a", "increment", request_id=request_id, attempt=1)
    bench.may_sync.set()
    errors = (await bench.answered(wrote, first, again, other))[1:]
    assert [error.code for error in errors] == [
        pb.CODE_APPLICATION,
        pb.CODE_APPLICATION,
        pb.CODE_INVALID_ARGUMENT,
    ]
    assert not any(error.definite for error in errors)


async def test_nothing_of_the_engine_grows_with_calls_that_ended(bench: Bench) -> None:
    for i in range(50):
        await bench.answered(
            bench.call(f"k{i % 5}", "increment"), bench.call(f"k{i % 5}", "increment_then", "raise")
        )
    assert (bench.engine.in_flight, len(bench.objects.activations)) == (0, 5)
    assert bench.engine.outcomes.failed == 50
    limit = EngineLimits().storage.cache_bytes
    assert 0 < bench.objects.cached_bytes < 5 * limit
    bench.engine.eviction.evict_share(1.0)
    assert (len(bench.objects.activations), bench.objects.cached_bytes) == (0, 0)


async def test_an_entry_that_is_full_is_closed_and_the_next_one_gathers(bench: Bench) -> None:
    shard = bench.shard
    first = bench.objects.writes._committer.entry(shard)
    first.bytes = ENTRY_BYTES + 1
    second = bench.objects.writes._committer.entry(shard)
    assert second is not first
    assert bench.objects.writes._committer.entry(shard) is second
    await bench.flusher.drain()
    assert first.committed
    assert second.committed


async def test_a_read_behind_a_write_that_waits_is_refused_while_there_are_too_few_copies(
    bench: Bench,
) -> None:
    bench.may_sync.clear()
    wrote = bench.call("a", "increment")
    await asyncio.sleep(0.02)
    bench.shard.read_only = "1 copies are in sync, writes need 2"
    read, other, write = (
        bench.call("a", "value"),
        bench.call("b", "value"),
        bench.call("b", "increment"),
    )
    refused, value, read_only = await bench.answered(read, other, write)
    assert (refused.code, value, read_only.code) == (pb.CODE_UNAVAILABLE, 0, pb.CODE_UNAVAILABLE)
    bench.shard.read_only = None
    bench.may_sync.set()
    assert await bench.answered(wrote) == [1]


@pytest.mark.parametrize("amount", [5, -5], ids=["a result", "a final error"])
async def test_the_reply_to_an_id_of_the_callers_own_is_kept_whatever_the_handler_wrote(
    bench: Bench, amount: int
) -> None:
    request_id, key = IDS.next(), f"own {amount}"
    bench.may_sync.clear()
    first = bench.call(
        key, "charge", amount, kind="Till", request_id=request_id, attempt=1, keep_reply=True
    )
    await asyncio.sleep(0.05)
    assert first not in bench.port.replies, "it left before what keeps it was on disk"
    bench.may_sync.set()
    told = await bench.answered(first)
    for attempt in (1, 2):
        again = bench.call(
            key,
            "charge",
            amount,
            kind="Till",
            request_id=request_id,
            attempt=attempt,
            keep_reply=True,
        )
        assert await bench.answered(again) == told
    assert await bench.answered(bench.call(key, "charges", kind="Till")) == [1]
    other = bench.call(
        key, "charge", 7, kind="Till", request_id=request_id, attempt=1, keep_reply=True
    )
    (error,) = await bench.answered(other)
    assert (error.code, error.path) == (pb.CODE_INVALID_ARGUMENT, "request_id")


async def test_an_exception_is_not_final_and_the_same_id_may_try_again(bench: Bench) -> None:
    request_id = IDS.next()
    for times in (1, 2):
        call = bench.call(
            "fails", "charge", 0, kind="Till", request_id=request_id, attempt=1, keep_reply=True
        )
        (error,) = await bench.answered(call)
        assert (error.code, error.type) == (pb.CODE_APPLICATION, "ValueError")
        assert await bench.answered(bench.call("fails", "charges", kind="Till")) == [times]


async def test_the_reply_to_a_drawn_id_is_kept_only_when_the_turn_writes(bench: Bench) -> None:
    await bench.answered(
        bench.call("drawn", "charge", 5, kind="Till"),
        bench.call("drawn", "charge", -5, kind="Till"),
    )
    assert bench.objects.writes._committer.entries == 0


async def test_a_reply_that_cannot_be_kept_is_not_given(bench: Bench) -> None:
    bench.shard.read_only = "1 copies are in sync, writes need 2"
    calls = [
        bench.call(
            "read only",
            "charge",
            amount,
            kind="Till",
            request_id=IDS.next(),
            attempt=1,
            keep_reply=True,
        )
        for amount in (5, -5)
    ]
    for error in await bench.answered(*calls):
        assert (error.code, error.retryable) == (pb.CODE_UNAVAILABLE, True)


async def test_a_call_in_another_codec_is_another_call(bench: Bench) -> None:
    request_id = IDS.next()
    bench.may_sync.clear()
    first = bench.call("a", "increment", request_id=request_id)
    running = bench.call("a", "increment", request_id=request_id, attempt=1, codec_=pb.CODEC_JSON)
    (refused,) = await bench.answered(running)
    bench.may_sync.set()
    assert await bench.answered(first) == [1]
    (kept,) = await bench.answered(
        bench.call("a", "increment", request_id=request_id, attempt=1, codec_=pb.CODEC_JSON)
    )
    assert refused.code == kept.code == pb.CODE_INVALID_ARGUMENT


async def test_what_a_turn_sends_counts_against_its_limit_whatever_it_deletes(bench: Bench) -> None:
    """Nine notifications of 1.7 MB between deletions of everything once made an entry of 76 MB,
    which no frame to a replica holds."""
    (error,) = await bench.answered(bench.call("big", "send_and_delete", 5, kind="Sender"))
    assert (error.code, error.definite) == (pb.CODE_TOO_LARGE, True)
    assert bench.objects.writes._committer.entries == 0
    assert await bench.answered(bench.call("big", "send_and_delete", 0, kind="Sender")) == [0]


def is_aborted(answer: Any) -> bool:
    return isinstance(answer, pb.Error) and answer.code == pb.CODE_ABORTED


async def test_a_cancelled_call_that_runs_is_rolled_back_and_the_object_goes_on(
    bench: Bench,
) -> None:
    request_id = IDS.next()
    running = bench.call("a", "increment_then", "wait for ever", request_id=request_id)
    waiting = bench.call("a", "value")
    await asyncio.sleep(0.01)
    bench.engine.cancel(request_id, bench.port, running)
    [answer, value] = await bench.answered(running, waiting)
    assert is_aborted(answer)
    assert answer.definite
    assert value == 0
    assert bench.engine.in_flight == 0


async def test_a_cancelled_call_that_waits_never_begins(bench: Bench) -> None:
    running = bench.call("a", "wait_and_increment", 0.05, 5.0)
    request_id = IDS.next()
    cancelled = bench.call("a", "increment", request_id=request_id)
    after = bench.call("a", "increment")
    bench.engine.cancel(request_id, bench.port, cancelled)
    assert is_aborted(bench.port.replies[cancelled])
    assert await bench.answered(running, after) == [1, 2]


async def test_of_those_who_wait_for_one_request_only_the_last_cancels_it(bench: Bench) -> None:
    request_id = IDS.next()
    first = bench.call("a", "wait_and_increment", 0.05, 5.0, request_id=request_id)
    second = bench.call("a", "wait_and_increment", 0.05, 5.0, request_id=request_id, attempt=1)
    third = bench.call("a", "wait_and_increment", 0.05, 5.0, request_id=request_id, attempt=2)
    bench.engine.cancel(request_id, bench.port, first)
    bench.engine.cancel(request_id, bench.port, first)  # it is answered: once more is nothing
    assert is_aborted(bench.port.replies[first])
    assert not bench.port.replies[first].definite, "the others' effect may yet be there"
    bench.engine.cancel(request_id, bench.port, third)
    assert await bench.answered(second) == [1]
    fourth = bench.call("a", "wait_and_increment", 9.0, 50.0)
    request_id = bench.objects.activations.get("Counter", "a").turn.request_id  # type: ignore[union-attr]
    bench.engine.cancel(request_id, Port(), fourth)  # not who asked
    bench.engine.cancel(request_id, bench.port, second)
    await asyncio.sleep(0.01)
    assert fourth not in bench.port.replies
    bench.engine.cancel(request_id, bench.port, fourth)
    assert is_aborted((await bench.answered(fourth))[0])


async def test_what_is_committing_is_cancelled_no_more(bench: Bench) -> None:
    bench.may_sync.clear()
    request_id = IDS.next()
    number = bench.call("a", "increment", request_id=request_id)
    bench.engine.cancel(request_id, bench.port, number)
    await asyncio.sleep(0.02)
    assert number not in bench.port.replies
    bench.may_sync.set()
    assert await bench.answered(number) == [1]


async def test_an_operator_aborts_the_running_turn_alone(bench: Bench) -> None:
    assert bench.engine.cancellation.abort("Counter", "a") is None
    running = bench.call("a", "increment_then", "wait for ever")
    waiting = bench.call("a", "increment")
    turn = bench.engine.cancellation.abort("Counter", "a")
    assert turn is not None
    assert turn.handler.name == "increment_then"
    [answer, value] = await bench.answered(running, waiting)
    assert is_aborted(answer)
    assert answer.message == "Counter/a.increment_then() was aborted by an operator"
    assert answer.definite
    assert value == 1
    assert bench.engine.cancellation.abort("Counter", "a") is None


async def test_a_handler_that_takes_its_cancellation_for_a_result_is_rolled_back_all_the_same(
    bench: Bench,
) -> None:
    request_id = IDS.next()
    number = bench.call("a", "swallows_cancellation", request_id=request_id)
    bench.engine.cancel(request_id, bench.port, number)
    [answer] = await bench.answered(number)
    assert is_aborted(answer)
    assert await bench.answered(bench.call("a", "value")) == [0]


async def test_arguments_that_do_not_fit_leave_the_instance_alone(bench: Bench) -> None:
    await bench.answered(bench.call("a", "increment"))
    activation = bench.engine.find("Counter", "a")
    assert activation is not None
    before = activation.instance
    [wrong] = await bench.answered(bench.call("a", "increment", "x"))
    assert wrong.code == pb.CODE_INVALID_ARGUMENT
    assert activation.instance is before
    assert before is not None
    [refused] = await bench.answered(bench.call("a", "increment", -1))
    assert refused.type == "Rejected"
    assert activation.instance is None, "a handler that failed may have left it half changed"
    [wrong] = await bench.answered(bench.call("new", "increment", "x"))
    fresh = bench.engine.find("Counter", "new")
    assert fresh is not None
    assert fresh.instance is None, "what its on_activate did was rolled back"


async def test_who_asks_again_for_what_was_cancelled_gets_a_turn_of_its_own(bench: Bench) -> None:
    """A client whose connection broke sends again, while the turn of before is being rolled back
    because of just that."""
    request_id = IDS.next()
    first = bench.call("a", "slow_to_end", 0.1, request_id=request_id)
    await asyncio.sleep(0.02)
    bench.engine.cancel(request_id, bench.port, first)
    again = bench.call("a", "slow_to_end", 0.1, request_id=request_id, attempt=1)
    gone = bench.call("a", "slow_to_end", 0.1, request_id=request_id, attempt=1)
    bench.engine.cancel(request_id, bench.port, gone)
    assert is_aborted(bench.port.replies[gone])
    [answer, result] = await bench.answered(first, again)
    assert is_aborted(answer)
    assert result == 1
    assert bench.engine.in_flight == 0
    assert await bench.answered(bench.call("a", "value")) == [1]


async def test_a_turn_that_is_delivered_again_answers_those_who_wait_under_their_own_numbers(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast_node.objects.cancellation._ABANDON_S", 0.05)
    stuck = IDS.next()
    running = bench.call("a", "will_not_end", request_id=stuck)
    await asyncio.sleep(0.01)
    request_id = IDS.next()
    cancelled = bench.call("a", "increment", request_id=request_id)
    other, bench.port = bench.port, Port()
    waits = bench.call("a", "increment", request_id=request_id, attempt=1)
    bench.engine.cancel(request_id, other, cancelled)
    bench.engine.cancel(stuck, other, running)
    assert await bench.answered(waits) == [1]
    assert set(bench.port.replies) == {waits}
    assert set(other.replies) == {cancelled, running}


async def test_a_connection_that_is_gone_waits_for_nothing(bench: Bench) -> None:
    request_id = IDS.next()
    before = bench.port
    bench.call("a", "increment_then", "wait for ever", request_id=request_id)
    before.closed = True
    bench.port = Port()
    again = bench.call("a", "increment_then", "wait for ever", request_id=request_id, attempt=1)
    await asyncio.sleep(0.01)
    bench.engine.cancel(request_id, bench.port, again)
    assert is_aborted((await bench.answered(again))[0])
    assert await bench.answered(bench.call("a", "value")) == [0]


async def test_only_so_many_attempts_wait_for_one_turn(bench: Bench) -> None:
    """Thousands of joined attempts cost a node 10 s when they were cancelled one by one."""
    request_id = IDS.next()
    numbers = [
        bench.call("a", "wait_and_increment", 0.05, 5.0, request_id=request_id, attempt=i)
        for i in range(200)
    ]
    refused = [number for number in numbers if number in bench.port.replies]
    assert len(refused) == len(numbers) - 1 - requests._JOINED_MAX
    assert all(bench.port.replies[number].code == pb.CODE_OVERLOADED for number in refused)
    assert not any(bench.port.replies[number].definite for number in refused)
    rest = [number for number in numbers if number not in refused]
    assert await bench.answered(*rest) == [1] * len(rest)
