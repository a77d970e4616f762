"""The rule of `definite` (holdfast.errors) in clients: a scripted gateway answers, breaks, or says
nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent import futures
from typing import Any

import grpc
import holdfast
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.status_pb2 import Status
from holdfast import (
    HoldfastError,
    Overloaded,
    Rejected,
    TooLarge,
    Unauthenticated,
    Unavailable,
    new_request_id,
)
from holdfast.client.blocking import ATTEMPT_METADATA
from holdfast.errors import error_to_proto, grpc_status
from holdfast.v1 import objects_pb2 as pb

DEFINITE = error_to_proto(Rejected("no"))
FULL = error_to_proto(Overloaded("full", definite=True, retryable=True))
PERHAPS = error_to_proto(Unavailable("perhaps", retryable=True))
BREAK = "the connection breaks"
STRANGER = "the gateway does not know the caller"


class Session:
    """A client's stream to a gateway that answers each call with the next step of a script."""

    def __init__(self, script: list[Any], calls: list[pb.Call]) -> None:
        self._script = script
        self._calls = calls
        self._replies: asyncio.Queue[Any] = asyncio.Queue()

    def stream_stream(self, _: str) -> Callable[..., Session]:
        return lambda metadata: self

    async def initial_metadata(self) -> None:
        if self._script and self._script[0] == STRANGER:
            self._replies.put_nowait(self._script.pop(0))

    def done(self) -> bool:
        return not self._replies.empty()

    async def write(self, frame: bytes) -> None:
        for call in pb.SessionRequest.FromString(frame).calls:
            self._calls.append(call)
            if self._script:
                step = self._script.pop(0)
                self._replies.put_nowait(
                    step if step is BREAK else pb.Reply(id=call.id, error=step)
                )

    async def read(self) -> bytes:
        reply = await self._replies.get()
        if reply in (BREAK, STRANGER):
            code = (
                grpc.StatusCode.UNAVAILABLE if reply == BREAK else grpc.StatusCode.UNAUTHENTICATED
            )
            raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), reply)
        return pb.SessionResponse(replies=[reply]).SerializeToString()

    def cancel(self) -> None:
        pass

    async def close(self) -> None:
        pass


