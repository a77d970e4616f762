"""Dead letters: notifications and alarms that the owner gave up. They stay in their sender's shard
until an operator replays or drops them."""

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

    def __init__(self, store: Store, writes: ShardWrites, dead_letters_max: int) -> None:
        """`dead_letters_max`: the most dead letters of one shard. A shard that has so many makes no
        more: its owner then tries failed notifications and alarms again for ever."""
        self._store = store
        self._writes = writes
        self._dead_letters_max = dead_letters_max
        self._counts: dict[Shard, int] = {}
        self.given_up = 0
        """The number of dead letters that this node made."""

    @property
    def count(self) -> int:
        """The number of dead letters in the shards that this node owns."""
        return sum(self._counts.values())

    def full(self, shard: Shard) -> bool:
        """Return whether a shard has as many dead letters as it may have."""
        self.opened(shard)
        return self._counts[shard] >= self._dead_letters_max

    def room(self, shard: Shard) -> bool:
        """Return whether the shard may get one more dead letter now. False for a shard that is not
        opened."""
        return (
            self._counts.get(shard, self._dead_letters_max) < self._dead_letters_max
            and shard.may_write()
        )

    def changed(self, shard: Shard, by: int) -> None:
        """Change a shard's count: an operator has replayed or dropped dead letters."""
        self.opened(shard)
        self._counts[shard] += by

    def row(self, shard: Shard, sequence: bytes, letter: DeadLetter) -> tuple[bytes, bytes]:
        """Return the row of a new dead letter, and count it from now on."""
        self.opened(shard)
        self._counts[shard] += 1
        self.given_up += 1
        return keys.index_prefix(shard.number, keys.DEAD_LETTERS) + sequence, encode(letter)

    def stage(self, entry: Entry, raw: bytes) -> None:
        """Put a new dead letter into an entry, and count it."""
        self._counts[entry.shard] += 1
        self.given_up += 1
        key = keys.index_prefix(entry.shard.number, keys.DEAD_LETTERS) + self._writes.next_sequence(
            entry.shard
        )
        entry.rows.append((key, raw))

    # -- holdfast_node.log.shard_service.ShardService

    def opened(self, shard: Shard) -> None:
        if shard not in self._counts:
            shard.check_owned()
            prefix = keys.index_prefix(shard.number, keys.DEAD_LETTERS)
            self._counts[shard] = sum(
                1 for _ in self._store.scan("state", prefix, keys.after(prefix))
            )

    def closed(self, shard: Shard) -> None:
        self._counts.pop(shard, None)

    def tick(self, shard: Shard, now_ms: int, budget: ScanBudget) -> None:
        pass


@dataclass(frozen=True, slots=True)
class AddDeadLetter:
    """A new dead letter of a turn that gives up an alarm of its object. A `TurnEffect`. `raw`: the
    dead letter as it is stored."""

    letters: DeadLetters
    raw: bytes

    @property
    def size(self) -> int:
        return len(self.raw)

    def stage(self, entry: Entry) -> None:
        self.letters.stage(entry, self.raw)


@dataclass(frozen=True, slots=True)
class RemoveDeadLetter:
    """The removal of a dead letter by a turn that has done its work. A `TurnEffect`. `row`: the key
    of its row."""

    row: bytes

    @property
    def size(self) -> int:
        return len(self.row)

    def stage(self, entry: Entry) -> None:
        entry.rows.append((self.row, None))
        entry.deletes = True
