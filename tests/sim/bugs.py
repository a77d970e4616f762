"""Replicas, controllers and shells that each break one rule of the protocol. The simulator has to
catch every one of them."""

from __future__ import annotations

from typing import Any

import msgspec
from holdfast_cluster.placement.model import Assignment, Member, View
from holdfast_cluster.placement.plan import Transition, plan
from holdfast_node import replication as r
from holdfast_node.log.changes import is_term
from holdfast_node.replication.core.log import ReplicaLog

from .world import SHARD, STRIKES, Node


class CountsItsOwnDiskTooEarly(r.Replica):
    """Answers and commits before its own write is on disk."""

    def on_disk(self, number: int) -> bool:
        return True

    def _persisted(self, number: int, now: float) -> None:
        self._own = self._own or [(0, self.persisted)]
        super()._persisted(number, now)

    def _log(self, data: bytes) -> None:
        super()._log(data)
        self.persisted = self.log.last_seq


class CommitsWithoutOneInSyncMember(r.Replica):
    def counted(self) -> set[str]:
        return set(sorted(super().counted())[1:])


class DoesNotCutItsTail(r.Replica):
    """Takes what the owner sends for appended, and keeps what it had."""

    class log_class(ReplicaLog):
        __slots__ = ()

        def cut(self, seq: int) -> None:
            pass

        def matches(self, previous: r.Position, nonce: int) -> bool:
            return previous.seq <= self.last_seq

    def _replicate(self, sender: str, message: r.Replicate, now: float) -> None:
        known = tuple(
            mine if (mine := self.log.at(entry.seq)) is not None else entry
            for entry in message.entries
        )
        super()._replicate(sender, msgspec.structs.replace(message, entries=known), now)


class ServesBeforeItsFirstEntry(r.Replica):
    """Answers by what it has applied, though more may have been committed by the owner before."""

    def serves_until(self, now: float) -> float:
        committed, self.committed = self.committed, max(self.committed, self.first_seq)
        try:
            return super().serves_until(now)
        finally:
            self.committed = committed


class DoesNotWaitOutItsPromise(r.Replica):
    def may_serve_from(self, assignment: Assignment) -> float:
        return 0.0


class RemovesBeforeEtcdAgreed(r.Replica):
    """Counts what it has asked for, not what etcd may still believe."""

    def counted(self) -> set[str]:
        if self._proposal is not None:
            return set(self._proposal.effect.to.in_sync) - {self.me}
        return super().counted()


class CountsAJoinerTooLate(r.Replica):
    """Counts a joining replica only once it has heard that etcd has it."""

    def counted(self) -> set[str]:
        assert self.assignment is not None
        return set(self.assignment.in_sync) - {self.me}


class DoesNotCheckEpochs(r.Replica):
    def outdated(self, epoch: int) -> bool:
        return False

    def accepts(self, epoch: int) -> bool:
        return True


class ReleasesBeforeItServes(r.Replica):
    """Waives promises that it has not waited out itself."""

    def may_release(self, now: float) -> bool:
        return self.owning


class ServesOnWhileItReleases(r.Replica):
    """Goes on until it hears that its release has happened."""

    def serves_until(self, now: float) -> float:
        was, self.releasing = self.releasing, False
        try:
            return super().serves_until(now)
        finally:
            self.releasing = was


class TrustsAnUnknownProposal(r.Replica):
    """Takes a lost reply for a yes."""

    def _proposal_result(
        self, happened: bool | None, revision: int, written: Assignment | None, now: float
    ) -> None:
        if happened is None and self._proposal is not None and self.assignment is not None:
            self.assignment = msgspec.structs.replace(
                self.assignment, in_sync=self._proposal.effect.to.in_sync
            )
            self._proposal = None
        else:
            super()._proposal_result(happened, revision, written, now)


class ForgetsItsPromisesInARestart(r.Replica):
    @classmethod
    def start(cls, *given: Any) -> r.Replica:
        replica = super().start(*given)
        replica.promises.given_until = 0.0
        return replica


class IsElectedUnasked(r.Replica):
    """A copy that was restarted relies on itself, as if a disk could not be put back."""

    def may_begin(self, now: float) -> bool:
        return True


