"""Dead letters: notifications and alarms that were given up, kept in their sender's shard until an
operator replays or drops them."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast_node.effects.records import DeadLetter, encode
from holdfast_node.effects.writes import ShardWrites
from holdfast_node.log.shard_service import ScanBudget
from holdfast_node.log.shards import Entry, Shard
from holdfast_node.store import keys
from holdfast_node.store.rocks import Store


class DeadLetters:
    """Counts the dead letters of the shards that a node owns, and makes new ones. Implements
    `ShardService`."""

    def __init__(self, store: Store, writes: ShardWrites, letters_max: int) -> None:
        """`letters_max`: dead letters of one shard. With so many nothing dies: what fails is tried
        on for ever."""
        self._store = store
        self._writes = writes
        self._letters_max = letters_max
        self._counts: dict[Shard, int] = {}
        self.given_up = 0
        """Dead letters that were made here."""

    @property
    def count(self) -> int:
        """Those of the shards that this node owns."""
        return sum(self._counts.values())

    def full(self, shard: Shard) -> bool:
        """Whether a shard has as many as it may have."""
        self.opened(shard)
        return self._counts[shard] >= self._letters_max

    def room(self, shard: Shard) -> bool:
        """Whether a shard that is loaded may get one more now."""
        return self._counts.get(shard, self._letters_max) < self._letters_max and shard.may_write()

    def changed(self, shard: Shard, by: int) -> None:
        """An operator has replayed or dropped some."""
        self.opened(shard)
        self._counts[shard] += by

    def row(self, shard: Shard, sequence: bytes, letter: DeadLetter) -> tuple[bytes, bytes]:
        """The row of a new dead letter, which counts from now on."""
        self.opened(shard)
        self._counts[shard] += 1
        self.given_up += 1
        return keys.index_prefix(shard.number, keys.LETTERS) + sequence, encode(letter)

    def stage(self, entry: Entry, raw: bytes) -> None:
        """Put a new dead letter into an entry."""
        self._counts[entry.shard] += 1
        self.given_up += 1
        key = keys.index_prefix(entry.shard.number, keys.LETTERS) + self._writes.next_sequence(
            entry.shard
        )
        entry.rows.append((key, raw))

    # -- holdfast_node.log.shard_service.ShardService

    def opened(self, shard: Shard) -> None:
        if shard not in self._counts:
            shard.check_owned()
            prefix = keys.index_prefix(shard.number, keys.LETTERS)
            self._counts[shard] = sum(
                1 for _ in self._store.scan("state", prefix, keys.after(prefix))
            )

    def closed(self, shard: Shard) -> None:
        self._counts.pop(shard, None)

    def tick(self, shard: Shard, now_ms: int, budget: ScanBudget) -> None:
        pass


@dataclass(frozen=True, slots=True)
class AddDeadLetter:
    """A turn gives an alarm of its object up: `raw` is the dead letter as it is stored. A
    `TurnEffect`."""

    letters: DeadLetters
    raw: bytes

    @property
    def size(self) -> int:
        return len(self.raw)

    def stage(self, entry: Entry) -> None:
        self.letters.stage(entry, self.raw)


@dataclass(frozen=True, slots=True)
class RemoveDeadLetter:
    """A turn removes the dead letter at a row: what was in it has been done. A `TurnEffect`."""

    row: bytes

    @property
    def size(self) -> int:
        return len(self.row)

    def stage(self, entry: Entry) -> None:
        entry.rows.append((self.row, None))
        entry.deletes = True
