"""The task that keeps the cluster's time in a process: it asks other processes for their clocks.

`clocks/cluster_time.py` decides what follows from the answers.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import grpc

from holdfast_cluster.clocks.boottime import boottime
from holdfast_cluster.clocks.cluster_time import ASK_S, Clock, Time, wall_ms
from holdfast_cluster.membership.view_watcher import ViewWatcher
from holdfast_cluster.peerpb import peer_pb2
from holdfast_cluster.placement.model import Member
from holdfast_cluster.routing.nodes import Nodes

log = logging.getLogger(__name__)

ASK_SOON_S = 0.1
"""The interval of asking while this process's clock has not started."""
_TIMEOUT_S = 1.0  # the time in an answer that took longer would be too inexact
_LAST_MS = 1 << 47  # the year 6429


@dataclass(frozen=True, slots=True)
class Voter:
    """This process as a voter on the time. The default, an empty `id`, is a gateway: it has no
    vote.

    `wanted`: how many nodes there should be at least.
    """

    id: str = ""
    host: str = ""
    address: str = ""
    wanted: int = 0


class TimeKeeper:
    """The keeper of `time`, by the clocks of other processes.

    `serving` returns whether this process serves, so that its time is in use.
    """

    def __init__(
        self,
        time: Time,
        voter: Voter,
        watcher: ViewWatcher,
        nodes: Nodes,
        serving: Callable[[], bool] = lambda: False,
    ) -> None:
        self._time = time
        self._voter = voter
        self._watcher = watcher
        self._nodes = nodes
        self._serving = serving
        self._asked = 0
        self._said: dict[str, float] = {}

    async def run(self) -> None:
        """Ask other processes for the time, and follow it, until cancelled."""
        while True:
            try:
                await self._ask_all()
            except Exception:
                log.exception("a bug in keeping the time")
            self._asked += 1
            await asyncio.sleep(
                ASK_S * random.uniform(0.8, 1.2) if self._time.started else ASK_SOON_S
            )

    async def _ask_all(self) -> None:
        """Ask one process of each host, another one each time, and correct the clock."""
        voter, clock = self._voter, self._time.clock
        members = self._watcher.view.members
        by_host: dict[str, list[Member]] = {}
        for member in members.values():
            if member.id != voter.id:
                by_host.setdefault(member.host, []).append(member)
        self._nodes.forget_others(members.values())
        await asyncio.gather(
            *(self._ask(there[self._asked % len(there)]) for there in by_host.values())
        )
        hosts = {*by_host, voter.host} - {""}
        began = clock.started
        wanted = hosts_wanted(members.values(), hosts, voter.address, voter.wanted)
        clock.correct(voter.host, hosts, wanted, wall_ms(), self._serving(), boottime())
        if clock.started and not began:
            now = datetime.fromtimestamp(self._time.now_ms() / 1000, UTC)
            log.info("the cluster's time is %s", now.isoformat(timespec="milliseconds"))
        self._tell_differing(clock)

    def _tell_differing(self, clock: Clock) -> None:
        differing = clock.differing(boottime())
        for name, off in differing.items():
            if name not in self._said:
                log.warning(
                    "the clock of host %s differs from the cluster's time by %.0f s",
                    name,
                    off / 1000,
                )
        self._said = differing

    async def _ask(self, member: Member) -> None:
        began = boottime()
        try:
            told = await self._nodes.ask(
                member, "Clock", peer_pb2.ClockRequest(), peer_pb2.ClockResponse, _TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            log.debug("%s does not answer with its time: %s", member.id, error.details())
            return
        ended = boottime()
        if ended - began > _TIMEOUT_S:
            return  # this process was paused, so the moment of the answer is unknown
        if not (0 <= told.wall_ms < _LAST_MS and 0 <= told.cluster_ms < _LAST_MS):
            log.warning(
                "%s answers with impossible times (ms since 1970): wall clock %s, cluster time %s",
                member.id,
                told.wall_ms,
                told.cluster_ms,
            )
            return
        half = (ended - began) / 2 * 1000
        self._time.clock.heard(
            member.host,
            told.wall_ms + half,
            told.cluster_ms + half if told.started else None,
            ended,
        )


def hosts_wanted(
    members: Iterable[Member], hosts: Collection[str], address: str, wanted: int
) -> int:
    """Return how many hosts there should be at least, when there should be `wanted` nodes. Pure.

    Nodes that share a host reduce the number. Nodes are told apart by their addresses: a node whose
    disk was replaced is a new member at the old address. The old member may still be in the view,
    and the two must not count as two nodes on one host.
    """
    places = {*(member.address for member in members), address} - {""}
    return max(0, wanted - (len(places) - len(hosts)))


async def tell_time(time: Time) -> peer_pb2.ClockResponse:
    """Return this process's clocks, for another process that asks."""
    return peer_pb2.ClockResponse(wall_ms=wall_ms(), cluster_ms=time.now_ms(), started=time.started)
