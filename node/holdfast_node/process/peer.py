"""The services of a node: streams of calls and of replication messages, and by gRPC snapshots,
statistics and requests of operators."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf import message_factory
from holdfast.channels import SERVER_OPTIONS, bind
from holdfast.errors import (
    HoldfastError,
    InternalError,
    Overloaded,
    WrongOwner,
    error_to_proto,
    grpc_status,
)
from holdfast.frames import BACKLOG_BYTES_MAX, FrameWriter, read_calls
from holdfast.logs import RateLimitedLog
from holdfast.tls import Certificates, names_of
from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.clocks.boottime import boottime
from holdfast_cluster.peerpb import peer_pb2
from holdfast_cluster.routing.nodes import ASKED_BY_METADATA
from holdfast_cluster.routing.pipe import PIPE, PipeEnd
from holdfast_cluster.streams.tcp import Hello, Service, Stream, StreamRefused

from holdfast_node.log.shards import Shard
from holdfast_node.objects.engine import Engine
from holdfast_node.observe.liveness import Liveness
from holdfast_node.replication.links import REPLICATE, Links
from holdfast_node.replication.snapshots import SENDER_METADATA, TARGET_METADATA, SnapshotReceiver

log = logging.getLogger(__name__)

_SHOWN_CHARS = 300
_ENVELOPE_BYTES = 50
_UNREAD_BYTES_MAX = 256 << 20
"""The most bytes of replies that wait to be written to one pipe. Beyond it large results are
replaced by an error. A retry finds the kept reply, or reads again."""
_SMALL_BYTES = 4096
_Reply = tuple[int, bytes, "pb.Error | None", Shard | None]

_UNREAD = error_to_proto(
    Overloaded(
        f"more than {_UNREAD_BYTES_MAX >> 20} MiB of replies wait to be read",
        retryable=True,
        retry_after_s=1.0,
    )
)
_BUG = error_to_proto(InternalError("a bug of the node; its log has more"))
_NOT_SERVING = error_to_proto(WrongOwner("this node serves nothing at the moment", retryable=True))


class PeerService:
    """Serves streams and `holdfast.peer.v1.Peer`. `accepting` is False when the node drains."""

    def __init__(
        self,
        engine: Engine,
        liveness: Liveness,
        identity: Callable[[], str],
        revision: Callable[[], int],
        answers: Mapping[str, Callable[[Any], Awaitable[Any]]],
        links: Links | None = None,
        snapshots: SnapshotReceiver | None = None,
        certificates: Certificates | None = None,
    ) -> None:
        """`answers`: the functions that answer the unary methods of the service, by the method's
        name."""
        self._engine = engine
        self._liveness = liveness
        self._identity = identity
        self._revision = revision
        self._answers = answers
        self._links = links
        self._snapshots = snapshots
        self._certificates = certificates
        self._log_limit = RateLimitedLog()
        self.accepting = True

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the handler for the gRPC server."""
        return grpc.method_handlers_generic_handler(
            "holdfast.peer.v1.Peer",
            {
                "Snapshot": grpc.stream_unary_rpc_method_handler(self.snapshot),
                **{
                    name: _unary(name, answer, self._check_process)
                    for name, answer in self._answers.items()
                },
            },
        )

    def services(self) -> dict[str, Service]:
        """Return the services of the stream server by name."""
        return {PIPE: self.pipe, REPLICATE: self.replicate}

    def pipe(self, hello: Hello, stream: Stream) -> Callable[[bytes], None]:
        """Serve the calls of one gateway or node, until its stream ends."""
        self._check_target(hello.target)
        port = _PipePort(self._pack)
        # The first frame tells the revision of this node's routes.
        asyncio.get_running_loop().call_soon(stream.answer, self._pack([]))
        sending = stream.send_from(port.writer)
        deliver = self._engine.deliver
        cancel = self._engine.cancel

        def ended(_: object) -> None:
            port.closed = True
            sending.cancel()

        def received(frame: bytes) -> None:
            request = read_calls(frame, peer_pb2.PipeRequest)
            if request is None:
                stream.abort("not a frame of calls")
                return
            if self.accepting and self._liveness.ok():
                for call in request.calls:
                    try:
                        deliver(call, port)
                    except Exception:  # a bug in one call must not stop the others
                        log.exception("%s/%s.%s", call.kind, call.key, call.method)
                        port.reply(call.id, b"", _BUG, None)
                for gone in request.cancel:
                    cancel(gone.request_id, port, gone.id)
            else:
                for call in request.calls:
                    port.reply(call.id, b"", _NOT_SERVING, None)
            if port.writer.backlog > BACKLOG_BYTES_MAX:
                stream.pause_reading_while(port.writer.drained())

        stream.ended.add_done_callback(ended)
        return received

    def replicate(self, hello: Hello, stream: Stream) -> Callable[[bytes], None]:
        """Serve the replication messages of one node, until its stream ends."""
        self._check_target(hello.target)
        sender = hello.sender.rpartition(":")[0]
        if not sender:
            raise StreamRefused("a replication stream must name the node that it comes from")
        if self._links is None:
            raise StreamRefused("the cluster keeps single copies")
        return self._links.receiver(sender, stream)

    async def snapshot(self, _: object, context: Any) -> bytes:
        """Receive a snapshot of one shard from its owner."""
        await self._check_process(context)
        sender = await self._sender(context)
        assert self._snapshots is not None
        await self._snapshots.serve(sender, context)
        return b""

    async def _check_process(self, context: Any) -> None:
        """With TLS, refuse a request that does not come from a process of the cluster."""
        await _check_process(self._certificates, self._log_limit, context)

    async def _sender(self, context: Any) -> str:
        """Return the node that sends a snapshot. Refuse a snapshot that is meant for another
        node."""
        try:
            self._check_target(dict(context.invocation_metadata()).get(TARGET_METADATA, ""))
        except StreamRefused as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        sender = dict(context.invocation_metadata()).get(SENDER_METADATA, "").rpartition(":")[0]
        if not sender:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"no {SENDER_METADATA} in the metadata"
            )
        if self._links is None:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION, "the cluster keeps single copies"
            )
        return str(sender)

    def _check_target(self, target: str) -> None:
        if target != self._identity():
            raise StreamRefused(f"meant for {target[:200]}, but this is {self._identity()}")

    def _pack(self, replies: list[_Reply]) -> bytes:
        """Return a frame of replies. As they leave, check that this node may still answer for their
        shards."""
        response = peer_pb2.PipeResponse(routes_revision=self._revision())
        add = response.replies.add
        if self._liveness.ok():
            now = boottime()
            for number, result, error, shard in replies:
                if shard is None:
                    add(id=number, error=error)
                elif shard.until <= now:  # the answer, or error, may not be true any more
                    add(id=number, error=_NOT_SERVING)
                elif error is None:
                    add(id=number, result=result, epoch=shard.epoch)
                else:
                    add(id=number, error=error, epoch=shard.epoch)
        else:
            for number, _, _, _ in replies:
                add(id=number, error=_NOT_SERVING)
        return response.SerializeToString()


