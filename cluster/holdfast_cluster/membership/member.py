"""Being a member: agreeing on the settings, registering under a lease, joining again when the lease
was lost.

A node joins with an *incarnation*: the start counter of its data directory, raised (fsync) before
etcd hears of it. etcd keeps the highest one that joined, so a directory that was restored from a
copy, or copied to a second machine, is behind and is refused. Every join, also one within a
process, is a new incarnation: what was assigned to an earlier one is not served.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
import uuid
from collections.abc import Callable
from typing import Protocol

import msgspec

from holdfast_cluster.membership.etcd import (
    EtcdError,
    EtcdUnavailable,
    EtcdUnknown,
    Lease,
    put,
    unchanged,
)
from holdfast_cluster.membership.guarded import EtcdForeign, GuardedEtcd
from holdfast_cluster.placement.model import (
    ClusterSettings,
    Keys,
    Lineage,
    Member,
    Unreadable,
    decode,
    encode,
    encode_kinds,
)

log = logging.getLogger(__name__)

_RETRY_S = 0.5
_FOLLOW_S = 2.0
_SAY_EVERY = 20  # tries: what is waited for is logged every 10 s


class Refused(Exception):
    """The cluster does not take this process; the message says why. It must not try again by
    itself."""


class Directory(Protocol):
    """The data directory, as far as membership is concerned."""

    def next_incarnation(self) -> int:
        """Raise the start counter by one, on disk before this returns."""


def refuse_unknown_features(settings: ClusterSettings) -> None:
    """Raises Refused when the cluster uses a feature that this program does not know."""
    if unknown := settings.unknown_features():
        raise Refused(
            f"the cluster uses {', '.join(unknown)}, which this version does not know: start a"
            " newer version"
        )


async def agree_on_settings(
    etcd: GuardedEtcd,
    keys: Keys,
    mine: ClusterSettings | None,
    wanted: dict[str, int],
    cluster: str = "",
) -> ClusterSettings:
    """The cluster's settings, written to etcd first if `mine` is given and the cluster is not
    formed yet.

    `cluster`: the id of the cluster that this process's data is of. With data there is nothing to
    form: etcd was emptied then. `wanted`: the settings that this process was told explicitly.
    Raises Refused, with both values, when they differ from the cluster's, or when the cluster
    hashes in a way, or uses a feature, that this version does not know. Waits while etcd is away.
    """
    for attempt in itertools.count():
        level = logging.WARNING if attempt % _SAY_EVERY == 0 else logging.DEBUG
        try:
            row = await etcd.get(keys.settings)
            lineage = await etcd.get(keys.lineage)
            if row is not None:
                # formed by a version that kept no lineage
                if lineage is None and mine is not None and not cluster:
                    first = Lineage(nonce=secrets.randbits(53))
                    await etcd.begin([unchanged(keys.settings, row.value)], [], None, first)
                break
            if cluster or lineage is not None:
                log.log(
                    logging.CRITICAL if attempt % _SAY_EVERY == 0 else logging.DEBUG,
                    "etcd knows no cluster at %s, but there was one%s: etcd was emptied, or this"
                    " process is to use another etcd or --cluster. No other one is formed. Put"
                    " etcd's data back, or run `holdfast adopt-etcd`; waiting for that",
                    keys.prefix,
                    f", {cluster}, of which this is a node" if cluster else "",
                )
            elif mine is not None:
                mine.validate()
                formed = msgspec.structs.replace(mine, id=uuid.uuid4().hex)
                if await etcd.form(formed):
                    log.info("formed the cluster: %s", formed)
                continue
            else:
                log.log(
                    level,
                    "the cluster at %s is not formed yet: waiting for its first node",
                    keys.prefix,
                )
        except (EtcdUnavailable, EtcdUnknown) as error:
            log.log(level, "etcd does not answer (%s); still trying", error)
        await asyncio.sleep(_RETRY_S)
    assert row is not None
    try:
        theirs = decode(row.value, ClusterSettings)
    except Unreadable as error:
        raise Refused(
            f"the cluster's settings at {keys.settings} in etcd cannot be read: {error}"
        ) from None
    refuse_unknown_features(theirs)
    asked = msgspec.structs.replace(theirs, hash_version=ClusterSettings().hash_version, **wanted)
    if differences := asked.differences(theirs):
        raise Refused(
            f"this process and the cluster disagree on {'; '.join(differences)} (the cluster's were"
            " fixed at formation)"
        )
    return theirs


class MembershipListener:
    """What is told of a membership."""

    def joined(self, member: Member) -> None:
        """The node is a member, under a new incarnation."""

    def lost(self) -> None:
        """The node is no member any more."""

    def renewed(self, expires_at: float) -> None:
        """The lease ends then, on the membership's clock."""


