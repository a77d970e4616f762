"""What a turn does beside its object's rows."""

from __future__ import annotations

from typing import Protocol

from holdfast_node.log.shards import Entry


class TurnEffect(Protocol):
    """One thing that a turn does beside its object's rows: it commits with them, and is undone with
    them.

    Whatever can be refused is refused when the turn adds the effect. An effect that does something
    at the commit waits on the entry itself (`holdfast_node.log.shards.Waiter`).
    """

    @property
    def size(self) -> int:
        """Bytes that count as written by the turn."""

    def stage(self, entry: Entry) -> None:
        """The turn has ended well: put the effect into the turn's entry. Cannot fail."""
