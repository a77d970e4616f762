"""A stream to one member that connects again by itself: for calls, and for replication."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import ClassVar, Generic, TypeVar

from holdfast.frames import FrameWriter
from holdfast.tls import Certificates

from holdfast_cluster.placement.model import Member
from holdfast_cluster.streams.tcp import Stream, StreamRefused, open_stream

log = logging.getLogger(__name__)

M = TypeVar("M")

_BACKOFF_S = (0.05, 1.0)
_EXPLAINED = 200


class ReconnectingStream(Generic[M]):
    """Connects to `member` until it is retired or closed, after a pause of 50 ms to 1 s.

    `up` only once the member has answered: an address that accepts connections is not yet the
    member that was meant. What is pushed while the stream is down is lost.
    """

    service: ClassVar[str]
    """Which service of the member takes the stream."""
    called: ClassVar[str]
    """How logs name it."""

    def __init__(
        self,
        member: Member,
        certificates: Certificates | None,
        me: Callable[[], str] = lambda: "",
    ) -> None:
        """`me`: who connects, as the member is told."""
        self.member = member
        self._certificates = certificates
        self._me = me
        self._retired = False
        self._superseded = False
        self.writer: FrameWriter[M] = self.new_writer()
        self.up = False
        self._task = asyncio.create_task(self._run(), name=f"{self.called} to {member.id}")

    # -- what a kind of stream says

    def new_writer(self) -> FrameWriter[M]:
        """What batches the messages of a connection that begins."""
        raise NotImplementedError

    def received(self, frame: bytes) -> None:
        """A frame came from the member."""

    def came_up(self) -> None:
        """The member has answered."""

    def went_down(self) -> None:
        """The connection broke, and no other incarnation of the member has taken its place."""

    # -- its end

    def retire(self) -> None:
        """The member is gone from the view. What is connected goes on, a broken connection is not
        opened again."""
        self._retired = True
        if not self.up:
            self._task.cancel()

    def supersede(self) -> None:
        """The member is another incarnation now, with a stream of its own."""
        self._superseded = self._retired = True
        self._task.cancel()

    async def close(self) -> None:
        """End it at once."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        backoff, longest = _BACKOFF_S
        while not self._retired:
            if await self._connect():
                backoff = _BACKOFF_S[0]
            await asyncio.sleep(backoff * random.uniform(0.5, 1.0))
            backoff = min(backoff * 2, longest)

    async def _connect(self) -> bool:
        """Connect once, and stay as long as the connection does; whether it came up."""
        member = self.member
        stream: Stream | None = None
        sending: asyncio.Task[None] | None = None
        came_up = False
        why = "it was closed by this side"
        try:
            target = f"{member.id}:{member.incarnation}"
            stream = await open_stream(
                member.streams, self.service, target, self.received, self._me(), self._certificates
            )
            self.writer = self.new_writer()
            sending = stream.send_from(self.writer)
            self.up = came_up = True
            self.came_up()
            why = await stream.wait()
        except (OSError, StreamRefused, ValueError) as error:
            why = str(error)
        except Exception as error:  # nobody waits for this task: it has to go on
            log.exception("a bug in the %s to %s", self.called, member.id)
            why = str(error)
        finally:
            if self.up:
                log.info(
                    "%s to %s at %s is down: %s",
                    self.called,
                    member.id,
                    member.streams,
                    why[:_EXPLAINED],
                )
                self.up = False
                if not self._superseded:
                    self.went_down()
            if stream is not None:
                stream.abort(f"the {self.called} is closed")
            if sending is not None:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        return came_up
