"""The controller's shell: it holds the controller key while its node is a member, and applies the
transitions that `plan` returns."""

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
"""How long after a listing the controller changes no assignment. If etcd went back, a witness (see
lineage.py) lists it in that time, and halts it."""
HOLD_MOVES_S = 600.0
"""How long the controller waits, and moves no data, when more than a third of the members has
vanished at once."""
AT_ONCE_S = 10.0
"""Members vanish at once when they vanish within this time."""


class Expected:
    """The members that are expected back.

    `repair_after_s`: how long an absent member is expected back. `at_once_s`: see AT_ONCE_S.
    """

    def __init__(self, repair_after_s: float, at_once_s: float = AT_ONCE_S) -> None:
        self._repair_after_s = repair_after_s
        self._at_once_s = at_once_s
        self._seen: dict[str, tuple[Member, float]] = {}
        self.superseded: frozenset[str] = frozenset()
        """Absent nodes that another node has replaced, with the same name at the same address:
        their disks were replaced."""
        self.holding = False
        """Whether more than a third has vanished at once, so that it is expected for longer."""

    def look(self, view: View, now: float) -> dict[str, Member]:
        """Return the members of the view, and the absent ones that are expected back.

        `now` is in seconds. Members that vanished at once with more than a third of the members are
        expected for HOLD_MOVES_S, others for `repair_after_s`.
        """
        for name, member in view.members.items():
            self._seen[name] = member, now
        self._forget_superseded(view)
        for name, (member, at) in list(self._seen.items()):
            # A member that stopped in order was not taken away by a network or a mistake.
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
        """Return the absent members that vanished at once with more than a third of the members."""
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
    """The controller, which runs in every node. The one whose node holds the controller key acts.

    If two act at once, they do no harm: every swap compares the assignment that it was planned
    from. `repair_after_s`: how long a member that vanished is expected back. After that its copies
    are made on other nodes.
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
        self._watcher = cluster.watcher
        self._membership = membership
        self._cluster_id = cluster.settings.id
        self._members_min = members_min
        self._repair_after_s = repair_after_s
        # Every node keeps it, so that the node that becomes the controller has it already.
        self._expected = Expected(repair_after_s, at_once_s)
        self._done: object = None
        self.transitions: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
        """Swaps of assignments that this node has made, by reason."""
        self.notice = ""
        """The controller's message to operators; empty on other nodes, and when all is well."""

    @property
    def is_acting(self) -> bool:
        """Whether this node is the controller, by its newest view."""
        me = self._membership.member
        return me is not None and self._watcher.view.controller == me.id

    async def run(self) -> None:
        """Stand for election when there is no controller, and act as the controller, until
        cancelled."""
        while True:
            seen = self._watcher.view
            try:
                async with asyncio.timeout(_INTERVAL_S):
                    await self._watcher.until(lambda view, seen=seen: view is not seen)  # type: ignore[misc]
            except TimeoutError:
                # The plan also depends on the time, and on this node's membership.
                pass
            view = self._watcher.view
            expected = self._expected.look(view, time.monotonic())
            if self._watcher.foreign or self._is_new(view):
                continue  # an etcd that is foreign, or may still be halted, is not acted on
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
        """Return whether etcd was listed so lately that a witness may yet halt it.

        With single copies there is no other copy to choose wrongly, so the answer is False.
        """
        replicated = view.settings is not None and view.settings.replication > 1
        return (
            replicated
            and bool(view.assignments)
            and time.monotonic() - self._watcher.listed_at < WITNESSES_S
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
        """Write the features that every member has announced into the settings, for ever."""
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
            else:  # one was planned from an old view: swap the others without it
                done += sum([await self._swap(view, [one]) for one in batch])
        reasons = Counter(transition.why for transition in transitions)
        log.info(
            "assignments: %d of %d swapped (%s)",
            done,
            len(transitions),
            ", ".join(f"{n} {why}" for why, n in reasons.items()),
        )

    async def _swap(self, view: View, batch: list[Transition]) -> int:
        """Swap the assignments of a batch in one transaction, if none has changed since `view`.

        Return whether that happened.
        """
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
