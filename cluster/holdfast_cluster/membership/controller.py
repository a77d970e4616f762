"""The controller's shell: holds the controller key while its node is a member, and applies what
`plan` says."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter

import msgspec

from holdfast_cluster.membership.access import ClusterAccess
from holdfast_cluster.membership.etcd import TXN_OPS_MAX, EtcdError, absent, put, unchanged
from holdfast_cluster.membership.member import Membership
from holdfast_cluster.placement.model import FEATURES, Member, View, encode
from holdfast_cluster.placement.plan import (
    REASONS,
    Transition,
    more_than_a_third,
    plan,
    too_many_away,
)

log = logging.getLogger(__name__)

_RETRY_S = 0.2
_INTERVAL_S = 0.1
WITNESSES_S = 2.0
"""How long after a listing no assignment is changed: whoever knows more than an etcd that went back
lists it, too, and halts it."""
HOLD_MOVES_S = 600.0
"""How long members are waited for, and no data moves, when more than a third has vanished
at once."""
AT_ONCE_S = 10.0
"""Members that vanish within this time have vanished at once."""


class Expected:
    """Who is waited for.

    `repair_after_s`: how long a member that is not there is expected back. `at_once_s`: see
    AT_ONCE_S.
    """

    def __init__(self, repair_after_s: float, at_once_s: float = AT_ONCE_S) -> None:
        self._repair_after_s = repair_after_s
        self._at_once_s = at_once_s
        self._seen: dict[str, tuple[Member, float]] = {}
        self.superseded: frozenset[str] = frozenset()
        """Absent nodes whose place another one has taken, with their name at their address: their
        disks were replaced."""
        self.holding = False
        """Whether more than a third has vanished at once, and is waited for for long."""

    def look(self, view: View, now: float) -> dict[str, Member]:
        """The members that were there a moment ago, at `now` in seconds; when more than a third
        vanished at once, for long."""
        for name, member in view.members.items():
            self._seen[name] = member, now
        self._forget_superseded(view)
        for name, (member, at) in list(self._seen.items()):
            # Who stopped in order was not taken away by a network or a mistake.
            patience = (
                self._repair_after_s
                if member.state == "stopping"
                else max(self._repair_after_s, HOLD_MOVES_S)
            )
            if now - at > patience or (name not in view.members and name in view.drains):
                del self._seen[name]
        held = self._vanished_at_once(view)
        self.holding = bool(held)
        return {
            name: member
            for name, (member, at) in self._seen.items()
            if name in held or now - at <= self._repair_after_s
        }

    def _forget_superseded(self, view: View) -> None:
        self.superseded -= view.members.keys()
        places = {(member.name, member.address) for member in view.members.values()}
        for name, (member, _) in list(self._seen.items()):
            if name not in view.members and (member.name, member.address) in places:
                del self._seen[name]
                self.superseded |= {name}

    def _vanished_at_once(self, view: View) -> set[str]:
        """The absent members of every moment in which more than a third of those that were there
        vanished."""
        away = sorted(
            (at, name) for name, (_, at) in self._seen.items() if name not in view.members
        )
        held: set[str] = set()
        for first, (began, _) in enumerate(away):
            group = [name for at, name in away[first:] if at - began <= self._at_once_s]
            if more_than_a_third(len(group), len(view.members) + len(away) - first):
                held.update(group)
        return held


class Controller:
    """Runs in every node; at most one acts. Two that act at once harm nothing: every swap names the
    assignment it was planned from.

    `repair_after_s`: how long a member that vanished is expected back, before its copies are made
    elsewhere.
    """

    def __init__(
        self,
        cluster: ClusterAccess,
        membership: Membership,
        members_min: int,
        repair_after_s: float,
        features: tuple[str, ...] = FEATURES,
        at_once_s: float = AT_ONCE_S,
    ) -> None:
        self._features = features
        self._etcd = cluster.etcd
        self._keys = cluster.keys
        self._feed = cluster.feed
        self._membership = membership
        self._cluster_id = cluster.settings.id
        self._members_min = members_min
        self._repair_after_s = repair_after_s
        # kept by every node, so that whoever becomes the controller knows
        self._expected = Expected(repair_after_s, at_once_s)
        self._done: object = None
        self.transitions: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
        """Swaps of assignments that this node has made, by reason."""
        self.notice = ""
        """What the controller wants operators to know; empty on every other node, and when all is
        well."""

    @property
    def is_acting(self) -> bool:
        """Whether this node is the controller, as far as it knows."""
        me = self._membership.member
        return me is not None and self._feed.view.controller == me.id

    async def run(self) -> None:
        """Stand for election whenever there is no controller, and act while being it. Ends by
        cancellation."""
        while True:
            seen = self._feed.view
            try:
                async with asyncio.timeout(_INTERVAL_S):
                    await self._feed.until(lambda view, seen=seen: view is not seen)  # type: ignore[misc]
            except TimeoutError:
                # what is decided also changes with time, and with being a member: look again now
                # and then
                pass
            view = self._feed.view
            expected = self._expected.look(view, time.monotonic())
            if self._feed.foreign or self._is_new(view):
                continue  # nothing of what etcd says is acted on
            what = view, self._membership.member, frozenset(expected), self._expected.superseded
            if what == self._done:
                continue
            try:
                await self._act(view, expected)
                self._done = what
            except EtcdError as error:
                log.warning("controller: %s", error)
                await asyncio.sleep(_RETRY_S)

    def _is_new(self, view: View) -> bool:
        """Whether etcd was listed so lately that a witness may yet halt it. (A single copy has no
        other that could be chosen.)"""
        replicated = view.settings is not None and view.settings.replication > 1
        return (
            replicated
            and bool(view.assignments)
            and time.monotonic() - self._feed.listed_at < WITNESSES_S
        )

    async def _act(self, view: View, expected: dict[str, Member]) -> None:
        me = self._membership.member
        if (
            me is None
            or view.settings is None
            or view.controller != me.id
            or not too_many_away(view, expected)
        ):
            self.notice = ""
        if me is None or view.settings is None or view.settings.id != self._cluster_id:
            return
        if not view.controller:
            key = self._keys.controller
            if await self._etcd.txn(
                [absent(key)], [put(key, me.id.encode(), self._membership.lease_id)]
            ):
                log.info("became the controller")
        elif view.controller == me.id:
            if too_many_away(view, expected):
                away = sorted(name for name in expected if name not in view.members)
                patience_s = (
                    max(self._repair_after_s, HOLD_MOVES_S)
                    if self._expected.holding
                    else self._repair_after_s
                )
                notice = (
                    f"{len(away)} of {len(expected)} members are away ({', '.join(away)}):"
                    " fail-over goes on, no data is moved until they are back or"
                    f" {_duration(patience_s)} have passed"
                )
                if notice != self.notice:
                    log.error("%s", notice)
                self.notice = notice
            await self._turn_on_features(view, expected)
            await self._apply(
                view, plan(view, self._members_min, expected, self._expected.superseded)
            )

    async def _turn_on_features(self, view: View, expected: dict[str, Member]) -> None:
        """Write the features that every member has announced into the settings. Nobody turns one
        off again."""
        assert view.settings is not None
        members = {**expected, **view.members}.values()
        common = (
            set(self._features).intersection(*(member.features for member in members))
            if members
            else set()
        )
        if new := common - set(view.settings.features):
            to = msgspec.structs.replace(
                view.settings, features=tuple(sorted({*view.settings.features, *new}))
            )
            key = self._keys.settings
            if await self._etcd.txn([unchanged(key, view.settings_raw)], [put(key, encode(to))]):
                log.warning(
                    "every member knows %s: the cluster uses it from now on", ", ".join(sorted(new))
                )

    async def _apply(self, view: View, transitions: list[Transition]) -> None:
        if not transitions:
            return
        done = 0
        for i in range(0, len(transitions), TXN_OPS_MAX):
            batch = transitions[i : i + TXN_OPS_MAX]
            if await self._swap(view, batch):
                done += len(batch)
            else:  # one of them was planned from an old view: the others need not wait for it
                done += sum([await self._swap(view, [one]) for one in batch])
        reasons = Counter(transition.why for transition in transitions)
        log.info(
            "assignments: %d of %d swapped (%s)",
            done,
            len(transitions),
            ", ".join(f"{n} {why}" for why, n in reasons.items()),
        )

    async def _swap(self, view: View, batch: list[Transition]) -> int:
        """Do what was planned from `view`, if nothing of it has changed."""
        old = {one.shard: view.assignments.get(one.shard) for one in batch}
        done = await self._etcd.txn(
            [
                unchanged(self._keys.shard(shard), None if now is None else now.raw)
                for shard, now in old.items()
            ],
            [put(self._keys.shard(one.shard), encode(one.to.stamped())) for one in batch],
        )
        if done:
            self.transitions.update(one.why for one in batch)
        return done


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