class Membership:
    """Keeps one node a member. `member` is what is registered now; None while it is not."""

    def __init__(
        self,
        etcd: GuardedEtcd,
        keys: Keys,
        member: Member,
        directory: Directory,
        cluster_id: str,
        lease_ttl_s: int,
        clock: Callable[[], float],
        listener: MembershipListener | None = None,
    ) -> None:
        self._etcd = etcd
        self._keys = keys
        self._template = member
        self._directory = directory
        self._cluster_id = cluster_id
        self._listener = listener or MembershipListener()
        self._lease = Lease(etcd, lease_ttl_s, clock, self._listener.renewed)
        self.member: Member | None = None

    @property
    def address(self) -> str:
        """Where others reach the member."""
        return self._template.address

    @property
    def state(self) -> str:
        """The member's state, as etcd knows it, or as the next join will tell it."""
        return (self.member or self._template).state

    @property
    def lease_id(self) -> int:
        """The lease that the member's keys hang on."""
        return self._lease.id

    @property
    def lease_expires_at(self) -> float:
        """When that lease has ended at the latest, on this membership's clock."""
        return self._lease.expires_at

    async def join(self) -> None:
        """Register under a new incarnation; waits while etcd is away, or foreign. Raises Refused
        for a directory that is behind."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FOLLOW_S):
                await self._etcd.followed()
        for attempt in itertools.count():
            try:
                if await self._register():
                    return
            except EtcdError as error:
                log.log(
                    logging.WARNING if attempt % _SAY_EVERY == 0 else logging.DEBUG,
                    "cannot join: %s; still trying",
                    error,
                )
                await asyncio.sleep(_RETRY_S)

    async def run(self) -> None:
        """Keep the lease; when it was lost, say so, and join again. Ends by cancellation or
        Refused."""
        while True:
            await self._lease.keep()
            if await self._waited_for_lineage() and await self._lease.renew():
                continue  # the data that was put back has the lease
            self._lose("the lease ended")
            await self.join()

    async def _waited_for_lineage(self) -> bool:
        """Wait until etcd has the lineage that is followed: whether that took any time. Another one
        says nothing of our lease."""
        for attempt in itertools.count():
            try:
                await self._etcd.verify()
            except EtcdForeign as error:
                if attempt == 0:
                    log.warning(
                        "the lease is gone, but etcd is not to be believed (%s): still a member",
                        error,
                    )
            except EtcdError as error:
                log.debug("cannot tell whether the lease ended: %s", error)
            else:
                return attempt > 0
            await asyncio.sleep(_RETRY_S)
        raise AssertionError("unreachable")

    async def announce(self, state: str) -> None:
        """Tell the cluster that this member's state is another one now. Raises EtcdError when it
        cannot be told."""
        # also if it has to join again
        self._template = msgspec.structs.replace(self._template, state=state)
        me = self.member
        if me is None:
            return
        key = self._keys.member(me.id)
        row = await self._etcd.get(key)
        try:
            if row is None or decode(row.value, Member).incarnation != me.incarnation:
                return
        except Unreadable as error:
            raise EtcdError(f"what is under {key} cannot be read: {error}") from None
        changed = msgspec.structs.replace(me, state=state)
        if await self._etcd.txn(
            [unchanged(key, row.value)], [put(key, encode(changed), self._lease.id)]
        ):
            self.member = changed

    async def leave(self) -> None:
        """Deregister, as far as etcd is there to hear it."""
        self.member = None
        if self._lease.id:
            try:
                await self._etcd.revoke(self._lease.id)
            except EtcdError as error:
                log.warning("could not deregister (%s); the lease will end by itself", error)

    def _lose(self, why: str) -> None:
        log.warning("no longer a member: %s; joining again", why)
        self.member = None
        self._listener.lost()

    async def _register(self) -> bool:
        node = self._template.id
        await self._etcd.verify()  # no start is counted while nobody can join
        settings = await self._etcd.get(self._keys.settings)
        counter = await self._etcd.get(self._keys.incarnation(node))
        current = await self._etcd.get(self._keys.member(node))
        try:
            theirs = None if settings is None else decode(settings.value, ClusterSettings)
            starts = 0 if counter is None else int(counter.value)
        except ValueError as error:
            raise EtcdError(
                f"etcd has what cannot be read, under {self._keys.settings} or the start counter:"
                f" {error}"
            ) from None
        if settings is None or theirs is None or theirs.id != self._cluster_id:
            raise EtcdError(f"etcd does not describe cluster {self._cluster_id} any more")
        refuse_unknown_features(theirs)
        incarnation = self._directory.next_incarnation()
        if starts >= incarnation:
            raise Refused(
                f"the data directory of node {node} is at start {incarnation}, but the cluster has"
                f" seen start {starts} of it: it was restored from a copy, or is in use elsewhere"
                " under the same id. Its data may be old, so it is not served. Join with an empty"
                " directory, as a new node"
            )
        await self._lease.grant()
        member = msgspec.structs.replace(self._template, incarnation=incarnation)
        # no feature may come into use while this node joins
        done = await self._etcd.txn(
            [
                unchanged(self._keys.settings, settings.value),
                unchanged(self._keys.incarnation(node), counter.value if counter else None),
                unchanged(self._keys.member(node), current.value if current else None),
            ],
            [
                put(self._keys.incarnation(node), str(incarnation).encode()),
                put(self._keys.member(node), encode(member), self._lease.id),
                put(self._keys.kinds(node), encode_kinds(member.kinds)),
            ],
        )
        if done:
            log.info("joined as %s, incarnation %d", node, incarnation)
            self.member = member
            self._listener.renewed(self._lease.expires_at)
            self._listener.joined(member)
        return bool(done)
