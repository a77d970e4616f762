"""What the controller does next. Pure: a view in, transitions out, the same for the same.

Rules, for each shard:

- formation: assigned once, by the ring, when enough members are there to share the work; every copy is empty, so all are in sync.
- fail-over: when the owner is absent, or has come back as another incarnation, an in-sync member that is present becomes the
  owner under the next epoch, the ring's favourite first. Whoever is in sync has everything that was ever committed, so any of
  them will do. With none present nothing happens (rule 7): the shard waits for its data.
- join: while there are fewer copies than wanted, the ring's next member becomes a joining replica; absent ones are no longer
  waited for.
"""

from __future__ import annotations

from dataclasses import dataclass

from holdfast_cluster.model import Assignment, View


@dataclass(frozen=True, slots=True)
class Transition:
    """Swap a shard's assignment for `to` if it is still at `revision` (0: if there is none), because of `why`."""

    shard: int
    revision: int
    to: Assignment
    why: str


def plan(view: View, members_min: int) -> list[Transition]:
    """The transitions that are due. `members_min`: how many active members formation waits for."""
    if view.settings is None:
        return []
    transitions = []
    forming = sum(member.state == "active" for member in view.members.values()) >= members_min
    for shard in range(view.settings.shards):
        versioned = view.assignments.get(shard)
        if versioned is None:
            if forming and view.ring.nodes:
                transitions.append(Transition(shard, 0, _form(view, shard), "formation"))
            continue
        now = versioned.assignment
        owner = view.members.get(now.owner)
        if owner is None or owner.incarnation > now.incarnation:
            to, why = _fail_over(view, shard, now), "fail-over" if owner is None else "restart"
        else:
            to, why = _join(view, shard, now), "join"
        if to is not None:
            transitions.append(Transition(shard, versioned.revision, to, why))
    return transitions


def _form(view: View, shard: int) -> Assignment:
    assert view.settings is not None
    in_sync = tuple(view.ring.preference_list(shard, view.settings.replication))
    owner = view.members[in_sync[0]]
    return Assignment(epoch=1, owner=owner.id, incarnation=owner.incarnation, in_sync=in_sync)


def _fail_over(view: View, shard: int, now: Assignment) -> Assignment | None:
    present = [name for name in now.in_sync if name in view.members]
    if not present:
        return None
    favourites = view.ring.preference_list(shard, len(view.ring.nodes))
    owner = view.members[min(present, key=lambda name: favourites.index(name) if name in favourites else len(favourites))]
    joining = tuple(name for name in now.joining if name in view.members)
    # The absent stay in sync until the new owner, alive, has them removed: should it be dead too, they are the ones with the data.
    return Assignment(now.epoch + 1, owner.id, owner.incarnation, now.in_sync, joining)


def _join(view: View, shard: int, now: Assignment) -> Assignment | None:
    assert view.settings is not None
    joining = [name for name in now.joining if name in view.members]
    copies = {*now.in_sync, *joining}
    for name in view.ring.preference_list(shard, len(view.ring.nodes)):
        if len(copies) >= view.settings.replication:
            break
        if name not in copies:
            copies.add(name)
            joining.append(name)
    if tuple(joining) == now.joining:
        return None
    return Assignment(now.epoch, now.owner, now.incarnation, now.in_sync, tuple(joining), now.released)
