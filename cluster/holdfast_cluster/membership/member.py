"""Membership of a node: agreement on the settings, registration under a lease, joining again.

A node joins with an *incarnation*: the start counter of its data directory. The node raises the
counter on disk (fsync) before it tells etcd. etcd keeps the highest incarnation that joined. So a
directory that was restored from a copy, or copied to a second machine, is behind, and is refused.
Every join is a new incarnation, also a second join of the same process. A node does not serve
shards that were assigned to an earlier incarnation.
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
_SAY_EVERY = 20  # tries: the reason to wait is logged every 10 s


class NotAccepted(Exception):
    """The cluster does not accept this process; the message says why.

    The process must not try again by itself.
    """


class Directory(Protocol):
    """The part of the data directory that membership needs."""

    def next_incarnation(self) -> int:
        """Raise the start counter by one, and return it. The counter is on disk by then."""


def refuse_unknown_features(settings: ClusterSettings) -> None:
    """Raise NotAccepted when the cluster uses a feature that this program does not know."""
    if unknown := settings.unknown_features():
        raise NotAccepted(
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
    """Return the cluster's settings. Form the cluster first if it is not formed and `mine` is
    given.

    `cluster`: the id of the cluster that this process's data belongs to. A process with data forms
    no cluster: if etcd knows none, etcd was emptied. `wanted`: the settings that this process was
    given explicitly. Wait while etcd is away.

    Raise NotAccepted, with both values, when `wanted` differs from the cluster's settings. Raise
    it, too, when the cluster uses a hash version or a feature that this version does not know.
    """
    for attempt in itertools.count():
        level = logging.WARNING if attempt % _SAY_EVERY == 0 else logging.DEBUG
        try:
            row = await etcd.get(keys.settings)
            lineage = await etcd.get(keys.lineage)
            if row is not None:
                # The cluster was formed by a version that kept no lineage.
                if lineage is None and mine is not None and not cluster:
                    first = Lineage(nonce=secrets.randbits(53))
                    await etcd.begin([unchanged(keys.settings, row.value)], [], None, first)
                break
            if cluster or lineage is not None:
                log.log(
                    logging.CRITICAL if attempt % _SAY_EVERY == 0 else logging.DEBUG,
                    "etcd knows no cluster at %s, but there was one%s: etcd was emptied, or this"
                    " process should use another etcd or --cluster. It forms no new cluster, and"
                    " waits. Put etcd's data back, or run `holdfast adopt-etcd`",
                    keys.prefix,
                    f" (this node belongs to cluster {cluster})" if cluster else "",
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
        raise NotAccepted(
            f"the cluster's settings at {keys.settings} in etcd cannot be read: {error}"
        ) from None
    refuse_unknown_features(theirs)
    asked = msgspec.structs.replace(theirs, hash_version=ClusterSettings().hash_version, **wanted)
    if differences := asked.differences(theirs):
        raise NotAccepted(
            f"this process and the cluster disagree on {'; '.join(differences)} (the cluster's were"
            " fixed at formation)"
        )
    return theirs


class MembershipListener:
    """The receiver of a membership's events."""

    def joined(self, member: Member) -> None:
        """Learn that the node is a member, under a new incarnation."""

    def lost(self) -> None:
        """Learn that the node is no member any more."""

    def renewed(self, expires_at: float) -> None:
        """Learn when the lease ends, in seconds of the membership's clock."""


class Membership:
    """The membership of one node. `member` is the registered member; None while there is none."""

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
        """The address at which other processes reach the member."""
        return self._template.address

    @property
    def state(self) -> str:
        """The member's state in etcd; while it is no member, the state that its next join tells."""
        return (self.member or self._template).state

    @property
    def lease_id(self) -> int:
        """The id of the lease to which the member's keys in etcd are attached."""
        return self._lease.id

    @property
    def lease_expires_at(self) -> float:
        """The latest end of that lease, in seconds of this membership's clock."""
        return self._lease.expires_at

    async def join(self) -> None:
        """Register under a new incarnation. Wait while etcd is away or foreign.

        Raise NotAccepted when the data directory is behind, or when the cluster uses an unknown
        feature.
        """
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
        """Keep the lease; when it was lost, tell the listener, and join again. Run until cancelled.

        Raise NotAccepted as `join` does.
        """
        while True:
            await self._lease.keep()
            if await self._waited_for_lineage() and await self._lease.renew():
                continue  # etcd's data was put back, and the lease with it
            self._lose("the lease ended")
            await self.join()

    async def _waited_for_lineage(self) -> bool:
        """Wait until etcd has the lineage that this process follows. Return whether it had to wait.

        An etcd of another lineage proves nothing about this node's lease.
        """
        for attempt in itertools.count():
            try:
                await self._etcd.verify()
            except EtcdForeign as error:
                if attempt == 0:
                    log.warning(
                        "the lease is gone, but etcd cannot be believed (%s): still a member",
                        error,
                    )
            except EtcdError as error:
                log.debug("cannot tell whether the lease ended: %s", error)
            else:
                return attempt > 0
            await asyncio.sleep(_RETRY_S)
        raise AssertionError("unreachable")

    async def announce(self, state: str) -> None:
        """Write this member's new state to etcd. Raise EtcdError when that fails.

        If the node is no member now, its next join tells the state.
        """
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
            raise EtcdError(f"the value of {key} cannot be read: {error}") from None
        changed = msgspec.structs.replace(me, state=state)
        if await self._etcd.txn(
            [unchanged(key, row.value)], [put(key, encode(changed), self._lease.id)]
        ):
            self.member = changed

    async def leave(self) -> None:
        """End the membership. If etcd does not answer, the lease ends by itself."""
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
        await self._etcd.verify()  # count no start while no node can join
        settings = await self._etcd.get(self._keys.settings)
        counter = await self._etcd.get(self._keys.incarnation(node))
        current = await self._etcd.get(self._keys.member(node))
        try:
            theirs = None if settings is None else decode(settings.value, ClusterSettings)
            starts = 0 if counter is None else int(counter.value)
        except ValueError as error:
            raise EtcdError(
                f"the value of {self._keys.settings}, or of the start counter, cannot be read:"
                f" {error}"
            ) from None
        if settings is None or theirs is None or theirs.id != self._cluster_id:
            raise EtcdError(f"etcd does not describe cluster {self._cluster_id} any more")
        refuse_unknown_features(theirs)
        incarnation = self._directory.next_incarnation()
        if starts >= incarnation:
            raise NotAccepted(
                f"the data directory of node {node} is at start {incarnation}, but the cluster has"
                f" seen start {starts} of it: it was restored from a copy, or is in use elsewhere"
                " under the same id. Its data may be old, so the node does not serve it. Join with"
                " an empty directory, as a new node"
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
