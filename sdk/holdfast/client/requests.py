"""What the requests of both clients have: limits, deadlines and names, and the checks of what a
caller gives.
"""

from __future__ import annotations

from datetime import timedelta

from holdfast.app import kind_name
from holdfast.channels import MESSAGE_BYTES_MAX
from holdfast.deadlines import checked_timedelta
from holdfast.errors import TooLarge
from holdfast.frames import ENVELOPE_BYTES_MAX
from holdfast.ids import EFFECT, REQUEST_ID_BYTES, idempotent_id
from holdfast.v1 import objects_pb2 as pb

TIMEOUT_S = 30.0
"""The deadline, in seconds, of a call that brings none."""

DEADLINE_SLACK_S = 0.3
"""How long after a deadline, in seconds, the client still waits for the cluster's answer. That
answer says more than a timeout of the client.
"""

CALL_BYTES_MAX = MESSAGE_BYTES_MAX - 1024
"""The most bytes of a call with its arguments and metadata. The cluster's own limit for arguments
is lower.
"""


def callee(call: pb.Call | pb.CallRequest) -> str:
    """Return the name of a call, for its errors."""
    return f"{call.kind}/{call.key}.{call.method}()"


def timeout_ms(left_s: float) -> int:
    """Return the timeout of an attempt on the wire, if the deadline is `left_s` seconds away."""
    return max(1, int(left_s * 1000))


def check_target(
    kind: type | str, key: object, request_id: bytes | None, idempotency_key: str | None
) -> None:
    """Raise TypeError if the key is not text, ValueError for a wrong id of the caller's own."""
    if not isinstance(key, str):
        raise TypeError(f"an object's key is text, not {type(key).__name__}: {key!r}")
    check_own_id(kind_name(kind), key, request_id, idempotency_key)


def check_own_id(
    kind: str, key: str, request_id: bytes | None, idempotency_key: str | None
) -> None:
    """Raise ValueError for a wrong request id or idempotency key of the caller's own: both given, a
    wrong size, or the cluster's own range.
    """
    if idempotency_key is not None:
        if request_id is not None:
            raise ValueError("a call has a request_id or an idempotency_key, not both")
        idempotent_id(kind, key, idempotency_key)
    elif request_id is not None:
        if len(request_id) != REQUEST_ID_BYTES:
            raise ValueError(
                f"a request id has {REQUEST_ID_BYTES} bytes, this one has {len(request_id)}"
            )
        if request_id[0] >= EFFECT:
            raise ValueError(
                f"request ids that begin with {request_id[:1].hex()} are the cluster's own: use a"
                " UUIDv7"
            )


def delay_ms(delay: timedelta | None) -> int:
    """Return a delay in ms. Raise ValueError if it is negative."""
    if delay is None:
        return 0
    if checked_timedelta("a delay", delay) < timedelta():
        raise ValueError(f"a delay must not be negative, but it is {delay}")
    return round(delay.total_seconds() * 1000)


def check_size(size: int, payload: int, definite: bool) -> None:
    """Raise TooLarge if a call is larger than gateways accept. `size`: its bytes; `payload`: the
    bytes of its arguments.
    """
    if size > CALL_BYTES_MAX:
        raise TooLarge(
            f"the call has {size} bytes; at most {CALL_BYTES_MAX} are allowed", definite=definite
        )
    if size - payload > ENVELOPE_BYTES_MAX:
        raise TooLarge(
            f"names and metadata of the call have {size - payload} bytes; at most"
            f" {ENVELOPE_BYTES_MAX} are allowed",
            definite=definite,
        )
