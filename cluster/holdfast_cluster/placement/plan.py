"""What the controller does next. Pure: a view in, transitions out, the same for the same.

Rules, for each shard, the first that applies:

- formation: assigned once, by the ring, when enough members are there to share the work; every copy
  is empty, so all are in sync.
- fail-over: when the owner is absent, or has come back as another incarnation, an in-sync member
  that is present becomes the owner under the next epoch, the ring's favourite first. Whoever is in
  sync has everything that was ever committed, so any of them will do. With none present nothing
  happens (rule 7): the shard waits for its data.
- repair: while there are fewer copies than wanted, the ring's next member becomes a joining
  replica. A wanted one that is away for a moment is waited for, as long as enough others are in
  sync to write. One that was superseded is not: its disk was replaced, so its place in the in-sync
  set counts for nothing. Shards with the fewest copies come first.
- leave: a member that stops, drains or whose disk is full or slow owns nothing if anybody in sync
  can take over, at once and for all of its shards. One that stops is taken out of the in-sync sets
  as well, so that nobody waits for it, as long as enough others are in sync to write.
- hosting: when a shard is asked for a kind that its owner lacks, the owner is asked to hand it to
  an in-sync member that has it.
- move, a few shards at a time: what the ring wants and is not there joins; then the owner is asked
  to hand over to the ring's favourite; then what the ring does not want is asked to leave. Never
  fewer copies on the way than before. Quiet shards begin, the busiest come last: by then most of
  the load that makes a hand-over costly has other places to go.

A member whose disk is full or slow gets no new copy: the ring's next one gets it. It keeps the
copies that it has, while the ring wants them. Where a slow one is joining it goes on: owners have
taken it out of the in-sync set, and will take it back.

Members that are away for a moment (`expected`, or stopping) keep their place on the ring: a restart
moves no data. When more than a third is away nothing moves at all, whatever the reason is;
fail-over and repair go on.

Members may have different kinds. Kinds are a preference in choosing owners, and come after data.
Fail-over takes an in-sync member that has the kinds if there is one, and waits for nobody. A move
puts no shard on a node that lacks a kind that the present owner has and that the shard has objects
of: the first member of the ring's whole list that has them all takes the favourite's place. So a
shard that was handed over because of a kind is not moved back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

import msgspec

from holdfast_cluster.placement.model import Assignment, Member, View

REASONS = ("formation", "fail-over", "restart", "repair", "leave", "hosting", "move")
"""Why an assignment changes: `Transition.why`."""

MOVES_MAX = 4
"""Shards that move at a time."""


@dataclass(frozen=True, slots=True)
class Transition:
    """Swap a shard's assignment for `to` if it is still at `revision` (0: if there is none),
    because of `why`."""

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
    """The transitions that are due.

    `members_min`: how many active members formation waits for. `expected`: members that were there
    a moment ago. `superseded`: absent ones whose disks were replaced.
    """
    if view.settings is None:
        return []
    return _Plan(view, members_min, expected or {}, superseded).transitions()


def too_many_away(view: View, expected: Mapping[str, Member]) -> bool:
    """Whether more than a third of the members is away: then the network is to blame, or somebody's
    mistake, and no data moves."""
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
                continue  # it may well be there and serve: nothing is known of it but that
            if owner is None or owner.incarnation > now.incarnation:
                to, why = self._fail_over(shard, now), "fail-over" if owner is None else "restart"
            else:
                to, why = self._repair(shard, now), "repair"
                if to is not None:
                    repairs.append(
                        (len(self._holding(now)), Transition(shard, versioned.revision, to, why))
                    )
                    continue
                if self.copies > 1:  # moving the only copy needs what is not built yet
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
        # Nobody owned it before: there are no promises to wait out.
        return Assignment(
            epoch=1, owner=owner.id, incarnation=owner.incarnation, in_sync=in_sync, released=True
        )

    def _fail_over(self, shard: int, now: Assignment) -> Assignment | None:
        had = self.view.kinds.get(now.owner, ()) if now.owner not in self.view.members else ()
        owner = self._best(shard, [name for name in now.in_sync if name in self.view.members], had)
        if owner is None:
            return None
        joining = tuple(name for name in now.joining if name in self.view.members)
        # The absent stay in sync until the new owner, alive, has them removed: should it be dead
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
        """Who of these present members should own the shard: one that stays, that has these kinds,
        that has most of all kinds, and of those the ring's favourite."""
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
        """The in-sync members whose disks have not been replaced."""
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
        """The kinds of the present owner that the shard has objects of; all that the owner has, as
        long as it has not looked."""
        owner = self.view.members[now.owner]
        told = self.view.hosting_of(owner)
        if not self.mixed or shard not in told.holds:
            return list(owner.kinds) if self.mixed else []
        return [
            kind for kind in owner.kinds if kind in told.holds[shard] or kind not in told.looked_for
        ]

    def _host(self, shard: int, now: Assignment) -> str:
        """The active member that should own the shard because it has what the owner asks for, or
        ""."""
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
        """The same, if it has the data already: handing over to it moves nothing."""
        host = self._host(shard, now)
        return host if host in now.in_sync and host != now.owner else ""

    def _wanted(self, shard: int, now: Assignment) -> list[str]:
        """Who is to have copies, the one that is to own the shard first: what the ring wants, as
        far as kinds allow it."""
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
        # the copy that it shares a host or a zone with is needed least
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
        """Those with a copy too many are under way, and end first; then those whose calls wait for
        a kind; then the quiet ones."""
        now = self.view.assignments[shard].assignment
        return len(now.in_sync) <= self.copies, not self._host(shard, now), self.view.heat_of(shard)

    def _move(self, shard: int, now: Assignment) -> Assignment | None:
        if now.owner not in self.active:
            return None  # handing over already, or nobody could take it
        if now.handover and now.handover not in now.in_sync:
            return msgspec.structs.replace(now, handover="")  # it fell out meanwhile
        wanted = self._wanted(shard, now)
        started = _is_moving(now)
        if not wanted or (not started and self.moving >= MOVES_MAX):
            return None  # everybody drains; or enough is on its way
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
            return None  # on its way, or not possible now
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
        """Who should have a copy, the one that should own the shard first: whom the ring names, but
        a full or slow one gets no more.

        Whoever has the copy in its place keeps it meanwhile.
        """
        favourites = self.ring.preference_list(shard, len(self.ring.nodes))
        wanted = favourites[: self.copies]
        if not self.unfit.isdisjoint(wanted):
            kept = {*now.in_sync, *self.slow.intersection(now.joining)}
            wanted = [name for name in wanted if name not in self.unfit or name in kept]
            others = [name for name in favourites if name in self.active and name not in wanted]
            others.sort(key=lambda name: name not in now.in_sync)
            wanted += others[: self.copies - len(wanted)]
            # it stays where it is as long as the ring does not get its way
            wanted.sort(key=lambda name: name != now.owner)
        return wanted


def _is_moving(now: Assignment) -> bool:
    return bool(now.joining or now.handover or now.leaving)
