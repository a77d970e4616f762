"""What the controller does next. Pure: a view in, transitions out, the same for the same.

One copy per shard: a shard is assigned once, by the ring, when enough members are there to share the work; when its node comes
back under a new incarnation it is assigned to that one under the next epoch; and while its node is away nothing happens, because
the only copy is there. (Replicas, fail-over and moves are further rules of this function.)
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
                owner = view.members[view.ring.owners[shard]]
                first = Assignment(epoch=1, owner=owner.id, incarnation=owner.incarnation, in_sync=(owner.id,))
                transitions.append(Transition(shard, 0, first, "formation"))
            continue
        now = versioned.assignment
        member = view.members.get(now.owner)
        if member is not None and member.incarnation > now.incarnation:
            again = Assignment(
                epoch=now.epoch + 1,
                owner=now.owner,
                incarnation=member.incarnation,
                in_sync=now.in_sync,
                joining=now.joining,
            )
            transitions.append(Transition(shard, versioned.revision, again, "restart"))
    return transitions
