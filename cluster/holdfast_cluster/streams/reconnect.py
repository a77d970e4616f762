"""A stream to one member that reconnects by itself. Pipes and replication use it."""

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
    """A stream to `member`, which reconnects, after a pause of 50 ms to 1 s, until retired or
    closed.

    `up` is true once the member has answered: another process may accept connections at the
    member's address. Messages that are pushed while the stream is down are lost.
    """

    service: ClassVar[str]
    """The member's service that takes the stream."""
    called: ClassVar[str]
    """The stream's name in logs."""

    def __init__(
        self,
        member: Member,
        certificates: Certificates | None,
        me: Callable[[], str] = lambda: "",
    ) -> None:
        """Begin to connect. `me` returns the name of this side, `node id:incarnation`, or ""."""
        self.member = member
        self._certificates = certificates
        self._me = me
        self._retired = False
        self._superseded = False
        self.writer: FrameWriter[M] = self.new_writer()
        self.up = False
        self._task = asyncio.create_task(self._run(), name=f"{self.called} to {member.id}")

    # -- the part that subclasses define

    def new_writer(self) -> FrameWriter[M]:
        """Return the writer that batches the messages of a new connection."""
        raise NotImplementedError

    def received(self, frame: bytes) -> None:
        """Handle a frame from the member."""

    def came_up(self) -> None:
        """Handle that the member has answered on a new connection."""

    def went_down(self) -> None:
        """Handle that the connection broke. This is not called after `supersede`."""

    # -- its end

    def retire(self) -> None:
        """Do not reconnect any more, because the member is gone from the view.

        A present connection goes on until it breaks.
        """
        self._retired = True
        if not self.up:
            self._task.cancel()

    def supersede(self) -> None:
        """End the stream, because the member has a new incarnation, with a stream of its own."""
        self._superseded = self._retired = True
        self._task.cancel()

    async def close(self) -> None:
        """End the stream at once, and wait until it has ended."""
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
        """Connect once, and wait until the connection ends. Return whether it had come up."""
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
        except Exception as error:  # no other task waits for this one, so it has to go on
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
