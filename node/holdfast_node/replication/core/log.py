"""The log of one copy of a shard, as its replica sees it. Pure.

The replica decides which entries the log holds. The log knows their positions and terms. It also
keeps the high-water of its copy, and the seq of the last applied entry.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from holdfast_node.log.changes import is_term, nonce_of
from holdfast_node.replication.core.chain import TERMS_MAX, Term, parting, term_at, until
from holdfast_node.replication.core.events import LogEntry, Position, ReplicationSettings


@dataclass(slots=True)
class ReplicaLog:
    """Entries behind a base, with the chain of terms. Only the replica may change the fields."""

    base: Position = field(default_factory=lambda: Position(0, 0))
    """The position of the entry before the first of `entries`."""
    entries: list[LogEntry] = field(default_factory=list)
    bytes: int = 0
    """The bytes of the entries' data."""
    chain: list[Term] = field(default_factory=list)
    """The newest terms, `TERMS_MAX` at most. It includes terms whose entries the log no longer
    holds."""
    applied: int = 0
    """The seq of the last entry that is applied. The shell of a copy that is not owned may still
    have to apply it to the state."""
    high: int = 0
    """The high-water: everything up to this seq is known to be committed."""

    @classmethod
    def of(
        cls, base: Position, entries: list[LogEntry], chain: list[Term], applied: int, high: int
    ) -> ReplicaLog:
        """Return a log with the data that a disk holds. `chain` has the terms up to `base`."""
        self = cls(base, list(entries), sum(len(entry.data) for entry in entries), list(chain))
        self.applied = applied
        for entry in entries:
            self._add_term(entry)
        self.high = max(applied, min(high, self.last_seq))
        return self

    # -- positions

    @property
    def last(self) -> Position:
        """The position of the newest entry."""
        if not self.entries:
            return self.base
        epoch, seq, _ = self.entries[-1]
        return Position(epoch, seq)

    @property
    def last_seq(self) -> int:
        """The seq of the newest entry."""
        return self.base.seq + len(self.entries)

    @property
    def last_turn(self) -> Position:
        """The position of the newest entry of a turn. Only the first entry of a term is of no turn.

        If the known terms have no entry of a turn, it is (0, 0). If no term is known, it is the
        base.
        """
        last = self.last_seq
        for term in reversed(self.chain):
            if last > term.first:
                return Position(term.epoch, last)
            last = min(last, term.first - 1)
        return Position(0, 0) if self.chain else self.base

    def at(self, seq: int) -> LogEntry | None:
        """Return the entry with this seq; None when the log does not hold it."""
        index = seq - self.base.seq - 1
        return self.entries[index] if 0 <= index < len(self.entries) else None

    def position_at(self, seq: int) -> Position:
        """Return the position of the entry with this seq; the base if the log does not go back so
        far."""
        index = seq - self.base.seq - 1
        if index < 0:
            return self.base
        epoch, seq, _ = self.entries[index]
        return Position(epoch, seq)

    def nonce_at(self, seq: int) -> int:
        """Return the nonce of an entry's term; 0 if the entry is older than all known terms."""
        term = term_at(self.chain, seq)
        return 0 if term is None else term.nonce

    def batch(self, after: int, settings: ReplicationSettings) -> tuple[LogEntry, ...]:
        """Return the entries behind the seq `after`, as many as one message may carry."""
        at = after - self.base.seq
        entries = self.entries[at : at + settings.batch_entries_max]
        if len(entries) > 1 and self.bytes > settings.batch_bytes_max:
            size = 0
            for i, entry in enumerate(entries):
                size += len(entry.data)
                if i and size > settings.batch_bytes_max:
                    return tuple(entries[:i])
        return tuple(entries)

    # -- comparison with another log

    def matches(self, previous: Position, nonce: int) -> bool:
        """Return whether the log has the entry at `previous`, in a term with this nonce."""
        seq = previous.seq
        if seq > self.last_seq:
            return False
        term = term_at(self.chain, seq)
        if term is None:  # older than the first known term
            return seq < self.base.seq or seq == 0 or previous.epoch == self.base.epoch
        return term.epoch == previous.epoch and term.nonce == nonce

    def has(self, entry: LogEntry) -> bool:
        """Return whether the log has this entry. It must have the entry before this one."""
        term = term_at(self.chain, entry.seq)
        if term is None:
            return entry.seq <= self.base.seq
        if is_term(entry.data):
            return term == Term(entry.epoch, nonce_of(entry.data), entry.seq)
        return term.epoch == entry.epoch and term.first != entry.seq

    def parting(self, chain: tuple[Term, ...], last_seq: int) -> int:
        """Return the last seq up to which this log equals another, which has `chain` and ends with
        `last_seq`."""
        return parting(self.chain, self.last_seq, chain, last_seq)

    # -- changes

    def append(self, entry: LogEntry) -> None:
        """Add an entry at the end."""
        self.entries.append(entry)
        self.bytes += len(entry.data)
        self._add_term(entry)

    def cut(self, seq: int) -> None:
        """Remove the entries from `seq` on: they differ from the owner's.

        The copy must not know any of them to be committed.
        """
        assert seq > self.high, f"cutting at {seq}, high-water {self.high}"
        at = seq - self.base.seq - 1
        self.bytes -= sum(len(entry.data) for entry in self.entries[at:])
        del self.entries[at:]
        self.chain = until(self.chain, seq - 1)

    def replace(self, base: Position, chain: list[Term]) -> None:
        """Remove all entries. The copy now has a state that ends with `base`."""
        self.base = base
        self.entries = []
        self.bytes = 0
        self.chain = chain
        self.applied = self.high = base.seq

    def is_long(self, settings: ReplicationSettings) -> bool:
        """Return whether the log holds more than it may keep."""
        return (
            self.applied - self.base.seq > settings.log_keep_max
            or self.bytes > settings.log_keep_bytes
        )

    def shorten(self, keep_after: int, settings: ReplicationSettings) -> None:
        """Remove the oldest entries, until half of what the log may keep is left.

        Keep the entries behind the seq `keep_after`. The entry at that seq must be applied.
        """
        gone = 0
        while self.base.seq + gone < keep_after and (
            self.applied - self.base.seq - gone > settings.log_keep_max // 2
            or self.bytes > settings.log_keep_bytes // 2
        ):
            self.bytes -= len(self.entries[gone].data)
            gone += 1
        if gone:
            self.base = Position(*self.entries[gone - 1][:2])
            del self.entries[:gone]

    def _add_term(self, entry: LogEntry) -> None:
        if is_term(entry.data):
            self.chain.append(Term(entry.epoch, nonce_of(entry.data), entry.seq))
            del self.chain[:-TERMS_MAX]
