"""The controller's decisions. Pure: a view in, transitions out; equal input gives equal output.

For each shard the first rule that applies decides:

- formation: when enough members are there to share the work, the controller assigns the shard by
  the ring. It does so once. Every copy is empty, so all copies are in sync.
- fail-over: when the owner is absent, or has come back as another incarnation, a present in-sync
  member becomes the owner under the next epoch. The ring's favourite comes first. Every in-sync
  member has everything that was ever committed, so each of them can own the shard. If none is
  present, nothing happens: the shard waits for its data (no shard is ever re-created empty).
- repair: while there are fewer copies than wanted, the ring's next member becomes a joining
  replica. If a wanted member is away for a moment, the controller waits for it, as long as enough
  other copies are in sync to write. It does not wait for a superseded member: its disk was
  replaced, so its place in the in-sync set does not count. Shards with the fewest copies come
  first.
- leave: a member that stops, that drains, or whose disk is full or slow, hands over all its shards
  at once. It hands a shard over only to an active in-sync member. A member that stops also leaves
  the in-sync sets, so that no owner waits for it. It stays in a set that would otherwise be too
  small to write.
- hosting: callers ask a shard for a kind that its owner lacks. Then the controller asks the owner
  to hand the shard to an in-sync member that has the kind.
- move, a few shards at a time: a member that the ring wants, and that has no copy, joins. Then the
  controller asks the owner to hand over to the ring's favourite. Then it asks the members that the
  ring does not want to leave. On the way there are never fewer copies than before. Quiet shards
  move first and the busiest last: then most of the load that makes a hand-over costly has moved.

A member whose disk is full or slow gets no new copy: the ring's next member gets it. It keeps its
present copies while the ring wants them. A slow member that is already joining goes on: owners took
it out of the in-sync set, and take it back later.

Members that are away for a moment (`expected`, or stopping) keep their place on the ring: a restart
moves no data. When more than a third of the members is away, nothing moves, whatever the reason.
Fail-over and repair go on.

Members may have different kinds. In the choice of an owner, data come first and kinds second.
Fail-over prefers an in-sync member that has the kinds, and waits for no other. A move needs an
owner that has all the kinds of the present owner of which the shard has objects. If the favourite
lacks one, the first member of the ring's whole list that has them all takes the favourite's place.
So a shard that was handed over because of a kind does not move back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

import msgspec

from holdfast_cluster.placement.model import Assignment, Member, View

REASONS = ("formation", "fail-over", "restart", "repair", "leave", "hosting", "move")
"""The reasons why an assignment changes: `Transition.why`."""

MOVES_MAX = 4
"""How many shards may move at a time."""


@dataclass(frozen=True, slots=True)
class Transition:
    """A swap of a shard's assignment for `to`, because of `why`.

    `revision`: etcd's revision of the assignment that it was planned from; 0 if there was none.
    """

    shard: int
    revision: int
    to: Assignment
    why: str


def plan(
    view: View,
    members_min: int,
    expected: Mapping[str, Member] | None = None,
    superseded: Set[str] = frozenset(),
) -> list[Transition]:
    """Return the transitions that are due.

    `members_min`: the number of active members that formation waits for. `expected`: the members,
    and the absent ones that are expected back. `superseded`: absent members whose disks were
    replaced.
    """
    if view.settings is None:
        return []
    return _Plan(view, members_min, expected or {}, superseded).transitions()


def too_many_away(view: View, expected: Mapping[str, Member]) -> bool:
    """Return whether more than a third of the members is away.

    Then the likely cause is the network or a mistake, so no data moves.
    """
    away = sum(name not in view.members for name in expected)
    return more_than_a_third(away, len(view.members) + away)


def more_than_a_third(some: int, of: int) -> bool:
    return some * 3 > of


class _Plan:
    def __init__(
        self, view: View, members_min: int, expected: Mapping[str, Member], superseded: Set[str]
    ) -> None:
        assert view.settings is not None
        self.view = view
        self.copies = view.settings.replication
        self.shards = view.settings.shards
        self.writable_from = view.settings.writable_from
        self.superseded = superseded
        self.away = {name: member for name, member in expected.items() if name not in view.members}
        self.active = {name for name in view.members if view.state_of(name) == "active"}
        self.stopping = {name for name in view.members if view.state_of(name) == "stopping"}
        self.slow = {name for name in view.members if view.state_of(name) == "slow"}
        self.unfit = self.slow | {name for name in view.members if view.state_of(name) == "full"}
        self.forming = len(self.active) >= members_min
        self.ring = view.ring_with(self.away)
        self.calm = not too_many_away(view, expected)
        self.known = {**self.away, **view.members}
        self.kinds = frozenset(kind for member in self.known.values() for kind in member.kinds)
        self.mixed = any(member.missing(self.kinds) for member in self.known.values())
        self.moving = sum(1 for each in view.assignments.values() if _is_moving(each.assignment))

    def transitions(self) -> list[Transition]:
        out = []
        repairs = []
        movable = []
        for shard in range(self.shards):
            versioned = self.view.assignments.get(shard)
            if versioned is None:
                if self.forming and self.active:
                    out.append(Transition(shard, 0, self._form(shard), "formation"))
                continue
            now = versioned.assignment
            owner = self.view.members.get(now.owner)
            if now.owner in self.view.hidden:
                continue  # the owner may be present and serve: its member row cannot be read
            if owner is None or owner.incarnation > now.incarnation:
                to, why = self._fail_over(shard, now), "fail-over" if owner is None else "restart"
            else:
                to, why = self._repair(shard, now), "repair"
                if to is not None:
                    repairs.append(
                        (len(self._holding(now)), Transition(shard, versioned.revision, to, why))
                    )
                    continue
                if self.copies > 1:  # moving an only copy is not implemented
                    to, why = self._leave(shard, now), "leave"
                    if to is None and (host := self._host_in_sync(shard, now)):
                        if now.handover != host:
                            to, why = (
                                msgspec.structs.replace(now, handover=host, leaving=()),
                                "hosting",
                            )
                    elif to is None and self.calm:
                        movable.append(shard)
            if to is not None:
                out.append(Transition(shard, versioned.revision, to, why))
        out += [transition for _, transition in sorted(repairs, key=lambda repair: repair[0])]
        for shard in sorted(movable, key=self._turn_to_move):
            versioned = self.view.assignments[shard]
            to = self._move(shard, versioned.assignment)
            if to is not None:
                out.append(Transition(shard, versioned.revision, to, "move"))
        return out

    def _form(self, shard: int) -> Assignment:
        favourites = self.view.ring.preference_list(shard, len(self.view.ring.nodes))
        in_sync = tuple([name for name in favourites if name in self.active][: self.copies])
        owner = self.view.members[in_sync[0]]
        # The shard had no owner before, so there are no promises to wait for.
        return Assignment(
            epoch=1, owner=owner.id, incarnation=owner.incarnation, in_sync=in_sync, released=True
        )

    def _fail_over(self, shard: int, now: Assignment) -> Assignment | None:
        had = self.view.kinds.get(now.owner, ()) if now.owner not in self.view.members else ()
        owner = self._best(shard, [name for name in now.in_sync if name in self.view.members], had)
        if owner is None:
            return None
        joining = tuple(name for name in now.joining if name in self.view.members)
        # Absent members stay in sync until the new owner has them removed. If the new owner is dead
        # too, they have the data.
        return msgspec.structs.replace(
            now,
            epoch=now.epoch + 1,
            owner=owner.id,
            incarnation=owner.incarnation,
            joining=joining,
            released=False,
            handover="",
            leaving=(),
        )

    def _best(self, shard: int, names: list[str], kinds: Iterable[str]) -> Member | None:
        """Return the member that should own the shard, out of these present ones; None if empty.

        An active member comes first, then one that lacks fewest of `kinds`, then one that lacks
        fewest of all kinds, then the ring's favourite.
        """
        favourites = self.ring.preference_list(shard, len(self.ring.nodes))

        def rank(name: str) -> tuple[bool, int, int, int]:
            member = self.view.members[name]
            place = favourites.index(name) if name in favourites else len(favourites)
            return name not in self.active, member.missing(kinds), member.missing(self.kinds), place

        return self.view.members[min(names, key=rank)] if names else None

    def _repair(self, shard: int, now: Assignment) -> Assignment | None:
        joining = [name for name in now.joining if name in self.active | self.slow]
        in_sync = self._holding(now)
        copies = {*in_sync, *joining}
        if len(in_sync) >= self.writable_from:
            waited_for = self.stopping | set(self.away)
            copies |= {
                name for name in self.ring.preference_list(shard, self.copies) if name in waited_for
            }
        for name in self.ring.preference_list(shard, len(self.ring.nodes)):
            if len(copies) >= self.copies:
                break
            if name not in copies and name in self.active:
                copies.add(name)
                joining.append(name)
        if tuple(joining) == now.joining:
            return None
        return msgspec.structs.replace(now, joining=tuple(joining))

    def _holding(self, now: Assignment) -> list[str]:
        """Return the in-sync members whose disks have not been replaced."""
        return [name for name in now.in_sync if name not in self.superseded]

    def _leave(self, shard: int, now: Assignment) -> Assignment | None:
        if now.owner not in self.active:
            to = self._best(
                shard, [name for name in now.in_sync if name in self.active], self._held(shard, now)
            )
            if to is not None and not (now.handover in self.active and now.handover in now.in_sync):
                return msgspec.structs.replace(now, handover=to.id, leaving=())
            return None
        gone = [name for name in now.in_sync if name in self.stopping and name not in now.leaving]
        left = len(now.in_sync) - len(now.leaving)
        gone = gone[: max(0, left - self.writable_from)]
        if gone:
            return msgspec.structs.replace(now, leaving=(*now.leaving, *gone))
        return None

    # -- kinds

    def _held(self, shard: int, now: Assignment) -> list[str]:
        """Return the kinds of the present owner of which the shard has objects.

        A kind that the owner has not looked for counts as there. If all members have the same
        kinds,
        the list is empty.
        """
        owner = self.view.members[now.owner]
        told = self.view.hosting_of(owner)
        if not self.mixed or shard not in told.holds:
            return list(owner.kinds) if self.mixed else []
        return [
            kind for kind in owner.kinds if kind in told.holds[shard] or kind not in told.looked_for
        ]

    def _host(self, shard: int, now: Assignment) -> str:
        """Return the active member that should own the shard for the kinds that the owner asks for.

        Return "" if the owner asks for none, or if no active member has them all.
        """
        asked = (
            self.view.hosting_of(self.view.members[now.owner]).asks.get(shard, ())
            if self.mixed
            else ()
        )
        if not asked:
            return ""
        held = self._held(shard, now)

        def rank(name: str) -> tuple[int, bool]:
            return self.view.members[name].missing(held), name not in now.in_sync

        names = [
            name
            for name in self.ring.preference_list(shard, len(self.ring.nodes))
            if name in self.active
        ]
        return min(
            (name for name in names if set(asked).issubset(self.view.members[name].kinds)),
            key=rank,
            default="",
        )

    def _host_in_sync(self, shard: int, now: Assignment) -> str:
        """Return the member of `_host` if it is in sync and not the owner; otherwise ""."""
        host = self._host(shard, now)
        return host if host in now.in_sync and host != now.owner else ""

    def _wanted(self, shard: int, now: Assignment) -> list[str]:
        """Return the members that should have copies, the wanted owner first.

        They are the ring's choice, as far as disks and kinds allow it.
        """
        wanted = self._with_room(shard, now)
        if not self.mixed or not wanted:
            return wanted
        first = self._host(shard, now)
        if not first:
            held = self._held(shard, now)
            everybody = self.ring.preference_list(shard, len(self.ring.nodes))
            fit = [name for name in everybody if name not in self.unfit]
            first = next((name for name in fit if not self.known[name].missing(held)), now.owner)
        others = [name for name in wanted if name != first]
        # A copy on the same host as `first`, or in its zone, is needed least.
        if len(others) == self.copies:
            nodes = self.ring.nodes
            mine = nodes[first]
            others.remove(
                next((name for name in reversed(others) if nodes[name].host == mine.host), "")
                or next(
                    (
                        name
                        for name in reversed(others)
                        if mine.zone and nodes[name].zone == mine.zone
                    ),
                    "",
                )
                or others[-1]
            )
        return [first, *others]

    # -- moving

    def _turn_to_move(self, shard: int) -> tuple[bool, bool, float]:
        """Return the sort key of shards that may move.

        Shards with a copy too many come first, because their move is under way. Then come shards
        whose calls wait for a kind, then the quiet shards.
        """
        now = self.view.assignments[shard].assignment
        return len(now.in_sync) <= self.copies, not self._host(shard, now), self.view.load_of(shard)

    def _move(self, shard: int, now: Assignment) -> Assignment | None:
        if now.owner not in self.active:
            return None  # the owner hands over already, or no member can take over
        if now.handover and now.handover not in now.in_sync:
            return msgspec.structs.replace(now, handover="")  # it left the in-sync set meanwhile
        wanted = self._wanted(shard, now)
        started = _is_moving(now)
        if not wanted or (not started and self.moving >= MOVES_MAX):
            return None  # all members drain, or enough shards move already
        missing = [
            name
            for name in wanted
            if name not in now.in_sync and name not in now.joining and name in self.active
        ]
        if missing:
            to = msgspec.structs.replace(
                now, joining=(*now.joining, missing[0]), handover="", leaving=()
            )
        elif now.joining or any(
            name not in now.in_sync or name not in self.active | self.unfit for name in wanted
        ):
            return None  # a copy is being made, or cannot be made now
        else:
            handover = wanted[0] if wanted[0] in self.active and wanted[0] != now.owner else ""
            spare = not handover and len(wanted) >= self.copies
            leaving = tuple(name for name in now.in_sync if name not in wanted) if spare else ()
            to = msgspec.structs.replace(now, handover=handover, leaving=leaving)
        if to == now:
            return None
        self.moving += not started
        return to

    def _with_room(self, shard: int, now: Assignment) -> list[str]:
        """Return the members that should have copies, the wanted owner first, apart from kinds.

        They are the ring's choice, but a member with a full or slow disk gets no new copy. Another
        member gets it in its place, preferably one that is in sync already.
        """
        favourites = self.ring.preference_list(shard, len(self.ring.nodes))
        wanted = favourites[: self.copies]
        if not self.unfit.isdisjoint(wanted):
            kept = {*now.in_sync, *self.slow.intersection(now.joining)}
            wanted = [name for name in wanted if name not in self.unfit or name in kept]
            others = [name for name in favourites if name in self.active and name not in wanted]
            others.sort(key=lambda name: name not in now.in_sync)
            wanted += others[: self.copies - len(wanted)]
            # While the ring's choice is not possible, the present owner stays the owner.
            wanted.sort(key=lambda name: name != now.owner)
        return wanted


def _is_moving(now: Assignment) -> bool:
    return bool(now.joining or now.handover or now.leaving)
