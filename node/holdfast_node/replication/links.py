"""Streams of replication messages between nodes.

Each node opens one stream to every other member, for all its messages to that member. These are
entries and heartbeats of shards that the node owns, and acknowledgements for the member's shards.
Streams go one way, so that both kinds leave in one frame. A frame carries the messages of many
shards, because a frame costs far more than a message in it. Messages may be lost when a stream
breaks. The core sends unacknowledged entries again.

A frame is msgpack: `[[shard, message], ...]`. A message is the tag of its type and then the type's
fields, in one array. Fields that a later version adds come last and have defaults. So neighbouring
versions understand each other.
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
"""The nodes' service that takes these streams. See holdfast_cluster.streams.tcp."""

_BACKLOG_BYTES_MAX = 64 << 20
_OVERHEAD_BYTES = 40

_Numbered = tuple[int, WireMessage]
pack: Callable[[list[_Numbered]], bytes] = msgspec.msgpack.Encoder().encode
unpack: Callable[[bytes], list[_Numbered]] = msgspec.msgpack.Decoder(list[_Numbered]).decode


def size_of(message: Message) -> int:
    """Return the approximate number of bytes of a message."""
    if type(message) is Replicate:
        return sum(
            [len(entry.data) + _OVERHEAD_BYTES for entry in message.entries], _OVERHEAD_BYTES
        )
    return _OVERHEAD_BYTES


def _size(numbered: _Numbered) -> int:
    return size_of(numbered[1])


def new_writer() -> FrameWriter[_Numbered]:
    """Return a writer that batches the messages of a stream."""
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
        """Send a message. Lose it while the stream is down or has far too large a backlog."""
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
    """The receiver of other nodes' messages."""

    def received(self, sender: str, messages: list[_Numbered]) -> None:
        """Take the messages of a frame from a node."""

    def broke(self, node: str) -> None:
        """Take note that the stream to a node broke."""


class Links:
    """The links to all other members of the newest view, and the receivers of their streams."""

    def __init__(
        self, me: Callable[[], str], to: Receiver, certificates: Certificates | None = None
    ) -> None:
        """Begin without links. `me` returns this node, as `id:incarnation`."""
        self._node = me().rpartition(":")[0]
        self._certificates = certificates
        self._me = me
        self._to = to
        self._links: dict[str, Link] = {}

    def follow(self, view: View) -> None:
        """Open a link to every member that has none, or that has a new incarnation or address."""
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
        """Send a message to a node."""
        if (link := self._links.get(to)) is not None:
            link.send(shard, message)

    def connected_member(self, node: str) -> Member | None:
        """Return the member of a node's link while the link is up; else None."""
        link = self._links.get(node)
        return link.member if link is not None and link.up else None

    def receiver(self, sender: str, stream: Stream) -> Callable[[bytes], None]:
        """Return a function that takes the frames of one node's stream."""

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
