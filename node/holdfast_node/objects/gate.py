"""The output gate: an answer leaves when what it tells of is committed.

A reply whose turn wrote leaves with the entry it wrote to. Any other reply of that object, an
error's too, that comes while the object's newest entry is not committed, leaves with that entry, so
no reply tells of what may yet be lost.
"""

from __future__ import annotations

from holdfast.errors import Unavailable, error_to_proto

from holdfast_node.log.shards import Entry
from holdfast_node.objects.activation import Turn
from holdfast_node.objects.requests import Requests


def answer_when_committed(requests: Requests, turn: Turn, entry: Entry | None) -> None:
    """Answer a turn, or a read, when what it wrote (`entry`), or may have seen, is committed."""
    activation = turn.activation
    gate = entry or activation.uncommitted
    if gate is None:
        requests.finish(turn, turn.result, turn.error)
    elif entry is None and activation.shard.read_only is not None:
        # What it saw may wait for long: it must not wait with it, and fill the node.
        held = Unavailable(
            f"{activation.name} has a write that waits: {activation.shard.read_only}",
            definite=turn.calls_made == 0,
            retryable=True,
            retry_after_s=1.0,
        )
        held.request_id = turn.request_id
        requests.finish(turn, b"", error_to_proto(held))
    else:
        requests.finish_with(gate, turn)
