"""The stream to one node: calls out in batches, replies back."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Protocol, cast

from holdfast.frames import FrameWriter
from holdfast.tls import Certificates
from holdfast.v1 import objects_pb2 as pb

from holdfast_cluster.peerpb import peer_pb2
from holdfast_cluster.placement.model import Member
from holdfast_cluster.streams.tcp import Stream, StreamRefused, open_stream

log = logging.getLogger(__name__)

PIPE = "pipe"
"""The service of nodes that takes calls; see holdfast_cluster.streams.tcp."""

_BACKOFF_S = (0.05, 1.0)
_CANCEL_BYTES = 40
_Message = pb.Call | peer_pb2.Cancel


class Pipe(Protocol):
    """A way to a node."""

    def send(self, call: pb.Call, size: int) -> None:
        """Send a call of about `size` bytes; its reply goes to the dispatcher by `call.id`."""

    def cancel(self, number: int, request_id: bytes) -> None:
        """Nobody waits any more for the call with this `id`, which was sent before. A reply may
        come all the same."""


class PipeEnd(Protocol):
    """Who is told what comes back."""

    def on_reply(self, pipe: Pipe, reply: pb.Reply) -> None: ...
    def on_revision(self, pipe: Pipe, order: int) -> None: ...
    def on_pipe_up(self, pipe: Pipe) -> None: ...
    def on_pipe_down(self, pipe: Pipe) -> None: ...


class RemotePipe:
    """A pipe to a member, which connects again by itself until it is retired or closed.

    `up` only once the node has answered: an address that accepts connections is not yet the node
    that was meant.
    """

    def __init__(
        self, end: PipeEnd, member: Member, certificates: Certificates | None = None
    ) -> None:
        self._end = end
        self._member = member
        self._certificates = certificates
        self._retired = False
        self._writer: FrameWriter[_Message] = FrameWriter(self._pack, _size)
        self._cancels = 0
        """Those that wait to be written."""
        self.up = False
        self._task = asyncio.create_task(self._run(), name=f"pipe to {member.id}")

    def send(self, call: pb.Call, size: int) -> None:
        self._writer.push(call, size)

    def cancel(self, number: int, request_id: bytes) -> None:
        self._cancels += 1
        self._writer.push(peer_pb2.Cancel(id=number, request_id=request_id), _CANCEL_BYTES)

    def retire(self) -> None:
        """The member is gone from the view: replies still come, but a broken connection is not
        opened again."""
        self._retired = True
        if not self.up:
            self._task.cancel()

    async def close(self) -> None:
        """End it at once."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        backoff, longest = _BACKOFF_S
        member = self._member
        while not self._retired:
            stream: Stream | None = None
            sending: asyncio.Task[None] | None = None
            why = "it was closed by this side"
            try:
                target = f"{member.id}:{member.incarnation}"
                stream = await open_stream(
                    member.streams, PIPE, target, self._received, certificates=self._certificates
                )
                self._writer = FrameWriter(self._pack, _size)
                self._cancels = 0
                sending = stream.send_from(self._writer)
                self.up = True
                backoff = _BACKOFF_S[0]
                self._end.on_pipe_up(self)
                why = await stream.wait()
            except (OSError, StreamRefused, ValueError) as error:
                why = str(error)
            finally:
                if self.up:
                    log.info("pipe to %s at %s is down: %s", member.id, member.streams, why)
                    self.up = False
                    self._end.on_pipe_down(self)
                if stream is not None:
                    stream.abort("the pipe is closed")
                if sending is not None:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
            await asyncio.sleep(backoff * random.uniform(0.5, 1.0))
            backoff = min(backoff * 2, longest)

    def _pack(self, messages: list[_Message]) -> bytes:
        if not self._cancels:
            return peer_pb2.PipeRequest(calls=cast("list[pb.Call]", messages)).SerializeToString()
        calls = [message for message in messages if isinstance(message, pb.Call)]
        cancel = [message for message in messages if isinstance(message, peer_pb2.Cancel)]
        self._cancels -= len(cancel)
        return peer_pb2.PipeRequest(calls=calls, cancel=cancel).SerializeToString()

    def _received(self, frame: bytes) -> None:
        response = peer_pb2.PipeResponse.FromString(frame)
        self._end.on_revision(self, response.routes_revision)
        on_reply = self._end.on_reply
        for reply in response.replies:
            on_reply(self, reply)


def _size(message: _Message) -> int:
    return message.ByteSize()