class WaitingRoom:
    """The service of a node while etcd does not have its cluster. It has only the method that
    `holdfast adopt-etcd` calls."""

    def __init__(
        self, listen: str, report: peer_pb2.KnownResponse, certificates: Certificates | None
    ) -> None:
        self._listen = listen
        self._certificates = certificates
        self._report = report
        self._log_limit = RateLimitedLog()

    async def __aenter__(self) -> None:
        async def known(request: peer_pb2.KnownRequest) -> peer_pb2.KnownResponse:
            return self._report

        async def check(context: Any) -> None:
            await _check_process(self._certificates, self._log_limit, context)

        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        handlers = {"Known": _unary("Known", known, check)}
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("holdfast.peer.v1.Peer", handlers),)
        )
        port = bind(
            self._server,
            self._listen,
            None if self._certificates is None else self._certificates.server_credentials(),
        )
        await self._server.start()
        log.info(
            "this node waits for its cluster, and answers `holdfast adopt-etcd` at port %d", port
        )

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)


async def _check_process(
    certificates: Certificates | None, few: RateLimitedLog, context: Any
) -> None:
    if certificates is not None and not certificates.is_process(names_of(context)):
        shown = ", ".join(names_of(context)) or "no name"
        if few.allow():
            log.warning("a certificate of %s is refused, from %s", shown, context.peer())
        await context.abort(
            grpc.StatusCode.PERMISSION_DENIED,
            "this certificate is not one of the cluster's processes",
        )


