"""Callers that stop waiting. Their calls leave the queues or are rolled back, and hold up no
object."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from typing import Any

import grpc
import holdfast
import pytest
from holdfast.v1 import objects_pb2 as pb

from tests.cluster.processes import Processes, run

SOON_S = 3.0
"""Far below the 20 s that the turns here would take."""


def unary(channel: grpc.aio.Channel) -> Any:
    return channel.unary_unary(
        "/holdfast.v1.Objects/Call",
        request_serializer=pb.CallRequest.SerializeToString,
        response_deserializer=pb.CallResponse.FromString,
    )


async def is_free(client: holdfast.Client, key: str, value: int = 0) -> None:
    """An object answers soon, and has what it is to have."""
    async with asyncio.timeout(SOON_S):
        assert await client.get("Counter", key).value() == value


async def test_a_call_that_is_cancelled_is_rolled_back_and_its_object_free(
    client: holdfast.Client,
) -> None:
    counter = client.get("Counter", "cancel: cancelled")
    running = asyncio.create_task(counter.increment_then("wait for ever"))
    await asyncio.sleep(0.3)
    waiting = asyncio.create_task(counter.increment())
    await asyncio.sleep(0.1)
    waiting.cancel()
    running.cancel()
    await is_free(client, "cancel: cancelled")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(counter.increment_then("wait for ever"), 0.3)
    await is_free(client, "cancel: cancelled")


async def test_what_a_cancelled_turn_waits_for_is_cancelled_too(client: holdfast.Client) -> None:
    first = asyncio.create_task(
        client.get("Counter", "cancel: asks").have_wait("cancel: asked", 20.0)
    )
    await asyncio.sleep(0.5)
    first.cancel()
    await is_free(client, "cancel: asked")
    await is_free(client, "cancel: asks")


async def test_a_unary_caller_that_goes_away_cancels_its_call(
    client: holdfast.Client, shared: Processes
) -> None:
    async with grpc.aio.insecure_channel(shared.gateway) as channel:
        call = unary(channel)(
            pb.CallRequest(
                kind="Counter",
                key="cancel: unary",
                method="wait_and_increment",
                json="[20, 100]",
                timeout_ms=60_000,
            )
        )
        await asyncio.sleep(0.3)
        call.cancel()
        await is_free(client, "cancel: unary")
        unary(channel)(
            pb.CallRequest(
                kind="Counter",
                key="cancel: unary",
                method="wait_and_increment",
                json="[20, 100]",
                timeout_ms=60_000,
            )
        )
        await asyncio.sleep(0.3)
    await is_free(client, "cancel: unary")


BLOCKING = """
import signal, sys, holdfast
# where tests run in the background it is ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
with holdfast.connect_blocking(sys.argv[1]) as client:
    print("calling", flush=True)
    try:
        client.get("Counter", "cancel: ctrl-c").wait_and_increment(20.0, 100.0)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.stdin.read()  # stays: what cancels the call is not the end of its connection
"""


async def test_ctrl_c_in_a_blocking_call_cancels_it(
    client: holdfast.Client, shared: Processes
) -> None:
    program = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        BLOCKING,
        shared.gateway,
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
    )
    assert program.stdout is not None
    assert await program.stdout.readline() == b"calling\n"
    await asyncio.sleep(1.0)
    program.send_signal(signal.SIGINT)
    async with asyncio.timeout(SOON_S):
        assert await program.stdout.readline() == b"interrupted\n"
    await is_free(client, "cancel: ctrl-c")
    assert program.returncode is None
    program.kill()
    await program.wait()


async def test_while_others_wait_for_the_same_request_it_goes_on(client: holdfast.Client) -> None:
    request_id = holdfast.new_request_id()
    counter = client.get("Counter", "cancel: joined", request_id=request_id)
    first, second = (asyncio.create_task(counter.wait_and_increment(1.5, 100.0)) for _ in range(2))
    await asyncio.sleep(0.3)
    first.cancel()
    assert await second == 1


async def test_an_operator_aborts_a_turn(client: holdfast.Client, shared: Processes) -> None:
    running = asyncio.create_task(
        client.get("Counter", "cancel: aborted").increment_then("wait for ever")
    )
    await asyncio.sleep(0.3)
    done = await asyncio.to_thread(
        run, "objects", "abort", "Counter", "cancel: aborted", "--gateway", shared.gateway
    )
    assert done.returncode == 0
    assert "increment_then() was aborted after " in done.stdout
    with pytest.raises(
        holdfast.Aborted,
        match=r"Counter/cancel: aborted\.increment_then\(\) was aborted by an operator",
    ) as aborted:
        await running
    assert aborted.value.definite
    await is_free(client, "cancel: aborted")
    code, answer = await asyncio.to_thread(
        shared.ask, "objects", "abort", "Counter", "cancel: aborted"
    )
    assert (code, answer["method"]) == (0, "")


async def test_errors_of_what_a_handler_called_are_the_handlers_own(
    client: holdfast.Client,
) -> None:
    """They would look like the caller's fault, which it cannot mend."""
    for what, type_, says in (
        (
            "argument",
            "InvalidArgument",
            r"Counter/cancel: wrong other\.increment\(\): .*Expected `int`, got `str`",
        ),
        (
            "method",
            "NotFound",
            r"Counter/cancel: wrong other\.no_such_method\(\): Counter has no method",
        ),
        ("size", "TooLarge", r"Counter/cancel: wrong other\.increment\(\): arguments of"),
    ):
        with pytest.raises(holdfast.ApplicationError, match=says) as failed:
            await client.get("Counter", "cancel: wrong").call_wrongly(what)
        assert failed.value.type == type_


async def test_a_gateway_that_dies_cancels_nothing(processes: Processes) -> None:
    processes.start_all()
    async with processes.connect() as client:
        counter: Any = client.get("Counter", "a")
        assert await counter.increment() == 1
        running = asyncio.create_task(counter.wait_and_increment(3.0, 100.0))
        await asyncio.sleep(0.5)
        began = time.monotonic()
        processes.kill("gateway")
        processes.front()
        assert await running == 2
        assert time.monotonic() - began < 30
    assert int(processes.stats()["turns"]) == 2


async def test_calls_that_are_held_go_when_their_callers_do(processes: Processes) -> None:
    processes.start_all("--lease-ttl", "2")
    processes.wait_ready(processes.gateway)
    async with processes.connect() as client:
        await client.get("Counter", "a").increment()
        processes.kill("n1")
        async with grpc.aio.insecure_channel(processes.gateway) as channel:
            request = pb.CallRequest(
                kind="Counter", key="a", method="increment", json="[]", timeout_ms=(1 << 32) - 1
            )
            calls = [unary(channel)(request) for _ in range(100)]
            session = [
                asyncio.create_task(client.get("Counter", f"k{i}").increment()) for i in range(100)
            ]
            await asyncio.sleep(1.5)
            assert (await asyncio.to_thread(held, processes)) == 200
            for call in (*calls, *session):
                call.cancel()
            until = time.monotonic() + SOON_S
            while (await asyncio.to_thread(held, processes)) and time.monotonic() < until:
                await asyncio.sleep(0.1)
            assert (await asyncio.to_thread(held, processes)) == 0
    processes.node("n1", "--lease-ttl", "2")
    async with processes.connect() as client:
        assert await client.get("Counter", "a").value() == 1


def held(processes: Processes) -> int:
    return int(processes.ask("status")[1]["gateway"]["calls_held"])
