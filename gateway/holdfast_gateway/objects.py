"""The public service: `Objects.Call` and `Objects.Session`. Arguments and results pass through undecoded."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.status_pb2 import Status
from holdfast.errors import grpc_status
from holdfast.frames import FrameWriter
from holdfast.ids import RequestIds
from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.dispatch import Dispatcher


class ObjectsService:
    """Serves `holdfast.v1.Objects`."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._ids = RequestIds()

    def handlers(self) -> grpc.GenericRpcHandler:
        """What to register with the server. Sessions take and give bytes: frames are decoded here, once."""
        return grpc.method_handlers_generic_handler(
            "holdfast.v1.Objects",
            {
                "Call": grpc.unary_unary_rpc_method_handler(
                    self.call,
                    request_deserializer=pb.CallRequest.FromString,
                    response_serializer=pb.CallResponse.SerializeToString,
                ),
                "Session": grpc.stream_stream_rpc_method_handler(self.session),
            },
        )

    async def call(self, request: pb.CallRequest, context: Any) -> pb.CallResponse:
        """One call of any gRPC client. Its gRPC deadline is the call's."""
        is_json = request.WhichOneof("arguments") == "json"
        remaining = context.time_remaining()
        timeout_ms = request.timeout_ms
        if remaining is not None:
            timeout_ms = max(1, min(timeout_ms or 1 << 31, int(remaining * 1000)))
        request_id = request.request_id or self._ids.next()
        call = pb.Call(
            kind=request.kind,
            key=request.key,
            method=request.method,
            arguments=request.json.encode() if is_json else request.msgpack,
            codec=pb.CODEC_JSON if is_json else pb.CODEC_MSGPACK,
            request_id=request_id,
            attempt=1 if request.request_id else 0,  # the caller's own id: this may well be the second time
            timeout_ms=timeout_ms,
            metadata=request.metadata,
        )
        waiting = _Waiting()
        self._dispatcher.submit(call, waiting)
        reply = await waiting.future
        if not reply.result:
            await _abort(context, reply.error)
        if is_json:
            return pb.CallResponse(json=reply.result.decode(), request_id=request_id, epoch=reply.epoch)
        return pb.CallResponse(msgpack=reply.result, request_id=request_id, epoch=reply.epoch)

    async def session(self, _: object, context: Any) -> None:
        """One client's calls, until it goes away or the gateway stops."""
        writer: FrameWriter[pb.Reply] = FrameWriter(_pack, lambda reply: len(reply.result) + 100)
        sending = asyncio.create_task(writer.run(context.write))
        submit = self._dispatcher.submit
        await context.send_initial_metadata(())  # tells the client that it is connected
        try:
            while (frame := await context.read()) is not grpc.aio.EOF:
                for call in pb.SessionRequest.FromString(frame).calls:
                    submit(call, writer)
                await writer.drained()
        except asyncio.CancelledError:
            pass  # the client went away, or the gateway stops: gRPC itself logs a cancelled handler as an error
        finally:
            self._dispatcher.forget(writer)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


class _Waiting:
    """Waits for one reply. Implements `holdfast_cluster.dispatch.Origin`."""

    __slots__ = ("future",)

    def __init__(self) -> None:
        self.future: asyncio.Future[pb.Reply] = asyncio.get_running_loop().create_future()

    def push(self, reply: pb.Reply, size: int) -> None:
        if not self.future.done():
            self.future.set_result(reply)


async def _abort(context: Any, error: pb.Error) -> None:
    """End a unary call with the error's gRPC status, and the whole error as its detail."""
    detail = AnyMessage()
    detail.Pack(error)
    code = grpc_status(error.code)
    status = Status(code=code.value[0], message=error.message, details=[detail])
    await context.abort(code, error.message, (("grpc-status-details-bin", status.SerializeToString()),))


def _pack(replies: list[pb.Reply]) -> bytes:
    return pb.SessionResponse(replies=replies).SerializeToString()
