"""The kinds that exist anywhere in the cluster.

A kind that one node lacks may be on another node, which may be away for a moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from holdfast_cluster.placement.model import Member, View


class KnownKinds:
    """The kinds of the members, and of the nodes that are expected back, by the newest view.

    `away_s`: how long a member that left is expected back. As long as an assignment names an absent
    node, the node counts: it has data, so it is expected back.
    """

    def __init__(self, away_s: float, clock: Callable[[], float]) -> None:
        self._away_s = away_s
        self._clock = clock
        self._view = View()
        self._left: dict[str, tuple[Member, float]] = {}
        self._named: tuple[View, frozenset[str]] | None = None

    def follow(self, view: View) -> None:
        """Work with a new view from now on."""
        now = self._clock()
        for name, member in self._view.members.items():
            if name not in view.members:
                self._left[name] = member, now
        for name, (_, at) in list(self._left.items()):
            if name in view.members or now - at > self._away_s:
                del self._left[name]
        self._view = view

    def might_have(self, kind: str) -> bool:
        """Return whether a member, or a node that is expected back, has the kind or may have it."""
        return any(kinds is None or kind in kinds for kinds in self._all())

    def names(self) -> set[str]:
        """Return the known kinds of the members and of the nodes that are expected back."""
        return {kind for kinds in self._all() for kind in kinds or ()}

    def _all(self) -> Iterator[tuple[str, ...] | None]:
        """Yield the kinds of each of these nodes; None for a node that has not told its kinds."""
        view, now = self._view, self._clock()
        for member in view.members.values():
            yield member.kinds if member.tells_kinds else None
        left = {
            name
            for name, (_, at) in self._left.items()
            if now - at <= self._away_s and name not in view.drains
        }
        for name in left | (self._assigned() - view.members.keys()):
            yield view.kinds.get(name)

    def _assigned(self) -> frozenset[str]:
        """Return the nodes that the assignments name."""
        if self._named is None or self._named[0] is not self._view:
            assignments = [versioned.assignment for versioned in self._view.assignments.values()]
            names = frozenset(
                name for now in assignments for name in (now.owner, *now.in_sync, *now.joining)
            )
            self._named = self._view, names
        return self._named[1]
