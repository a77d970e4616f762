"""The effects of a turn beside its object's rows."""

from __future__ import annotations

from typing import Protocol

from holdfast_node.log.shards import Entry


class TurnEffect(Protocol):
    """One effect of a turn beside its object's rows. It commits with them, and is undone with them.

    An effect can be refused only when the turn adds it. An effect with work to do at the commit
    waits on the entry itself (`holdfast_node.log.shards.Waiter`).
    """

    @property
    def size(self) -> int:
        """The bytes that count as written by the turn."""

    def stage(self, entry: Entry) -> None:
        """Put the effect into the entry of its turn, which has ended well. Cannot fail."""
