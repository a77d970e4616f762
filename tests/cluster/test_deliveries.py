"""Notifications, alarms and dead letters, on real processes."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import datetime
from typing import Any

import grpc
import holdfast
import pytest
from holdfast.v1 import objects_pb2 as pb
from holdfast.v1 import objects_pb2_grpc

from tests.cluster.cluster_app import Plain, Receiver, Sender
from tests.cluster.processes import Processes, run


async def until(what: Any, wanted: Any, timeout_s: float = 15) -> Any:
    """Call until it answers what is wanted (or what satisfies it)."""
    deadline = time.monotonic() + timeout_s
    while True:
        got = await what()
        if (wanted(got) if callable(wanted) else got == wanted) or time.monotonic() > deadline:
            return got
        await asyncio.sleep(0.05)


def command(shared: Processes, *arguments: str) -> tuple[int, str, str]:
    done = run(*arguments, "--gateway", shared.gateway)
    return done.returncode, done.stdout, done.stderr


def letters(shared: Processes, *arguments: str) -> list[dict[str, Any]]:
    code, answer = shared.ask("deadletters", "list", *arguments)
    assert code == 0
    return list(answer["letters"])


async def test_notifications_arrive_once_and_in_order(client: holdfast.Client) -> None:
    for sender in ("a", "b"):
        for _ in range(3):
            await client.get(Sender, sender).send("ordered", 20)
    stub = client.get(Receiver, "ordered")
    took = await until(stub.took, lambda took: len(took) >= 120)
    for sender in ("a", "b"):
        assert [number for who, number in took if who == sender] == list(range(60))


async def test_a_notification_leaves_only_with_its_turn_and_with_its_part_of_it(
    client: holdfast.Client,
) -> None:
    with pytest.raises(holdfast.ApplicationError):
        await client.get(Sender, "failing").send_and_fail("partly")
    await client.get(Sender, "partly").send_some("partly")
    stub = client.get(Receiver, "partly")
    assert await until(stub.took, lambda took: len(took) >= 2) == [("partly", 0), ("partly", 2)]
    await asyncio.sleep(0.2)
    assert len(await stub.took()) == 2


async def test_a_delayed_one_comes_when_its_time_has_come(client: holdfast.Client) -> None:
    sender = client.get(Sender, "delaying")
    began = time.monotonic()
    await sender.send("delayed", 1, "take", 700)
    await sender.send("delayed", 1)
    stub = client.get(Receiver, "delayed")
    assert await until(stub.took, lambda took: bool(took)) == [("delaying", 1)]
    assert await until(stub.took, lambda took: len(took) == 2) == [("delaying", 1), ("delaying", 0)]
    assert 0.7 <= time.monotonic() - began < 5


async def test_one_that_fails_is_tried_again_delays_nobody_else_and_ends_as_a_dead_letter(
    client: holdfast.Client, shared: Processes
) -> None:
    sender = client.get(Sender, "persistent")
    await sender.send("closed", 1, "take_if_open")
    await sender.send("closed", 1)
    await sender.send("elsewhere", 1)
    assert await until(client.get(Receiver, "elsewhere").took, lambda took: bool(took)) == [
        ("persistent", 2)
    ]
    # What comes behind the one that fails waits for it, and goes on when that is dead.
    assert await until(client.get(Receiver, "closed").took, lambda took: bool(took)) == [
        ("persistent", 1)
    ]
    (letter,) = letters(shared, "--to", "Receiver/closed")
    assert letter["sender"] == "Sender/persistent"
    assert (letter["method"], letter["attempts"], letter["code"]) == (
        "take_if_open",
        3,
        "APPLICATION",
    )
    assert "not yet" in letter["error"]
    code, out, _ = command(shared, "deadletters", "show", letter["id"])
    assert code == 0
    assert json.loads(out)["payload"] == ["persistent", 0]
    await client.get(Receiver, "closed").open()
    code, out, err = command(shared, "deadletters", "replay", letter["id"], letter["id"])
    assert (code, out) == (1, "1 sent again\n")
    assert "already" in err
    assert await until(client.get(Receiver, "closed").took, lambda took: len(took) == 2) == [
        ("persistent", 1),
        ("persistent", 0),
    ]
    assert letters(shared, "--to", "Receiver/closed") == []
    code, _, err = command(shared, "deadletters", "replay", letter["id"])
    assert code == 1
    assert "there is no such dead letter" in err


async def test_what_is_rejected_is_a_dead_letter_at_once_and_can_be_dropped(
    client: holdfast.Client, shared: Processes
) -> None:
    await client.get(Sender, "rejected").send("strict", 3, "reject")

    async def dead() -> Any:
        return await asyncio.to_thread(letters, shared, "--of", "Sender/rejected")

    found = await until(dead, lambda found: len(found) == 3)
    assert [letter["attempts"] for letter in found] == [1, 1, 1]
    code, out, _ = command(shared, "deadletters", "drop", found[0]["id"], "no-such-id")
    assert (code, out) == (1, "1 dropped\n")
    assert (
        "is not the id of a dead letter" in command(shared, "deadletters", "show", "no-such-id")[2]
    )
    code, out, _ = command(shared, "deadletters", "drop", "--all", "--of", "Sender/rejected")
    assert (code, out) == (0, "2 dropped\n")
    assert await dead() == []
    code, _, err = command(shared, "deadletters", "drop", "--of", "Sender/rejected")
    assert code == 1
    assert "or --all" in err


async def test_a_turn_that_would_overflow_the_outbox_is_refused_and_sends_nothing(
    client: holdfast.Client, shared: Processes
) -> None:
    assert command(shared, "pause", "Receiver", "full")[0] == 0
    try:
        await client.get(Sender, "flooding").flood("full", 900)
        async with holdfast.connect(shared.gateway, retry_budget=0) as impatient:
            with pytest.raises(holdfast.Overloaded, match="notifications of Sender/flooding wait"):
                await impatient.get(Sender, "flooding").flood("full", 101)
        await client.get(Sender, "flooding").flood("full", 100)
    finally:
        assert command(shared, "resume", "Receiver", "full")[0] == 0
    stub = client.get(Receiver, "full")
    assert len(await until(stub.took, lambda took: len(took) >= 1000, 30)) == 1000


async def test_pause_stops_deliveries_and_alarms_but_no_calls(
    client: holdfast.Client, shared: Processes
) -> None:
    code, out, _ = command(shared, "pause", "Receiver", "quiet")
    assert code == 0
    assert "paused: Receiver/quiet" in out
    code, _, err = command(shared, "pause", "Reciever")
    assert code == 1
    assert "no kind 'Reciever'; there are" in err
    await asyncio.sleep(0.3)
    stub = client.get(Receiver, "quiet")
    await client.get(Sender, "s").send("quiet", 2)
    await stub.alarm(0, "late")
    await asyncio.sleep(1.2)
    assert await stub.took() == []
    assert "paused: Receiver/quiet" in command(shared, "pause")[1]
    assert command(shared, "resume", "Receiver", "quiet")[0] == 0
    took = await until(stub.took, lambda took: len(took) == 3)
    assert sorted(who for who, _ in took) == ["alarm late", "s", "s"]


async def test_alarms_fire_on_time_repeat_and_can_be_taken_back(client: holdfast.Client) -> None:
    stub = client.get(Receiver, "alarmed")
    with pytest.raises(holdfast.ApplicationError):
        await stub.alarm_and_fail()
    await stub.alarm(60_000, "stopped")
    assert await stub.stop_alarm("stopped")
    assert not await stub.stop_alarm("stopped")
    await stub.alarm(200, "once")
    await stub.alarm(300, "twice", "again")
    await stub.alarm(100, "often", None, 150)
    assert await stub.alarms() == ["often", "once", "twice"]
    took = await until(stub.took, lambda took: [who for who, _ in took].count("alarm often") >= 5)
    assert await stub.stop_alarm("often")
    names = [who for who, _ in took]
    assert (names.count("alarm once"), names.count("alarm twice"), names.count("alarm never")) == (
        1,
        2,
        0,
    )
    assert all(0 <= late_ms < 1000 for _, late_ms in took), took
    assert await stub.alarms() == []
    await asyncio.sleep(0.4)
    assert [who for who, _ in await stub.took()].count("alarm often") <= names.count(
        "alarm often"
    ) + 1


async def test_an_alarm_that_fails_fires_again_and_what_it_wrote_is_undone_then_it_is_a_dead_letter(
    client: holdfast.Client, shared: Processes
) -> None:
    stub = client.get(Receiver, "failing")
    await stub.alarm(0, "flaky", "fail once")
    await stub.alarm(0, "broken", "fail")
    took = await until(stub.took, lambda took: bool(took))
    assert [who for who, _ in took] == ["alarm flaky"]
    assert took[0][1] >= 2000

    async def dead() -> Any:
        return await asyncio.to_thread(letters, shared, "--of", "Receiver/failing")

    (letter,) = await until(dead, lambda found: bool(found))
    assert (letter["alarm"], letter["method"], letter["attempts"], letter["payload"]) == (
        "broken",
        "on_alarm",
        2,
        "fail",
    )
    code, out, err = command(shared, "deadletters", "replay", letter["id"])
    assert (code, out) == (1, "0 sent again\n")
    assert "it failed again: RuntimeError always" in err
    assert [there["id"] for there in await dead()] == [letter["id"]]
    assert command(shared, "deadletters", "drop", letter["id"])[0] == 0


async def test_alarms_are_listed_by_kind_and_prefix(
    client: holdfast.Client, shared: Processes
) -> None:
    for i in range(5):
        await client.get(Receiver, f"listed-{i}").alarm(3_600_000 + i, "much later", {"i": i})
    code, answer = shared.ask("alarms", "Receiver", "listed-")
    assert code == 0
    assert sorted(
        (alarm["key"], alarm["name"], alarm["payload"]["i"]) for alarm in answer["alarms"]
    ) == [(f"listed-{i}", "much later", i) for i in range(5)]
    code, answer = shared.ask("alarms", "Receiver", "listed-", "--limit", "2")
    assert len(answer["alarms"]) == 2
    assert answer["more"]
    assert "listed-3" in command(shared, "alarms", "Receiver", "listed-3")[1]


async def test_what_cannot_work_is_told_at_once(client: holdfast.Client) -> None:
    with pytest.raises(holdfast.ApplicationError, match="has no on_alarm"):
        await client.get(Plain, "p").alarm()
    with pytest.raises(holdfast.ApplicationError, match="Receiver has no handler 'no_such_method'"):
        await client.get(Plain, "p").notify_wrong()


async def test_an_idempotency_key_names_one_effect_whoever_uses_it(
    client: holdfast.Client, shared: Processes
) -> None:
    for _ in range(3):
        assert await client.get("Counter", "keyed", idempotency_key="order 17").increment() == 1
    assert await client.get("Counter", "other", idempotency_key="order 17").increment() == 1
    with pytest.raises(holdfast.InvalidArgument, match="idempotency_key was used for another call"):
        await client.get("Counter", "keyed", idempotency_key="order 17").increment(by=2)
    with holdfast.connect_blocking(shared.gateway) as blocking:
        assert (
            await asyncio.to_thread(
                blocking.get("Counter", "keyed", idempotency_key="order 17").increment
            )
            == 1
        )
    async with grpc.aio.insecure_channel(shared.gateway) as channel:
        call = objects_pb2_grpc.ObjectsStub(channel).Call
        request = pb.CallRequest(kind="Counter", key="bare", method="increment", json="{}")
        for _ in range(2):
            assert (await call(request, metadata=(("idempotency-key", "x"),))).json == "1"
        request.idempotency_key = "y"
        assert (await call(request)).json == "2"
        request.idempotency_key = "z" * 256
        with pytest.raises(grpc.aio.AioRpcError, match="1 to 255 bytes"):
            await call(request)
    with pytest.raises(ValueError, match="not both"):
        client.get("Counter", "keyed", idempotency_key="a", request_id=holdfast.new_request_id())


async def test_what_is_owed_survives_the_death_of_the_node(processes: Processes) -> None:
    processes.start_all(nodes=1)
    processes.wait_ready(processes.gateway)
    async with processes.connect() as client:
        assert processes.ask("pause", "Receiver")[0] == 0
        await asyncio.sleep(0.2)
        await client.get(Sender, "s").send("r", 50)
        await client.get(Sender, "s").send("r", 1, "take", 10)
        receiver = client.get(Receiver, "r")
        for misfire in ("once", "all"):
            await receiver.alarm(200, misfire, None, 500, misfire)
        processes.kill("n1")
        assert processes.ask("resume", "Receiver")[0] == 0
        await asyncio.sleep(2.0)
        processes.node("n1", "--members-min", "1", "--backlog-rate", "50")
        took = await until(receiver.took, lambda took: len(took) >= 5, 30)
        began = time.monotonic()
        took = await until(receiver.took, lambda took: sum(who == "s" for who, _ in took) >= 51, 30)
        assert time.monotonic() - began > 0.5  # some fifty that had waited, at 50 a second
        for misfire in ("once", "all"):
            await receiver.stop_alarm(misfire)
        took = await receiver.took()
        assert [number for who, number in took if who == "s"] == list(range(51))
        missed = {
            misfire: sum(who == f"alarm {misfire}" and late > 600 for who, late in took)
            for misfire in ("once", "all")
        }
        assert missed["once"] <= 1
        assert missed["all"] >= 3


async def test_clients_send_again_what_is_refused_for_now_within_their_budget_and_their_deadline(
    client: holdfast.Client, shared: Processes
) -> None:
    assert await client.get("Busy", "a").refuse(3) == 3
    with holdfast.connect_blocking(shared.gateway) as blocking:
        assert await asyncio.to_thread(blocking.get("Busy", "b").refuse, 3) == 3
    async with holdfast.connect(shared.gateway, retry_budget=0) as impatient:
        with pytest.raises(holdfast.Overloaded):
            await impatient.get("Busy", "c").refuse(1)
    async with holdfast.connect(shared.gateway) as fresh:
        with pytest.raises(holdfast.Overloaded):
            await fresh.get("Busy", "d").refuse(1_000)
        assert await client.get("Busy", "d").refuse(0) == 11  # the call, and ten retries
        began = time.monotonic()
        with pytest.raises(holdfast.Overloaded):
            await client.get("Busy", "e", timeout=0.2).refuse(1_000)
        assert time.monotonic() - began < 0.5


async def test_delete_all_keeps_alarms_unless_it_is_told_not_to(client: holdfast.Client) -> None:
    receiver = client.get("Receiver", "clears")
    assert await receiver.clear(False) == ["kept?"]
    assert await receiver.alarms() == ["kept?"]
    assert await receiver.clear(True) == []
    assert await receiver.alarms() == []


async def test_an_alarm_shows_the_time_that_was_set(client: holdfast.Client) -> None:
    receiver = client.get("Receiver", "exact")
    for text in (
        "2040-01-01T00:00:00.123456+00:00",
        "2040-06-01T12:30:00.000001+02:00",
        "2040-01-01T00:00:00+00:00",
    ):
        assert await receiver.alarm_to_the_microsecond(text)
        assert await receiver.exact() == datetime.fromisoformat(text)


async def test_a_part_that_fails_undoes_no_alarm_and_no_notification_of_another(
    client: holdfast.Client,
) -> None:
    receiver = client.get("Receiver", "halves")
    assert await receiver.half_fails() == [["good"], False]
    assert await receiver.alarms() == ["good"]
    told = client.get("Receiver", "halves told")
    async with asyncio.timeout(10):
        while not (took := await told.took()):
            await asyncio.sleep(0.05)
    assert took == [["good", 1]]
