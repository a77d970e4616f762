"""Keeps the cluster's time in a process: asks the others what their clocks show, and follows
(`clocks/cluster_time.py`)."""

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
"""How often the others are asked before the own clock has started."""
_TIMEOUT_S = 1.0  # an answer that took longer would tell too little
_LAST_MS = 1 << 47  # the year 6429


@dataclass(frozen=True, slots=True)
class Voter:
    """A node, as far as it has a vote. `wanted`: how many nodes there should be at least. A gateway
    has no vote."""

    id: str = ""
    host: str = ""
    address: str = ""
    wanted: int = 0


class TimeKeeper:
    """Keeps `time` by the others' clocks. `serving`: whether anybody relies on this
    process's time."""

    def __init__(
        self,
        time: Time,
        voter: Voter,
        feed: ViewWatcher,
        nodes: Nodes,
        serving: Callable[[], bool] = lambda: False,
    ) -> None:
        self._time = time
        self._voter = voter
        self._feed = feed
        self._nodes = nodes
        self._serving = serving
        self._asked = 0
        self._said: dict[str, float] = {}

    async def run(self) -> None:
        """Ask the others what time it is, and follow, until cancelled."""
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
        """Ask a process of each host, the next one each time, and follow."""
        voter, clock = self._voter, self._time.clock
        members = self._feed.view.members
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
            log.debug("%s does not tell what time it is: %s", member.id, error.details())
            return
        ended = boottime()
        if ended - began > _TIMEOUT_S:
            return  # this process stood still meanwhile: nobody knows when that was
        if not (0 <= told.wall_ms < _LAST_MS and 0 <= told.cluster_ms < _LAST_MS):
            log.warning(
                "%s says that it is %s, %s ms after 1970", member.id, told.wall_ms, told.cluster_ms
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
    """How many hosts there should be at least, when there should be so many nodes: fewer by those
    that share a host. Pure.

    Nodes are told apart by their addresses. One whose disk was replaced is a new member where the
    old one was, which may be in the view still: the two are no two nodes that share a host.
    """
    places = {*(member.address for member in members), address} - {""}
    return max(0, wanted - (len(places) - len(hosts)))


async def tell_time(time: Time) -> peer_pb2.ClockResponse:
    """The answer to those who ask."""
    return peer_pb2.ClockResponse(wall_ms=wall_ms(), cluster_ms=time.now_ms(), started=time.started)
