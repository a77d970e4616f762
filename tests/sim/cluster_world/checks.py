"""What must always hold, seen from outside: by callers, and by who looks at the machines. Each
check raises `Broken`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from holdfast_cluster.clocks.cluster_time import Time
from holdfast_cluster.placement.model import Assignment

from .machine import START_S

if TYPE_CHECKING:
    from .world import World


class Broken(AssertionError):
    """A promise does not hold."""


def first(error: BaseException) -> BaseException:
    """What a group of exceptions began with."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@dataclass
class Operation:
    """One use of a list by a caller. `length`: how long the list was, as the answer shows; None
    while the answer is not there."""

    key: str
    called_at: float
    element: str = ""
    """What is appended; empty for a read."""
    answered_at: float | None = None
    length: int | None = None
    elements: list[str] | None = None
    impossible: bool = False
    """The caller was told that it never takes effect."""


@dataclass
class History:
    """What callers did, and what they were told."""

    operations: list[Operation] = field(default_factory=list)

    def begin(self, key: str, now: float, element: str = "") -> Operation:
        operation = Operation(key, now, element)
        self.operations.append(operation)
        return operation

    @property
    def answers(self) -> int:
        return sum(operation.answered_at is not None for operation in self.operations)

    def check(self, lists: dict[str, list[str]]) -> None:
        """Linearizable, for each list by itself, whose end is known."""
        for key, final in lists.items():
            _check_list(
                key, final, [operation for operation in self.operations if operation.key == key]
            )


def _check_list(key: str, final: list[str], operations: list[Operation]) -> None:
    place = {element: i for i, element in enumerate(final)}
    if len(place) != len(final):
        twice = [element for element in place if final.count(element) > 1]
        raise Broken(f"once: {key} has {twice[:5]} more than once")
    asked = {operation.element: operation for operation in operations if operation.element}
    for operation in operations:
        if (
            operation.element
            and operation.length is not None
            and place.get(operation.element) != operation.length - 1
        ):
            raise Broken(
                f"acknowledged means kept: {key} has {operation.element} at"
                f" {place.get(operation.element)}, acknowledged at {operation.answered_at:.3f} was"
                f" {operation.length - 1}"
            )
        if operation.impossible and operation.element in place:
            raise Broken(
                f"definite means never: {operation.element} is in {key}, though its caller was told"
                " that it never would be"
            )
        if operation.elements is not None:
            length = len(operation.elements)
            if operation.elements != final[:length]:
                raise Broken(
                    f"linearizable: a read of {key} at {operation.called_at:.3f} shows"
                    f" {operation.elements[-3:]} at its end, where"
                    f" {final[max(0, length - 3) : length]} came to be"
                )
            for element in operation.elements:
                assert operation.answered_at is not None
                if element not in asked or asked[element].called_at > operation.answered_at:
                    raise Broken(
                        f"linearizable: a read of {key} shows {element} before anybody appended it"
                    )
    # A call that begins after an answer sees at least what that answer showed.
    answered = sorted(
        (o.answered_at, o.length)
        for o in operations
        if o.answered_at is not None and o.length is not None
    )
    longest = 0
    at = 0
    for operation in sorted(operations, key=lambda o: o.called_at):
        while at < len(answered) and answered[at][0] < operation.called_at:
            longest = max(longest, answered[at][1])
            at += 1
        if operation.length is not None and operation.length - bool(operation.element) < longest:
            raise Broken(
                f"linearizable: an answer of {key} to a call of {operation.called_at:.3f} shows a"
                f" length of {operation.length - bool(operation.element)}, an earlier one {longest}"
            )


def in_sync_grows_by_its_owner(
    world: World, number: int, before: Assignment, now: Assignment
) -> None:
    """A node that comes into an in-sync set has every committed entry. Only the owner knows
    which nodes have them, so the owner asked for the change."""
    added = set(now.in_sync) - set(before.in_sync)
    owner = next(
        (
            node
            for node in world.nodes.values()
            if node.replicas is not None and node.replicas._node == before.owner
        ),
        None,
    )
    if added and owner is not None and owner.runs and owner.replicas is not None:
        copy = owner.replicas._copies.get(number)
        if copy is None or not (copy.replica.owning and copy.replica.epoch == before.epoch):
            return  # it is the owner no more; what it has asked for before may happen late
        proposal = copy.replica._proposal
        if proposal is None or not added <= set(proposal.effect.to.in_sync):
            raise Broken(
                f"in sync by its owner's word: {sorted(added)} came into the in-sync set of shard"
                f" {number}, not by {before.owner}"
            )


TIME_OFF_MAX_S = 5.0
"""Clocks whose rates are 5 % wrong run freely while no majority is heard."""


def time_is_right(world: World) -> None:
    """No process that knows the cluster's time is far from what a majority of the machines shows,
    whatever its own shows."""
    for node in world.nodes.values():
        process = node.process
        if (
            process is None
            or process.stopped
            or node.shards is None
            or not isinstance(time := node.shards.clock, Time)
        ):
            continue
        now = process.machine.boottime()
        off = time.clock.now_ms(now) / 1000 - START_S - world.loop.now
        if time.started and abs(off) > TIME_OFF_MAX_S:
            raise Broken(
                f"time: {node.name} takes it to be {off:.1f} s later than it is at"
                f" {world.loop.now:.3f}"
            )


def one_serves(world: World) -> None:
    """At no time do two nodes serve a shard."""
    serving: dict[int, str] = {}
    for node in world.nodes.values():
        process = node.process
        if process is None or process.stopped or (shards := node.shards) is None:
            continue
        for shard in shards.serving(process.machine.boottime()):
            if (other := serving.setdefault(shard.number, node.name)) != node.name:
                raise Broken(
                    f"one owner: {other} and {node.name} serve shard {shard.number} at"
                    f" {world.loop.now:.3f}"
                )
