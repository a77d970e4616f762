"""What the controller decides: a view in, transitions out."""

from __future__ import annotations

from holdfast_cluster.model import Assignment, ClusterSettings, Member, Versioned, View
from holdfast_cluster.plan import Transition, plan

SETTINGS = ClusterSettings(shards=8, id="c")
A, B = Member("a", "127.0.0.1:1", 1, "h1"), Member("b", "127.0.0.1:2", 1, "h2")


def view(*members: Member, assignments: dict[int, Versioned] | None = None, settings: ClusterSettings | None = SETTINGS) -> View:
    return View(10, settings, {member.id: member for member in members}, assignments or {}, "a")


def formed(*members: Member) -> dict[int, Versioned]:
    return {t.shard: Versioned(t.to, 5) for t in plan(view(*members), len(members))}


def test_nothing_is_assigned_before_there_are_settings_and_enough_members() -> None:
    assert plan(view(A, settings=None), 1) == []
    assert plan(view(A), 2) == []


def test_formation_assigns_every_shard_once_to_the_node_that_the_ring_names() -> None:
    picture = view(A, B)
    transitions = plan(picture, 2)
    assert [t.shard for t in transitions] == list(range(8))
    assert all(t.revision == 0 and t.to.epoch == 1 and t.why == "formation" for t in transitions)
    assert [t.to.owner for t in transitions] == picture.ring.owners
    assert all(t.to.in_sync == (t.to.owner,) for t in transitions)


def test_a_node_that_drains_does_not_count_for_formation() -> None:
    draining = Member("b", "127.0.0.1:2", 1, "h2", state="draining")
    assert plan(view(A, draining), 2) == []


def test_a_formed_cluster_needs_nothing() -> None:
    assert plan(view(A, B, assignments=formed(A, B)), 2) == []


def test_a_shard_whose_node_is_away_waits_for_it() -> None:
    assert plan(view(A, assignments=formed(A, B)), 1) == []


def test_a_restarted_node_gets_its_shards_under_the_next_epoch_and_from_the_revision_seen() -> None:
    again = Member("b", "127.0.0.1:9", 2, "h2")
    assignments = formed(A, B)
    owned = [shard for shard, versioned in assignments.items() if versioned.assignment.owner == "b"]
    assert plan(view(A, again, assignments=assignments), 2) == [
        Transition(shard, 5, Assignment(2, "b", 2, ("b",)), "restart") for shard in owned
    ]


def test_an_older_incarnation_than_the_assigned_one_gets_nothing() -> None:
    assignments = {0: Versioned(Assignment(4, "a", 7, ("a",)), 9)}
    assert [t for t in plan(view(A, assignments=assignments), 1) if t.shard == 0] == []
