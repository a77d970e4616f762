"""What is wrong with a cluster, in the words of operators."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from holdfast.v1 import admin_pb2
from holdfast_cluster.clocks.cluster_time import FAR_MS
from holdfast_cluster.membership.etcd import EtcdError
from holdfast_cluster.membership.guarded import GuardedEtcd
from holdfast_cluster.membership.view_watcher import ViewWatcher
from holdfast_cluster.placement.model import Member, View

Stats = Mapping[str, admin_pb2.StatsResponse]
"""The answers of the nodes that answered."""


def problems(view: View, stats: Stats, owned: Counter[str]) -> list[admin_pb2.Problem]:
    """Return what is wrong, by this gateway's view and the nodes' answers.

    `owned`: how many shards each node owns.
    """
    return [
        *_formation(view),
        *_nodes(view, stats),
        *_kinds(view),
        *_copies(view),
        *_serving(view, stats, owned),
    ]


async def etcd_problems(watcher: ViewWatcher, etcd: GuardedEtcd) -> list[admin_pb2.Problem]:
    """Return what is wrong with etcd, or with what it holds."""
    unreadable = [
        _problem(
            f"etcd's key {key}",
            f"its value cannot be read ({why}): the value before it stays in force",
        )
        for key, why in sorted(watcher.view.unreadable.items())
    ]
    return unreadable + await _etcd_itself(watcher, etcd)


async def _etcd_itself(watcher: ViewWatcher, etcd: GuardedEtcd) -> list[admin_pb2.Problem]:
    if watcher.foreign:
        return [_problem("etcd", watcher.foreign)]
    if watcher.disconnected_s:
        why = (
            f"this gateway's watch has been down for {watcher.disconnected_s:.0f} s;"
            " calls go on with known routes. If a node dies meanwhile, shards with a copy there"
            " take no writes until etcd is back"
        )
        return [_problem("etcd", why)]
    try:
        alarms = await etcd.alarms()
    except EtcdError as error:
        return [
            admin_pb2.Problem(
                what="etcd",
                why=f"it does not answer whether it takes writes: {error}",
                minor=True,
            )
        ]
    if not alarms:
        return []
    why = (
        f"it takes no writes (alarm {', '.join(sorted(alarms))}); calls go on. No node joins,"
        " and no shard fails over or moves. If a node dies, shards with a copy there take no"
        " writes. Give etcd space again, and run `etcdctl alarm disarm`"
    )
    return [_problem("etcd", why)]


def _formation(view: View) -> Iterator[admin_pb2.Problem]:
    """Yield what keeps the cluster from being formed."""
    assert view.settings is not None
    missing = view.settings.shards - len(view.assignments)
    if missing:
        yield _problem(
            f"{missing} shards",
            "not assigned yet: the controller waits for enough nodes, or there is none",
        )
    if not view.controller:
        yield _problem("controller", "no node is the controller at the moment")


def _nodes(view: View, stats: Stats) -> Iterator[admin_pb2.Problem]:
    """Yield what is wrong with single nodes."""
    for node in sorted(set(view.members) - set(stats)):
        yield _problem(f"node {node}", "it is a member but does not answer")
    for node in sorted(view.members):
        if view.state_of(node) == "full":
            yield _problem(
                f"node {node}",
                "its disk is full: it gets no copies, and hands its shards to other nodes; a"
                " shard that no other node can own takes no writes",
            )
    for node, by in _found_slow(stats):
        if node in by:
            why = "its disk is slow: it hands its shards to other nodes that have copies of them"
        else:
            why = (
                f"it is slow: nodes {', '.join(by)} go on without its copies, until it keeps up"
                " again"
            )
        yield _problem(f"node {node}", why)
    for node, answer in sorted(stats.items()):
        if abs(answer.clock_ahead_s) * 1000 > FAR_MS:
            off = (
                f"{abs(answer.clock_ahead_s):.0f} s"
                f" {'ahead of' if answer.clock_ahead_s > 0 else 'behind'} the cluster's time"
            )
            yield _problem(
                f"node {node}",
                f"its machine's clock is {off}: alarms and requests do not use this clock",
                minor=True,
            )
    for answer in stats.values():
        if answer.notice:
            yield _problem("members", answer.notice)


def _kinds(view: View) -> Iterator[admin_pb2.Problem]:
    """Yield which nodes lack kinds."""
    kinds = {kind for member in view.members.values() for kind in member.kinds}
    for node, member in sorted(view.members.items()):
        if member.missing(kinds):
            why, waiting = what_lacks(view, member, kinds)
            yield _problem(f"node {node}", why, minor=not waiting)


def _copies(view: View) -> Iterator[admin_pb2.Problem]:
    """Yield which shards have too few copies, or copies that differ."""
    assert view.settings is not None
    for shard, versioned in sorted(view.assignments.items()):
        if versioned.assignment.forked:
            yield _problem(
                f"shard {shard}",
                f"copies on nodes {', '.join(versioned.assignment.forked)} hold different"
                " acknowledged writes: no node serves it until you choose one copy with"
                f" `holdfast reset-shard {shard} --keep NODE`",
            )
    lost: dict[tuple[str, ...], list[int]] = defaultdict(list)
    few: Counter[int] = Counter()
    for shard, versioned in view.assignments.items():
        now = versioned.assignment
        if not any(name in view.members for name in now.in_sync):
            lost[now.in_sync].append(shard)
        elif len(now.in_sync) < view.settings.replication:
            few[len(now.in_sync)] += 1
    for nodes, shards in sorted(lost.items()):
        if len(nodes) == 1:
            why = (
                f"their only copy is on node {nodes[0]}, which is absent; calls to them wait"
                " for that node"
            )
        else:
            why = (
                f"their copies are on nodes {', '.join(nodes)}, which are all absent; calls to"
                " them wait for one of these nodes"
            )
        yield _problem(f"{len(shards)} shards", why)
    for copies, count in sorted(few.items()):
        what = f"{copies} of {view.settings.replication} copies are in sync"
        yield _problem(
            f"{count} shards",
            what if copies >= view.settings.writable_from else f"{what}: they take no writes",
        )


def _serving(view: View, stats: Stats, owned: Counter[str]) -> Iterator[admin_pb2.Problem]:
    """Yield which shards their owners do not serve."""
    stale = Counter(
        versioned.assignment.owner
        for shard, versioned in view.assignments.items()
        if versioned.assignment.owner in view.members and view.owner_of(shard) is None
    )
    for node, count in sorted(stale.items()):
        yield _problem(
            f"{count} shards",
            f"node {node} was started again and has not been assigned them yet",
        )
    for node, answer in sorted(stats.items()):
        if answer.shards_serving < owned[node] - stale[node]:
            yield _problem(
                f"{owned[node] - stale[node] - answer.shards_serving} shards",
                f"node {node} owns them but does not serve them; its log says why",
            )


def _problem(what: str, why: str, minor: bool = False) -> admin_pb2.Problem:
    return admin_pb2.Problem(what=what, why=why, minor=minor)


def _found_slow(stats: Stats) -> list[tuple[str, list[str]]]:
    """Return the slow nodes, each with the nodes that found it slow."""
    by: dict[str, list[str]] = defaultdict(list)
    for name, answer in sorted(stats.items()):
        for slow in answer.slow_nodes:
            by[slow].append(name)
    return sorted(by.items())


def what_lacks(view: View, member: Member, kinds: set[str]) -> tuple[str, int]:
    """Return a text for operators on the kinds that a member lacks, and a number.

    The number counts the member's shards that wait for another owner because of these kinds.
    """
    lacked = sorted(kinds.difference(member.kinds))
    asks = view.hosting_of(member).asks
    waiting = sum(
        versioned is not None and versioned.assignment.owner == member.id
        for versioned in map(view.assignments.get, asks)
    )
    what = (
        f"it lacks kind {', '.join(lacked)}: calls to it are held, and their shards handed to nodes"
        " that have it"
    )
    return (f"{what}; {waiting} of its shards wait for that" if waiting else what), waiting
