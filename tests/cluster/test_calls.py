"""Ways to call: types, the blocking client, unary calls of bare gRPC clients, request ids,
reflection, health."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import holdfast
import msgspec
import pytest
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from holdfast.ids import RequestIds, idempotent_id
from holdfast.v1 import objects_pb2 as pb
from holdfast.v1 import objects_pb2_grpc

from tests.cluster.cluster_app import Counter, Echo, Parcel, a_parcel
from tests.cluster.processes import Processes


async def test_arguments_and_results_are_typed_by_their_hints(client: holdfast.Client) -> None:
    got = await client.get(Echo, "e").parcel(a_parcel())
    assert isinstance(got, Parcel)
    assert got == a_parcel()
    assert await client.get("echo", "e").named(1, second={"x": 2, "y": "1"}) == [1, 2]


async def test_a_typing_error_in_a_method_is_told_before_it_travels(
    client: holdfast.Client,
) -> None:
    with pytest.raises(AttributeError, match="Counter has no handler 'incremnt'"):
        client.get(Counter, "a").incremnt()  # type: ignore[attr-defined]


async def test_the_handler_sees_its_request(client: holdfast.Client) -> None:
    request_id = RequestIds().next()
    stub = client.get("Counter", "seen", metadata={"tag": "blue"}, request_id=request_id)
    assert await stub.seen() == {
        "kind": "Counter",
        "key": "seen",
        "id": request_id.hex(),
        "tag": "blue",
    }


async def test_the_same_request_id_takes_effect_once(client: holdfast.Client) -> None:
    request_id = RequestIds().next()
    for _ in range(3):  # every one after the first finds the kept reply
        assert await client.get("Counter", "once", request_id=request_id).increment() == 1
    assert await client.get("Counter", "once").value() == 1


async def test_a_request_id_that_was_used_for_another_call_is_refused(
    client: holdfast.Client,
) -> None:
    stub = client.get("Counter", "used", request_id=holdfast.new_request_id())
    assert await stub.increment() == 1
    assert await stub.increment() == 1
    for other in (stub.increment(by=2), stub.value()):
        with pytest.raises(holdfast.InvalidArgument, match="was used for another call"):
            await other
    assert await client.get("Counter", "used").value() == 1


async def test_what_stores_nothing_happens_once_under_an_id_of_the_callers_own(
    client: holdfast.Client, shared: Processes
) -> None:
    key = "till"
    for own in ({"idempotency_key": "order 7"}, {"request_id": holdfast.new_request_id()}):
        before = await client.get("Till", key).charges()
        for _ in range(3):
            assert await client.get("Till", key, **own).charge(100) == 100
        with holdfast.connect_blocking(shared.gateway) as blocking:
            assert await asyncio.to_thread(blocking.get("Till", key, **own).charge, 100) == 100
        with pytest.raises(holdfast.InvalidArgument, match="was used for another call"):
            await client.get("Till", key, **own).charge(200)
        assert await client.get("Till", key).charges() == before + 1


async def test_a_refusal_is_the_answer_to_its_id_for_good_and_an_exception_is_not(
    client: holdfast.Client,
) -> None:
    for _ in range(3):
        with pytest.raises(holdfast.Rejected, match="no refunds") as refused:
            await client.get("Till", "refuses", idempotency_key="k").charge(-1)
        assert refused.value.data == {"amount": -1}
    assert await client.get("Till", "refuses").charges() == 1
    for _ in range(3):
        with pytest.raises(holdfast.ApplicationError, match="nothing to charge"):
            await client.get("Till", "fails", idempotency_key="k").charge(0)
    assert await client.get("Till", "fails").charges() == 3


async def test_the_id_that_an_sdk_draws_keeps_nothing(
    client: holdfast.Client, shared: Processes
) -> None:
    """A blocking client's call looks to the gateway like one of any language: only the flag tells
    that the id was drawn."""
    with holdfast.connect_blocking(shared.gateway) as blocking:
        for times in (1, 2):
            with pytest.raises(holdfast.Rejected):
                await asyncio.to_thread(blocking.get("Till", "drawn").charge, -1)
            with pytest.raises(holdfast.Rejected):
                await client.get("Till", "drawn").charge(-1)
            assert await client.get("Till", "drawn").charges() == 2 * times


@pytest.mark.parametrize("first", [0xFE, 0xFF])
async def test_ids_of_the_clusters_own_ranges_come_from_the_cluster_alone(
    client: holdfast.Client, shared: Processes, first: int
) -> None:
    reserved = bytes([first]) + idempotent_id("Counter", "reserved", "k")[1:]
    for make in (client, holdfast.connect_blocking(shared.gateway)):
        with pytest.raises(ValueError, match="cluster's own"):
            make.get("Counter", "reserved", request_id=reserved)
    async with grpc.aio.insecure_channel(shared.gateway) as channel:
        call = objects_pb2_grpc.ObjectsStub(channel).Call
        with pytest.raises(grpc.aio.AioRpcError, match="cluster's own"):
            await call(
                pb.CallRequest(
                    kind="Counter", key="reserved", method="increment", request_id=reserved
                )
            )
        session = objects_pb2_grpc.ObjectsStub(channel).Session()
        calls = [
            pb.Call(id=1, kind="Counter", key="reserved", method="increment", request_id=reserved)
        ]
        await session.write(pb.SessionRequest(calls=calls))
        error = (await session.read()).replies[0].error
        session.cancel()
        assert (error.code, error.path) == (pb.CODE_INVALID_ARGUMENT, "request_id")
    assert await client.get("Counter", "reserved").value() == 0


async def test_an_integer_of_more_than_64_bits_is_refused_in_json_too(shared: Processes) -> None:
    async with grpc.aio.insecure_channel(shared.gateway) as channel:
        call = objects_pb2_grpc.ObjectsStub(channel).Call
        with pytest.raises(grpc.aio.AioRpcError, match="more than 64 bits"):
            await call(
                pb.CallRequest(
                    kind="Counter",
                    key="big",
                    method="increment",
                    json='{"by": 99999999999999999999}',
                )
            )


async def test_a_result_that_its_hint_does_not_allow_is_told_as_that(
    client: holdfast.Client,
) -> None:
    with pytest.raises(
        holdfast.InternalError,
        match=r"lies\(\) ran, but its result does not fit its return hint",
    ):
        await client.get(Counter, "liar").lies()


def test_what_is_no_key_or_address_is_told_before_it_travels(shared: Processes) -> None:
    with (
        holdfast.connect_blocking(shared.gateway) as client,
        pytest.raises(TypeError, match="an object's key is text, not int: 5"),
    ):
        client.get(Counter, 5)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="'localhost' is not an address: write host:port"):
        holdfast.connect_blocking("localhost")


async def test_a_bare_call_without_arguments_is_answered_in_msgpack(shared: Processes) -> None:
    async with grpc.aio.insecure_channel(shared.gateway) as channel:
        call = objects_pb2_grpc.ObjectsStub(channel).Call
        assert (await call(pb.CallRequest(kind="Counter", key="bare", method="value"))).WhichOneof(
            "result"
        ) == "msgpack"
        assert (
            await call(pb.CallRequest(kind="Counter", key="bare", method="value", json="[]"))
        ).json == "0"


async def test_a_request_id_in_use_by_another_call_is_refused(client: holdfast.Client) -> None:
    request_id = RequestIds().next()
    first = asyncio.create_task(
        client.get("Counter", "busy", request_id=request_id).wait_and_increment(0.5, 5.0)
    )
    await asyncio.sleep(0.1)
    with pytest.raises(holdfast.InvalidArgument, match="is in use by another call"):
        await client.get("Counter", "busy", request_id=request_id).increment(by=7)
    assert await first == 1


async def test_the_blocking_client_is_the_twin_of_the_other(shared: Processes) -> None:
    def script() -> tuple[int, str]:
        with holdfast.connect_blocking(shared.gateway) as client:
            n = client.get(Counter, "blocking").increment(by=2)
            try:
                client.get("Counter", "blocking").increment(by=-1)
            except holdfast.Rejected as error:
                return n, error.message
        return n, "not rejected"

    assert await asyncio.to_thread(script) == (2, "by must not be negative")


async def test_a_unary_call_with_the_callers_own_request_id_takes_effect_once(
    shared: Processes,
) -> None:
    request = pb.CallRequest(
        kind="Counter",
        key="unary once",
        method="increment",
        json="{}",
        request_id=RequestIds().next(),
    )
    async with grpc.aio.insecure_channel(shared.gateway) as channel:
        call = objects_pb2_grpc.ObjectsStub(channel).Call
        assert [(await call(request)).json for _ in range(3)] == ["1", "1", "1"]


async def test_unary_calls_take_json_and_msgpack(shared: Processes) -> None:
    async with grpc.aio.insecure_channel(shared.gateway) as channel:
        call = objects_pb2_grpc.ObjectsStub(channel).Call
        reply = await call(
            pb.CallRequest(kind="Counter", key="unary", method="increment", json='{"by": 2}')
        )
        assert (reply.json, len(reply.request_id), reply.epoch) == ("2", 16, 1)
        reply = await call(
            pb.CallRequest(
                kind="Counter", key="unary", method="increment", msgpack=msgspec.msgpack.encode([3])
            )
        )
        assert msgspec.msgpack.decode(reply.msgpack) == 5
        reply = await call(pb.CallRequest(kind="Counter", key="unary", method="value"))
        assert msgspec.msgpack.decode(reply.msgpack) == 5


async def test_unary_errors_carry_the_whole_error_as_a_detail_of_their_status(
    shared: Processes,
) -> None:
    async with grpc.aio.insecure_channel(shared.gateway) as channel:
        call = objects_pb2_grpc.ObjectsStub(channel).Call
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(
                pb.CallRequest(
                    kind="Counter", key="unary error", method="increment", json='{"by": -2}'
                )
            )
        assert failed.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        trailing = dict(list(failed.value.trailing_metadata() or []))
        status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
        error = pb.Error()
        assert status.details[0].Unpack(error)
        assert (error.type, json.loads(error.data), error.definite) == (
            "Rejected",
            {"by": -2},
            True,
        )
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await call(
                pb.CallRequest(
                    kind="Counter",
                    key="unary late",
                    method="increment_then",
                    json='["wait for ever"]',
                ),
                timeout=0.4,
            )
        assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


async def test_errors_too_large_for_a_unary_status_arrive_cut(shared: Processes) -> None:
    def script() -> holdfast.HoldfastError:
        with (
            holdfast.connect_blocking(shared.gateway) as client,
            pytest.raises(holdfast.ApplicationError) as failed,
        ):
            client.get("Counter", "long story").increment_then("raise a long story")
        return failed.value

    error = await asyncio.to_thread(script)
    assert error.type == "ValueError"  # type: ignore[attr-defined]
    assert error.message.startswith("xxx")


async def test_malformed_frames_end_their_own_session_only(
    client: holdfast.Client, shared: Processes
) -> None:
    other = asyncio.create_task(
        client.get("Counter", "beside garbage").wait_and_increment(0.5, 5.0)
    )
    async with grpc.aio.insecure_channel(shared.gateway) as channel:
        session: Any = channel.stream_stream("/holdfast.v1.Objects/Session")()
        await session.write(b"\xff\xff\xff\xff garbage")
        assert await session.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert await other == 1


async def test_large_metadata_is_refused_beyond_its_limit_and_carried_up_to_it(
    client: holdfast.Client,
) -> None:
    large = {"tag": "x" * 200_000}
    stubs = [client.get("Counter", f"metadata {i}", metadata=large) for i in range(30)]
    assert [len((await stub.seen())["tag"]) for stub in stubs] == [200_000] * 30
    with pytest.raises(holdfast.TooLarge, match="names and metadata of"):
        await client.get("Counter", "metadata", metadata={"tag": "x" * 300_000}).seen()


def test_reflection_tells_the_api_to_tools(shared: Processes) -> None:
    with grpc.insecure_channel(shared.gateway) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "holdfast.v1.Objects" in database.get_services()
        file = database.FindFileContainingSymbol("holdfast.v1.Objects")
        assert [method.name for method in file.service[0].method] == ["Call", "Session"]


async def test_health_is_served_by_gateways_and_nodes(shared: Processes) -> None:
    _, status = shared.ask("status")
    for address in (shared.gateway, status["nodes"][0]["address"]):
        async with grpc.aio.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
