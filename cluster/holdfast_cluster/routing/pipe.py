"""The stream to one node: it carries calls there in batches, and replies back."""

from __future__ import annotations

from typing import Protocol, cast

from holdfast.frames import FrameWriter
from holdfast.tls import Certificates
from holdfast.v1 import objects_pb2 as pb

from holdfast_cluster.peerpb import peer_pb2
from holdfast_cluster.placement.model import Member
from holdfast_cluster.streams.reconnect import ReconnectingStream

PIPE = "pipe"
"""The name of the nodes' stream service that takes calls; see holdfast_cluster.streams.tcp."""

_CANCEL_BYTES = 40
_Message = pb.Call | peer_pb2.Cancel


class Pipe(Protocol):
    """A way to send calls to one node."""

    def send(self, call: pb.Call, size: int) -> None:
        """Send a call of about `size` bytes. Its reply goes to the dispatcher, with `call.id`."""

    def cancel(self, number: int, request_id: bytes) -> None:
        """Tell the node that the caller of a call sent before does not wait for it any more.

        `number` is the call's `id`. A reply to it may still come.
        """


class PipeEnd(Protocol):
    """The receiver of a pipe's events: a dispatcher."""

    def on_reply(self, pipe: Pipe, reply: pb.Reply) -> None: ...
    def on_revision(self, pipe: Pipe, order: int) -> None: ...
    def on_pipe_up(self, pipe: Pipe) -> None: ...
    def on_pipe_down(self, pipe: Pipe) -> None: ...


class RemotePipe(ReconnectingStream[_Message]):
    """A pipe to a member. Implements `Pipe`."""

    service = PIPE
    called = "pipe"

    def __init__(
        self, end: PipeEnd, member: Member, certificates: Certificates | None = None
    ) -> None:
        self._end = end
        self._cancels = 0
        """How many `Cancel` messages wait to be written."""
        super().__init__(member, certificates)

    def send(self, call: pb.Call, size: int) -> None:
        self.writer.push(call, size)

    def cancel(self, number: int, request_id: bytes) -> None:
        self._cancels += 1
        self.writer.push(peer_pb2.Cancel(id=number, request_id=request_id), _CANCEL_BYTES)

    def new_writer(self) -> FrameWriter[_Message]:
        self._cancels = 0
        return FrameWriter(self._pack, _size)

    def came_up(self) -> None:
        self._end.on_pipe_up(self)

    def went_down(self) -> None:
        self._end.on_pipe_down(self)

    def received(self, frame: bytes) -> None:
        response = peer_pb2.PipeResponse.FromString(frame)
        self._end.on_revision(self, response.routes_revision)
        on_reply = self._end.on_reply
        for reply in response.replies:
            on_reply(self, reply)

    def _pack(self, messages: list[_Message]) -> bytes:
        if not self._cancels:
            return peer_pb2.PipeRequest(calls=cast("list[pb.Call]", messages)).SerializeToString()
        calls = [message for message in messages if isinstance(message, pb.Call)]
        cancel = [message for message in messages if isinstance(message, peer_pb2.Cancel)]
        self._cancels -= len(cancel)
        return peer_pb2.PipeRequest(calls=calls, cancel=cancel).SerializeToString()


def _size(message: _Message) -> int:
    return message.ByteSize()
