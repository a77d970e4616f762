"""The output gate: an answer leaves when the writes that it tells of are committed.

If a turn wrote, its reply leaves with the turn's entry. If a turn did not write, or failed, its
answer waits for the object's newest entry. So no answer tells of writes that may yet be lost.
"""

from __future__ import annotations

from holdfast.errors import Unavailable, error_to_proto

from holdfast_node.log.shards import Entry
from holdfast_node.objects.activation import Turn
from holdfast_node.objects.requests import Requests


def answer_when_committed(requests: Requests, turn: Turn, entry: Entry | None) -> None:
    """Answer a turn or a read when the writes that it made (`entry`) or may have seen are
    committed."""
    activation = turn.activation
    gate = entry or activation.uncommitted
    if gate is None:
        requests.finish(turn, turn.result, turn.error)
    elif entry is None and activation.shard.read_only is not None:
        # The write that it saw may wait for long. If the answer waited too, such answers would fill
        # the node.
        held = Unavailable(
            f"a write of {activation.name} waits to commit: {activation.shard.read_only}",
            definite=turn.calls_made == 0,
            retryable=True,
            retry_after_s=1.0,
        )
        held.request_id = turn.request_id
        requests.finish(turn, b"", error_to_proto(held))
    else:
        requests.finish_with(gate, turn)