def _unary(
    name: str, answer: Callable[[Any], Awaitable[Any]], check: Callable[[Any], Awaitable[None]]
) -> Any:
    """Return a unary method of the service. Its errors become gRPC statuses by the table of errors;
    ValueError becomes INVALID_ARGUMENT."""
    method = peer_pb2.DESCRIPTOR.services_by_name["Peer"].methods_by_name[name]
    takes, gives = (
        message_factory.GetMessageClass(method.input_type),
        message_factory.GetMessageClass(method.output_type),
    )

    async def serve(request: Any, context: Any) -> Any:
        await check(context)
        if by := dict(context.invocation_metadata() or ()).get(ASKED_BY_METADATA):
            log.warning(
                "%s, asked for by %s: %s",
                name,
                unquote(by),
                str(request).replace("\n", " ")[:_SHOWN_CHARS],
            )
        try:
            return await answer(request)
        except HoldfastError as error:
            await context.abort(grpc_status(error_to_proto(error)), error.message)
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    return grpc.unary_unary_rpc_method_handler(
        serve, request_deserializer=takes.FromString, response_serializer=gives.SerializeToString
    )


def _reply_bytes(reply: _Reply) -> int:
    _, result, error, _ = reply
    return (len(result) if error is None else error.ByteSize()) + _ENVELOPE_BYTES


class _PipePort:
    """The replies of one pipe. Implements `holdfast_node.objects.activation.ReplyPort`."""

    __slots__ = ("_push", "closed", "writer")

    def __init__(self, pack: Callable[[list[_Reply]], bytes]) -> None:
        self.writer: FrameWriter[_Reply] = FrameWriter(pack, _reply_bytes)
        self._push = self.writer.push
        self.closed = False

    def reply(
        self, number: int, result: bytes, error: pb.Error | None, shard: Shard | None
    ) -> None:
        if not self.closed:
            if len(result) > _SMALL_BYTES and self.writer.backlog > _UNREAD_BYTES_MAX:
                result, error = b"", _UNREAD
            reply = (number, result, error, shard)
            self._push(
                reply, len(result) + _ENVELOPE_BYTES if error is None else _reply_bytes(reply)
            )


class LocalPipe:
    """The pipe of a node to itself, for calls between its own objects: no bytes cross a socket.

    Implements `holdfast_cluster.routing.pipe.Pipe` and
    `holdfast_node.objects.activation.ReplyPort`.
    """

    closed = False

    def __init__(self, liveness: Liveness, engine: Engine, end: PipeEnd) -> None:
        self._liveness = liveness
        self._engine = engine
        self._end = end
        self._loop = asyncio.get_running_loop()

    def send(self, call: pb.Call, size: int) -> None:
        self._loop.call_soon(self._deliver, call)

    def cancel(self, number: int, request_id: bytes) -> None:
        self._loop.call_soon(self._engine.cancel, request_id, self, number)

    def _deliver(self, call: pb.Call) -> None:
        if self._liveness.ok():
            self._engine.deliver(call, self)
        else:
            self.reply(call.id, b"", _NOT_SERVING, None)

    def reply(
        self, number: int, result: bytes, error: pb.Error | None, shard: Shard | None
    ) -> None:
        if shard is not None and (shard.until <= boottime() or not self._liveness.ok()):
            error = _NOT_SERVING
        epoch = 0 if shard is None else shard.epoch
        if error is None:
            message = pb.Reply(id=number, result=result, epoch=epoch)
        else:
            message = pb.Reply(id=number, error=error, epoch=epoch)
        # Later, because the engine may be in the middle of the very turn that sent the call.
        self._loop.call_soon(self._end.on_reply, self, message)
