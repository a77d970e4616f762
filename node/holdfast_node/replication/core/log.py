"""The log of one copy of a shard, as its replica sees it. Pure.

The replica decides what goes into the log. The log knows where its entries are, which terms it is
made of, and how far its copy knows it to be committed and has applied it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from holdfast_node.log.changes import is_term, nonce_of
from holdfast_node.replication.core.chain import TERMS_MAX, Term, parting, term_at, until
from holdfast_node.replication.core.events import LogEntry, Position, ReplicationSettings


@dataclass(slots=True)
class ReplicaLog:
    """Entries behind a base, with the chain of terms and two marks. Fields are to read."""

    base: Position = field(default_factory=lambda: Position(0, 0))
    """The position of the entry before the first of `entries`."""
    entries: list[LogEntry] = field(default_factory=list)
    bytes: int = 0
    """The bytes of the entries' data."""
    chain: list[Term] = field(default_factory=list)
    """The terms of the log, with the terms that it does not hold any more."""
    applied: int = 0
    """The seq of the last entry that the state includes."""
    high: int = 0
    """The high-water: everything up to this seq is known to be committed."""

    @classmethod
    def of(
        cls, base: Position, entries: list[LogEntry], chain: list[Term], applied: int, high: int
    ) -> ReplicaLog:
        """Return the log that a disk holds."""
        self = cls(base, list(entries), sum(len(entry.data) for entry in entries), list(chain))
        self.applied = applied
        for entry in entries:
            self._add_term(entry)
        self.high = max(applied, min(high, self.last_seq))
        return self

    # -- where things are

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
        """The position of the newest entry of a turn: the newest that is not the first of a
        term."""
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
        """Return the position of an entry that the log holds, or of its base."""
        index = seq - self.base.seq - 1
        if index < 0:
            return self.base
        epoch, seq, _ = self.entries[index]
        return Position(epoch, seq)

    def nonce_at(self, seq: int) -> int:
        """Return the nonce of the term that an entry belongs to; 0 before the first known term."""
        term = term_at(self.chain, seq)
        return 0 if term is None else term.nonce

    def batch(self, after: int, settings: ReplicationSettings) -> tuple[LogEntry, ...]:
        """Return the entries behind this seq that one message may carry."""
        at = after - self.base.seq
        entries = self.entries[at : at + settings.batch_entries_max]
        if len(entries) > 1 and self.bytes > settings.batch_bytes_max:
            size = 0
            for i, entry in enumerate(entries):
                size += len(entry.data)
                if i and size > settings.batch_bytes_max:
                    return tuple(entries[:i])
        return tuple(entries)

    # -- whether it equals another

    def matches(self, previous: Position, nonce: int) -> bool:
        """Return whether the log has this entry, which belongs to the term with this nonce."""
        seq = previous.seq
        if seq > self.last_seq:
            return False
        term = term_at(self.chain, seq)
        if term is None:  # before the first term that is known
            return seq < self.base.seq or seq == 0 or previous.epoch == self.base.epoch
        return term.epoch == previous.epoch and term.nonce == nonce

    def has(self, entry: LogEntry) -> bool:
        """Return whether the log, which has the entry before this one, has this one as well."""
        term = term_at(self.chain, entry.seq)
        if term is None:
            return entry.seq <= self.base.seq
        if is_term(entry.data):
            return term == Term(entry.epoch, nonce_of(entry.data), entry.seq)
        return term.epoch == entry.epoch and term.first != entry.seq

    def parting(self, chain: tuple[Term, ...], last_seq: int) -> int:
        """Return the last seq up to which this log equals one with this chain and this end."""
        return parting(self.chain, self.last_seq, chain, last_seq)

    # -- changes

    def append(self, entry: LogEntry) -> None:
        """Add an entry at the end."""
        self.entries.append(entry)
        self.bytes += len(entry.data)
        self._add_term(entry)

    def cut(self, seq: int) -> None:
        """Forget the log from `seq` on: the owner has something else there. Never cut an entry that
        is known to be committed."""
        assert seq > self.high, f"cutting at {seq}, high-water {self.high}"
        at = seq - self.base.seq - 1
        self.bytes -= sum(len(entry.data) for entry in self.entries[at:])
        del self.entries[at:]
        self.chain = until(self.chain, seq - 1)

    def replace(self, base: Position, chain: list[Term]) -> None:
        """Hold no entries, but a state that ends with `base`."""
        self.base = base
        self.entries = []
        self.bytes = 0
        self.chain = chain
        self.applied = self.high = base.seq

    def is_long(self, settings: ReplicationSettings) -> bool:
        """Return whether the log is to be shortened."""
        return (
            self.applied - self.base.seq > settings.log_keep_max
            or self.bytes > settings.log_keep_bytes
        )

    def shorten(self, keep_after: int, settings: ReplicationSettings) -> None:
        """Forget applied entries, about half of what the log may keep. What is behind the seq
        `keep_after` stays."""
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
