"""The turns of a shard that goes to another node."""

from __future__ import annotations

from holdfast_node.log.shards import Shard, Shards
from holdfast_node.objects.activation import QUEUED, RUNNING
from holdfast_node.objects.activations import Activations
from holdfast_node.objects.cancellation import Cancellation
from holdfast_node.objects.requests import Requests, moved


class ShardTurns:
    """Ends the turns of shards that leave this node. Forgets the objects of shards that the node
    does not own any more."""

    def __init__(
        self,
        shards: Shards,
        requests: Requests,
        activations: Activations,
        cancellation: Cancellation,
    ) -> None:
        self._requests = requests
        self._activations = activations
        self._cancellation = cancellation
        shards.listeners.append(self._dropped)

    def close(self, shard: Shard) -> None:
        """Begin no new turns of a shard. Waiting calls are sent to the next owner."""
        shard.closing = True
        for turn in list(self._requests.turns.values()):
            activation = turn.activation
            if activation.shard is shard and turn.state == QUEUED and not turn.call.chain:
                assert activation.mailbox is not None
                activation.mailbox.remove(turn)
                self._requests.finish(turn, b"", moved(shard.number))

    def open(self, shard: Shard) -> None:
        """Begin turns of a shard again."""
        shard.closing = False

    def are_over(self, shard: Shard) -> bool:
        """Return whether no turn of a shard runs or waits, and no entry waits to be committed."""
        return shard.gathering is None and not any(
            turn.activation.shard is shard for turn in self._requests.turns.values()
        )

    def cancel(self, shard: Shard) -> None:
        """Cancel the running turns of a closed shard. The next owner runs them again. Reads end at
        once, because they can do no harm."""
        for turn in list(self._requests.turns.values()):
            if turn.activation.shard is shard and turn.state == RUNNING:
                if turn.read_rows is not None:
                    self._cancellation.drop_read(turn, moved(shard.number))
                turn.cancel()

    def _dropped(self, shards: set[Shard]) -> None:
        """Forget the activations of shards that this node does not own any more. Waiting calls are
        sent to the next owners."""
        for activation in self._activations.of_shards(shards):
            self._activations.forget(activation)
            for turn in activation.mailbox or ():
                if turn.state == QUEUED:
                    self._requests.finish(turn, b"", moved(activation.shard.number))
            activation.mailbox = None
            if activation.turn is not None:
                activation.turn.cancel()
            for read in list(activation.reads or ()):
                read.cancel()
        for shard in shards:
            entry, shard.gathering = shard.gathering, None
            if entry is not None:
                entry.abandoned = True
                entry.settle()
