"""The kinds that the owned shards need: kinds of which they have objects, and kinds that calls ask
for and the node lacks.

When an owner lacks a kind that another node has, or may have, it refuses a call with `LacksKind`.
Gateways hold the call. The owner then asks the controller to hand the shard to a member that has
the kind (`Hosting.asks`). The controller chooses the member.

If no member has all kinds that the shard needs, some objects have to wait. The owner then compares
two numbers for a member, both of the last `MEMORY_S` seconds: the waiting objects that the member
would serve, and the used objects that the member could not serve. It asks for the member only if
the first number is larger. So every hand-over raises the number of served objects, and a shard that
several apps want does not go back and forth. A shard that was handed over stays for `EVERY_S`
seconds at least.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable

from holdfast.app import no_kind
from holdfast.errors import HoldfastError, LacksKind
from holdfast_cluster.membership.etcd import Etcd, EtcdError, put
from holdfast_cluster.membership.kinds import KnownKinds
from holdfast_cluster.membership.member import Membership
from holdfast_cluster.membership.view_watcher import ViewWatcher
from holdfast_cluster.placement.model import Hosting, Keys, Member, View, encode

from holdfast_node.log.shards import Shard, Shards
from holdfast_node.objects.activation import Activation
from holdfast_node.store import keys
from holdfast_node.store.rocks import Store

log = logging.getLogger(__name__)

INTERVAL_S = 0.25
EVERY_S = 10.0
"""For so long after a hand-over the new owner does not ask for another member. It also does not
tell which kinds the shard holds, so the plan assumes that the shard needs all kinds of its
owner."""
MEMORY_S = 30.0
"""How long an object counts as asked for, or as used. It is as long as a call is held by
default."""
LOOK_S = 10.0
OBJECTS_MAX = 1_000
"""The most objects of one shard that are remembered as asked for."""
SHARDS_MAX = 4_096
"""A node that owns more shards does not tell which kinds they hold, so that the value in etcd stays
below 200 KB."""
_COUNT_S = 1.0  # the count of used objects may be so old: it looks at every object in memory
_STEP = 100  # after so many shards the event loop does other work

_Object = tuple[str, str]


class ShardKinds:
    """The kinds of one node and of the other nodes, and the kinds that its shards need. It runs on
    the event loop."""

    def __init__(
        self,
        mine: Collection[str],
        known: KnownKinds,
        store: Store,
        shards: Shards,
        active: Callable[[set[Shard]], Iterable[Activation]],
        clock: Callable[[], float],
    ) -> None:
        """`active`: returns the objects of shards that are in memory. `clock`: the clock of their
        `last_used`."""
        self._mine = frozenset(mine)
        self.known = known
        self._store = store
        self._shards = shards
        self._active = active
        self._clock = clock
        self._asked: dict[Shard, dict[_Object, float]] = {}
        self._since: dict[Shard, float] = {}
        self._view = View()
        self._looked_for: tuple[str, ...] = ()
        self._holds: dict[int, tuple[str, ...]] = {}
        self._look_at = 0.0
        self._used: Counter[tuple[Shard, str]] = Counter()
        self._count_at = 0.0

    # -- refusals, for calls, alarms and notifications

    def refusal(self, shard: Shard, kind: str, key: str, attempt: int) -> HoldfastError:
        """Return the error of a call for a kind that this node lacks, and note that the kind is
        asked for. It is NotFound only if no node has the kind or may have it."""
        if self.elsewhere(kind):
            self.ask(shard, kind, key)
            return LacksKind(f"this node lacks kind {kind}", definite=True, retryable=True)
        error = no_kind(kind, self._mine | self.known.names())
        error.definite = attempt == 0  # an earlier attempt may have met a node that had the kind
        return error

    def elsewhere(self, kind: str) -> bool:
        """Return whether this node lacks the kind, and another node has it or may have it."""
        return kind not in self._mine and self.known.might_have(kind)

    def ask(self, shard: Shard, kind: str, key: str) -> None:
        """Note that a call, an alarm or a notification asks for an object of a kind that this node
        lacks."""
        objects = self._asked.setdefault(shard, {})
        if len(objects) < OBJECTS_MAX or (kind, key) in objects:
            objects[kind, key] = self._clock()

    def lacked(self, kinds: Iterable[str]) -> list[str]:
        """Return those of the kinds that this node lacks."""
        return [kind for kind in kinds if kind not in self._mine]

    # -- what the node tells the cluster

    async def look(self, view: View) -> None:
        """Find out, every `LOOK_S` seconds, of which kinds the owned shards have objects. Only
        kinds that another member lacks matter."""
        now = self._clock()
        owned = self._shards.owned()
        self._since = {shard: self._since.get(shard, now) for shard in owned}
        if view is not self._view:
            self._view = view
            differing = tuple(
                sorted(
                    k
                    for k in self._mine
                    if any(member.missing((k,)) for member in view.members.values())
                )
            )
            if differing != self._looked_for:
                self._looked_for, self._holds, self._look_at = differing, {}, now
        differing = self._looked_for
        if not differing or now < self._look_at or len(owned) > SHARDS_MAX:
            return
        self._look_at = now + LOOK_S
        holds = {}
        for number, shard in enumerate(owned):
            holds[shard.number] = tuple(
                kind for kind in differing if kind in shard.kinds or self._has(shard, kind)
            )
            if number % _STEP == _STEP - 1:
                await asyncio.sleep(0)
        self._holds = holds

    def _has(self, shard: Shard, kind: str) -> bool:
        prefix = keys.objects_from(shard.number, kind, "")
        return self._store.any("state", prefix, keys.after(prefix))

    def hosting(self, view: View, me: Member) -> Hosting:
        """Return what this node has to tell the cluster."""
        settled = {
            shard.number
            for shard, since in self._since.items()
            if shard.owned and self._clock() - since >= EVERY_S
        }
        holds = {number: kinds for number, kinds in self._holds.items() if number in settled}
        return Hosting(me.incarnation, self._looked_for, holds, self._asks(view, settled))

    def _asks(self, view: View, settled: set[int]) -> dict[int, tuple[str, ...]]:
        oldest = self._clock() - MEMORY_S
        hosts = {
            frozenset(member.kinds)
            for member in view.members.values()
            if view.state_of(member.id) == "active"
        }
        out: dict[int, tuple[str, ...]] = {}
        contested: dict[Shard, Counter[str]] = {}
        for shard, objects in list(self._asked.items()):
            objects = self._asked[shard] = {one: at for one, at in objects.items() if at >= oldest}
            if not objects or not shard.owned:
                del self._asked[shard]
                continue
            if _was_handed_over(view, shard) and shard.number not in settled:
                continue
            waiting = Counter(kind for kind, _ in objects)
            best = max(
                (host for host in hosts if self._mine <= host),
                key=lambda host: _sum(waiting, host),
                default=self._mine,
            )
            if gained := best & waiting.keys():
                out[shard.number] = tuple(sorted(gained | self._mine))
            elif any(host & waiting.keys() for host in hosts):
                contested[shard] = waiting
        self._count_used(contested.keys(), oldest)
        for shard, waiting in contested.items():
            used = Counter({kind: self._used[shard, kind] for kind in self._mine})
            gain, best = max(
                ((_sum(waiting, host) - _sum(used, self._mine - host), host) for host in hosts),
                key=lambda one: (one[0], sorted(one[1])),
            )
            if gain > 0:
                out[shard.number] = tuple(
                    sorted(best & (waiting.keys() | {kind for kind in used if used[kind]}))
                )
        return out

    def _count_used(self, shards: Collection[Shard], oldest: float) -> None:
        """Count the objects of shards that were used since `oldest`, by kind, at most every
        `_COUNT_S` seconds."""
        now = self._clock()
        if not shards or now < self._count_at:
            return
        self._count_at = now + _COUNT_S
        self._used = Counter(
            (activation.shard, activation.kind.name)
            for activation in self._active(set(shards))
            if activation.last_used >= oldest
        )


def _sum(objects: Counter[str], kinds: Collection[str]) -> int:
    return sum(objects[kind] for kind in kinds)


def _was_handed_over(view: View, shard: Shard) -> bool:
    versioned = view.assignments.get(shard.number)
    return (
        versioned is not None and versioned.assignment.released and versioned.assignment.epoch > 1
    )


async def publish(
    kinds: ShardKinds, watcher: ViewWatcher, etcd: Etcd, keys: Keys, membership: Membership
) -> None:
    """Write the kinds that the shards need to etcd, under the member's lease, when they have
    changed. Runs until cancelled."""
    told: tuple[Hosting, int] | None = None
    while True:
        await asyncio.sleep(INTERVAL_S)
        await kinds.look(watcher.view)
        me = membership.member
        if me is None:
            continue
        hosting = kinds.hosting(watcher.view, me)
        if told == (hosting, membership.lease_id) or (
            told is None and hosting == Hosting(me.incarnation)
        ):
            continue
        new = {
            shard: names
            for shard, names in hosting.asks.items()
            if told is None or told[0].asks.get(shard) != names
        }
        if new:
            shown = ", ".join(
                f"{shard} ({' '.join(kinds.lacked(names))})"
                for shard, names in sorted(new.items())[:20]
            )
            log.warning(
                "this node lacks kinds for which %d of its shards get calls: %s", len(new), shown
            )
        try:
            await etcd.txn([], [put(keys.hosting(me.id), encode(hosting), membership.lease_id)])
            told = hosting, membership.lease_id
        except EtcdError as error:
            log.debug("cannot tell the cluster which kinds the shards need: %s", error)