class IgnoresItsHighWater(r.Replica):
    """Follows the owner, whatever it knows to be committed."""

    class log_class(ReplicaLog):
        __slots__ = ()

        def cut(self, seq: int) -> None:
            self.applied = min(self.applied, seq - 1)
            super().cut(seq)

    def _replicate(self, sender: str, message: r.Replicate, now: float) -> None:
        self.log.high = 0
        super()._replicate(sender, message, now)
        self.committed = min(self.committed, self.log.applied)


class NeverConcedes(r.Replica):
    """A restarted owner goes on with what it has, though others have told it of more."""

    def _weigh(self, now: float) -> None:
        pass


class TakesEveryCopyForUnbroken(r.Replica):
    @classmethod
    def start(cls, *given: Any) -> r.Replica:
        replica = super().start(*given)
        replica.unbroken = True
        return replica


class SendsASnapshotWithoutItsPosition(Node):
    """The state goes on while it is sent, and the position is that of the beginning."""

    def snapshot(self, epoch: int) -> r.Snapshot:
        right = super().snapshot(epoch)
        later = [
            entry.data
            for entry in self.replica.log.entries
            if entry.seq > right.position.seq and not is_term(entry.data)
        ]
        return msgspec.structs.replace(
            right, state=msgspec.msgpack.encode([*self.state, *later[:1]])
        )


def elects_outside_in_sync(
    view: View, members_min: int, expected: dict[str, Member]
) -> list[Transition]:
    """Prefers a node that is there to a node that has the data."""
    transitions = plan(view, members_min, expected)
    versioned = view.assignments.get(SHARD)
    if transitions or versioned is None or versioned.assignment.owner in view.members:
        return transitions
    now = versioned.assignment
    return [
        Transition(
            SHARD,
            versioned.revision,
            Assignment(now.epoch + 1, member.id, member.incarnation, (member.id,)),
            "any",
        )
        for member in list(view.members.values())[:1]
    ]


# The first world that caught it when it was looked for from 0 on: tried first, so that the test is
# quick.
CAUGHT_BY = {
    "own disk counted before it persisted": 67,
    "commit without one in-sync member": 28,
    "election outside in-sync": 37,
    "no tail cut": 3,
    "served before its first entry": 33,
    "promise not waited out": 43,
    "promises forgotten in a restart": 876,
    "removal before etcd agreed": 258,
    "joiner counted too late": 344,
    "epoch not checked": 21,
    "released before it served": 613,
    "served on while releasing": 192,
    "an unknown proposal taken for a yes": 37,
    "snapshot without its log position": 0,
    "elected without a report": 30,
    "high-water ignored": 429,
    "reports not heeded": 18,
    "restarted copy taken for unbroken": 30,
}

DISKS_GO_BACK = (*STRIKES, *("lose disk",) * 8)

BUGS: dict[str, dict[str, Any]] = {
    # One copy that lost its tail is found out; only when all lose power at once is anything lost.
    "own disk counted before it persisted": {
        "replica": CountsItsOwnDiskTooEarly,
        "strikes": (*STRIKES, *("all",) * 15),
    },
    "commit without one in-sync member": {"replica": CommitsWithoutOneInSyncMember},
    "election outside in-sync": {"planner": elects_outside_in_sync},
    "no tail cut": {"replica": DoesNotCutItsTail},
    "served before its first entry": {"replica": ServesBeforeItsFirstEntry},
    "promise not waited out": {"replica": DoesNotWaitOutItsPromise},
    "promises forgotten in a restart": {"replica": ForgetsItsPromisesInARestart},
    "removal before etcd agreed": {"replica": RemovesBeforeEtcdAgreed},
    "joiner counted too late": {"replica": CountsAJoinerTooLate},
    "epoch not checked": {"replica": DoesNotCheckEpochs},
    "released before it served": {"replica": ReleasesBeforeItServes},
    "served on while releasing": {"replica": ServesOnWhileItReleases},
    "an unknown proposal taken for a yes": {"replica": TrustsAnUnknownProposal},
    "elected without a report": {"replica": IsElectedUnasked, "strikes": DISKS_GO_BACK},
    "high-water ignored": {"replica": IgnoresItsHighWater, "strikes": DISKS_GO_BACK},
    "reports not heeded": {"replica": NeverConcedes, "strikes": DISKS_GO_BACK},
    "restarted copy taken for unbroken": {
        "replica": TakesEveryCopyForUnbroken,
        "strikes": DISKS_GO_BACK,
    },
    "snapshot without its log position": {"shell": SendsASnapshotWithoutItsPosition},
}
