"""The node's gRPC service: pipes that bring calls, and statistics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from holdfast.errors import WrongOwner, error_to_proto
from holdfast.frames import FrameWriter, ends
from holdfast.v1 import admin_pb2, peer_pb2
from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.pipe import TARGET_METADATA, Pipe, PipeEnd

from holdfast_node.engine import Engine
from holdfast_node.liveness import Liveness

_ENVELOPE_BYTES = 50
_Reply = tuple[int, bytes, "pb.Error | None", int]

_NOT_SERVING = error_to_proto(WrongOwner("this node serves nothing at the moment", retryable=True))


class PeerService:
    """Serves `holdfast.v1.Peer`. `accepting` is cleared when the node drains."""

    def __init__(
        self,
        engine: Engine,
        liveness: Liveness,
        identity: Callable[[], str],
        revision: Callable[[], int],
        stats: Callable[[], admin_pb2.StatsResponse],
    ) -> None:
        self._engine = engine
        self._liveness = liveness
        self._identity = identity
        self._revision = revision
        self._stats = stats
        self.accepting = True

    def handlers(self) -> grpc.GenericRpcHandler:
        """What to register with the server. The pipe takes and gives bytes: frames are decoded here, once."""
        return grpc.method_handlers_generic_handler(
            "holdfast.v1.Peer",
            {
                "Pipe": grpc.stream_stream_rpc_method_handler(self.pipe),
                "Stats": grpc.unary_unary_rpc_method_handler(
                    self.stats,
                    request_deserializer=admin_pb2.StatsRequest.FromString,
                    response_serializer=admin_pb2.StatsResponse.SerializeToString,
                ),
            },
        )

    async def stats(self, request: admin_pb2.StatsRequest, context: Any) -> admin_pb2.StatsResponse:
        return self._stats()

    async def pipe(self, _: object, context: Any) -> None:
        """One gateway's, or node's, calls; until it goes away."""
        target = dict(context.invocation_metadata()).get(TARGET_METADATA, "")
        if target != self._identity():
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"meant for {target}, but this is {self._identity()}")
        await context.write(peer_pb2.PipeResponse(routes_revision=self._revision()).SerializeToString())
        port = _PipePort(self._pack)
        sending = asyncio.create_task(port.writer.run(context.write))
        sending.add_done_callback(ends(asyncio.current_task()))
        deliver = self._engine.deliver
        try:
            while (frame := await context.read()) is not grpc.aio.EOF:
                calls = _calls(frame)
                if calls is None:
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not a frame of calls")
                if self.accepting and self._liveness.ok():
                    for call in calls:
                        deliver(call, port)
                else:
                    for call in calls:
                        port.reply(call.id, b"", _NOT_SERVING, 0)
                await port.writer.drained()
        except asyncio.CancelledError:
            pass  # as in a gateway's session
        finally:
            port.closed = True
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    def _pack(self, replies: list[_Reply]) -> bytes:
        """A frame of replies. Whether this node may still speak is asked here, as they leave."""
        response = peer_pb2.PipeResponse(routes_revision=self._revision())
        add = response.replies.add
        if self._liveness.ok():
            for number, result, error, epoch in replies:
                if error is None:
                    add(id=number, result=result, epoch=epoch)
                else:
                    add(id=number, error=error, epoch=epoch)
        else:
            for number, _, _, epoch in replies:
                add(id=number, error=_NOT_SERVING, epoch=epoch)
        return response.SerializeToString()


def _calls(frame: bytes) -> Any:
    try:
        return peer_pb2.PipeRequest.FromString(frame).calls
    except DecodeError:
        return None


def _reply_bytes(reply: _Reply) -> int:
    _, result, error, _ = reply
    return (len(result) if error is None else error.ByteSize()) + _ENVELOPE_BYTES


class _PipePort:
    """The replies of one pipe. Implements `holdfast_node.turn.ReplyPort`."""

    __slots__ = ("_push", "closed", "writer")

    def __init__(self, pack: Callable[[list[_Reply]], bytes]) -> None:
        self.writer: FrameWriter[_Reply] = FrameWriter(pack, _reply_bytes)
        self._push = self.writer.push
        self.closed = False

    def reply(self, number: int, result: bytes, error: pb.Error | None, epoch: int) -> None:
        if not self.closed:
            reply = (number, result, error, epoch)
            self._push(reply, len(result) + _ENVELOPE_BYTES if error is None else _reply_bytes(reply))


class LocalPipe:
    """The pipe of a node to itself, for calls between its own objects: no bytes cross a socket.

    Implements `holdfast_cluster.pipe.Pipe` and `holdfast_node.turn.ReplyPort`. `connect` ties its two ends.
    """

    def __init__(self, liveness: Liveness) -> None:
        self._liveness = liveness
        self._loop = asyncio.get_running_loop()

    def connect(self, engine: Engine, end: PipeEnd) -> Pipe:
        self._engine = engine
        self._end = end
        return self

    def send(self, call: pb.Call, size: int) -> None:
        self._loop.call_soon(self._deliver, call)

    def _deliver(self, call: pb.Call) -> None:
        if self._liveness.ok():
            self._engine.deliver(call, self)
        else:
            self.reply(call.id, b"", _NOT_SERVING, 0)

    def reply(self, number: int, result: bytes, error: pb.Error | None, epoch: int) -> None:
        if not self._liveness.ok():
            error = _NOT_SERVING
        if error is None:
            message = pb.Reply(id=number, result=result, epoch=epoch)
        else:
            message = pb.Reply(id=number, error=error, epoch=epoch)
        # Later, because the engine may be in the middle of the very turn that sent the call.
        self._loop.call_soon(self._end.on_reply, self, message)
