"""The errors that clients make themselves, for calls that brought no reply."""

from __future__ import annotations

from holdfast.client.requests import callee
from holdfast.errors import DeadlineExceeded
from holdfast.v1 import objects_pb2 as pb


def no_reply(call: pb.Call | pb.CallRequest, definite: bool = False) -> DeadlineExceeded:
    """Return the error of a call whose deadline passed without a reply."""
    return DeadlineExceeded(
        f"{callee(call)}: no reply before the deadline",
        definite=definite,
        retryable=True,
        request_id=call.request_id,
    )


def no_gateway(call: pb.Call | pb.CallRequest, why: str) -> str:
    """Return the message for a call that reached no gateway."""
    return f"{callee(call)}: the client reached no gateway before the deadline; {why}"