@pytest.fixture
async def open_client(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    clients = []

    async def opened(script: list[Any]) -> tuple[holdfast.Client, list[pb.Call]]:
        calls: list[pb.Call] = []
        monkeypatch.setattr(
            "holdfast.client.session.open_client_channel", lambda *_: Session(script, calls)
        )
        client = holdfast.connect("127.0.0.1:1")
        await client.__aenter__()
        clients.append(client)
        return client, calls

    yield opened
    for client in clients:
        await client.close()


async def failure(call: Any) -> HoldfastError:
    with pytest.raises(HoldfastError) as caught:
        await call
    return caught.value


@pytest.mark.parametrize(
    ("script", "attempts", "definite"),
    [
        ([DEFINITE], [0], True),
        ([FULL, DEFINITE], [0, 0], True),
        ([PERHAPS, DEFINITE], [0, 1], False),
        ([PERHAPS, FULL, DEFINITE], [0, 1, 2], False),
        ([BREAK, DEFINITE], [0, 1], False),
        ([FULL, BREAK, DEFINITE], [0, 0, 1], False),
        ([BREAK, BREAK, FULL, DEFINITE], [0, 1, 2, 3], False),
        ([BREAK, STRANGER], [0], False),
    ],
)
async def test_an_error_is_definite_only_if_every_attempt_before_was_answered_with_one(
    open_client: Any, script: list[Any], attempts: list[int], definite: bool
) -> None:
    client, calls = await open_client(list(script))
    error = await failure(client.get("K", "a", timeout=5).m())
    assert ([call.attempt for call in calls], error.definite) == (attempts, definite)


async def test_a_call_that_was_never_sent_fails_definitely_and_one_that_was_does_not(
    open_client: Any,
) -> None:
    client, calls = await open_client([STRANGER])
    assert (
        await failure(client.get("K", "a", timeout=5).m())
    ).definite  # UNAUTHENTICATED, before it was sent
    await asyncio.sleep(0.2)
    sent = asyncio.ensure_future(failure(client.get("K", "a", timeout=5).m()))
    while not calls:
        await asyncio.sleep(0.01)
    await client.close()
    assert not (await sent).definite


@pytest.mark.parametrize("first", [FULL, PERHAPS, BREAK])
async def test_what_a_call_that_waits_to_be_sent_again_is_told_when_the_client_is_closed(
    open_client: Any, first: Any
) -> None:
    if first is not BREAK:
        first = pb.Error.FromString(first.SerializeToString())
        first.retry_after_ms = 60_000
    client, calls = await open_client([first])
    sent = asyncio.ensure_future(failure(client.get("K", "a", timeout=100).m()))
    while not calls or (first is not BREAK and not next(iter(client._pending.values())).resting):
        await asyncio.sleep(0.005)
    await client.close()
    assert (await sent).definite == (first is not BREAK and first.definite)


async def test_no_error_is_definite_when_the_caller_brings_the_id(open_client: Any) -> None:
    for own in ({"request_id": new_request_id()}, {"idempotency_key": "k"}):
        client, calls = await open_client([DEFINITE])
        stub = client.get("K", "a", timeout=5, **own)
        assert not (await failure(stub.m())).definite
        assert [call.attempt for call in calls] == [1]
        large = await failure(client.get("K", "a", **own).m("x" * (9 << 20)))
        assert (type(large), large.definite) == (TooLarge, False)
    assert (await failure(client.get("K", "a").m("x" * (9 << 20)))).definite


class Unary(grpc.GenericRpcHandler):
    """A gateway that answers each call of a blocking client with the next step of a script."""

    def __init__(self, script: list[Any]) -> None:
        self.script = script
        self.attempts: list[str] = []

    def service(self, details: Any) -> Any:
        def call(request: bytes, context: Any) -> bytes:
            self.attempts += [
                str(value)
                for name, value in context.invocation_metadata()
                if name == ATTEMPT_METADATA
            ]
            step = self.script.pop(0)
            if step is BREAK:
                context.abort(grpc.StatusCode.UNAVAILABLE, step)
            detail = AnyMessage()
            detail.Pack(step)
            status = Status(code=grpc_status(step).value[0], message=step.message, details=[detail])
            context.set_trailing_metadata(
                (("grpc-status-details-bin", status.SerializeToString()),)
            )
            context.abort(grpc_status(step), step.message)
            raise AssertionError

        return grpc.unary_unary_rpc_method_handler(call)


@pytest.mark.parametrize(
    ("script", "attempts", "definite"),
    [
        ([DEFINITE], "0", True),
        ([FULL, DEFINITE], "00", True),
        ([PERHAPS, DEFINITE], "01", False),
        ([BREAK, DEFINITE], "01", False),
        ([BREAK, FULL, DEFINITE], "011", False),
        ([FULL, BREAK, error_to_proto(Unauthenticated("who?", definite=True))], "001", False),
    ],
)
def test_a_blocking_client_keeps_the_same_rule(
    script: list[Any], attempts: str, definite: bool
) -> None:
    gateway = Unary(list(script))
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((gateway,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with holdfast.connect_blocking(f"127.0.0.1:{port}", timeout=10) as client:
            with pytest.raises(HoldfastError) as caught:
                client.get("K", "a").m()
            assert ("".join(gateway.attempts), caught.value.definite) == (attempts, definite)
            gateway.script, gateway.attempts = [DEFINITE], []
            with pytest.raises(Rejected) as rejected:
                client.get("K", "a", idempotency_key="k").m()
            assert (gateway.attempts, rejected.value.definite) == (["1"], False)
            with pytest.raises(TooLarge) as large:
                client.get("K", "a", idempotency_key="k").m("x" * (9 << 20))
            assert not large.value.definite
        with pytest.raises(Unavailable, match="the client was closed") as closed:
            client.get("K", "a").m()
        assert closed.value.definite
    finally:
        server.stop(None)
