"""Streams of replication messages between nodes.

Each node opens one stream to every other member, for all that it has to say to it: entries and
heartbeats of shards that it owns, and acknowledgements for those of the other. Nothing comes back
on a stream, so that both leave in one frame, and a frame carries the messages of many shards: a
frame costs far more than a message in it. Messages may be lost when a stream breaks; the core sends
again what was not acknowledged.

A frame is msgpack: `[[shard, message], ...]`, a message the array of its type's fields, led by the
type's tag. Fields that a later version adds come last and have defaults, so neighbouring versions
understand each other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

import msgspec
from holdfast.frames import FrameWriter
from holdfast.tls import Certificates
from holdfast_cluster.placement.model import Member, View
from holdfast_cluster.streams.reconnect import ReconnectingStream
from holdfast_cluster.streams.tcp import Stream

from holdfast_node.replication.core.events import Message, Replicate, WireMessage

log = logging.getLogger(__name__)

REPLICATE = "replicate"
"""The service of nodes that takes these streams; see holdfast_cluster.streams.tcp."""

_BACKLOG_BYTES_MAX = 64 << 20
_OVERHEAD_BYTES = 40

_Numbered = tuple[int, WireMessage]
pack: Callable[[list[_Numbered]], bytes] = msgspec.msgpack.Encoder().encode
unpack: Callable[[bytes], list[_Numbered]] = msgspec.msgpack.Decoder(list[_Numbered]).decode


def size_of(message: Message) -> int:
    """About how many bytes a message takes."""
    if type(message) is Replicate:
        return sum(
            [len(entry.data) + _OVERHEAD_BYTES for entry in message.entries], _OVERHEAD_BYTES
        )
    return _OVERHEAD_BYTES


def _size(numbered: _Numbered) -> int:
    return size_of(numbered[1])


def new_writer() -> FrameWriter[_Numbered]:
    """Batches the messages of one direction of a stream."""
    return FrameWriter(pack, _size)


class Link(ReconnectingStream[_Numbered]):
    """The replication stream to one member."""

    service = REPLICATE
    called = "replication"

    def __init__(
        self,
        me: Callable[[], str],
        member: Member,
        broke: Callable[[str], None],
        certificates: Certificates | None,
    ) -> None:
        self._broke = broke
        super().__init__(member, certificates, me)

    def send(self, shard: int, message: WireMessage) -> None:
        """Send a message, or lose it: while the stream is down, or when far too much waits for
        it."""
        if self.up and self.writer.backlog < _BACKLOG_BYTES_MAX:
            self.writer.push((shard, message), size_of(message))

    @property
    def retired(self) -> bool:
        return self._retired

    def new_writer(self) -> FrameWriter[_Numbered]:
        return new_writer()

    def went_down(self) -> None:
        self._broke(self.member.id)


class Receiver(Protocol):
    """What gets the messages of other nodes."""

    def received(self, sender: str, messages: list[_Numbered]) -> None:
        """A frame came from a node."""

    def broke(self, node: str) -> None:
        """The stream to a node broke."""


class Links:
    """The links to all other members, by the newest view, and the streams of theirs."""

    def __init__(
        self, me: Callable[[], str], to: Receiver, certificates: Certificates | None = None
    ) -> None:
        """`me`: this node, as `id:incarnation`."""
        self._node = me().rpartition(":")[0]
        self._certificates = certificates
        self._me = me
        self._to = to
        self._links: dict[str, Link] = {}

    def follow(self, view: View) -> None:
        """Open a link to every member that has none, and to every one that is
        another incarnation."""
        for name, link in list(self._links.items()):
            member = view.members.get(name)
            if member is None:
                link.retire()
                if not link.up:
                    del self._links[name]
            elif (member.streams, member.incarnation) != (
                link.member.streams,
                link.member.incarnation,
            ):
                self._links.pop(name).supersede()
        for name, member in view.members.items():
            if name != self._node and (name not in self._links or self._links[name].retired):
                self._links[name] = Link(self._me, member, self._to.broke, self._certificates)

    def send(self, to: str, shard: int, message: WireMessage) -> None:
        """Say something to a node."""
        if (link := self._links.get(to)) is not None:
            link.send(shard, message)

    def address_of(self, node: str) -> Member | None:
        """The member that a link leads to, while it is up."""
        link = self._links.get(node)
        return link.member if link is not None and link.up else None

    def receiver(self, sender: str, stream: Stream) -> Callable[[bytes], None]:
        """What takes the frames of one node's stream."""

        def received(frame: bytes) -> None:
            try:
                messages = unpack(frame)
            except (
                Exception
            ) as error:  # RecursionError and UnicodeDecodeError are no errors of msgspec's
                stream.abort(f"not a frame of replication messages: {error}")
                return
            self._to.received(sender, messages)

        return received

    async def close(self) -> None:
        await asyncio.gather(*(link.close() for link in self._links.values()))
