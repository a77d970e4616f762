"""Errors of calls as gRPC statuses."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status
from holdfast.errors import grpc_status
from holdfast.v1 import objects_pb2 as pb

DOMAIN = "holdfast.dev"
"""The domain in the ErrorInfo of errors; see google.rpc.ErrorInfo."""

_DESCRIPTION_CHARS_MAX = 200
_STATUS_MESSAGE_CHARS_MAX = 500
_STATUS_MESSAGE_BYTES_MAX = 1_500  # in percent-encoding, as gRPC sends it
_DETAILS_BYTES_MAX = 4_200  # gRPC sends them as base64, which is a third longer
_STATUS_DATA_BYTES_MAX = 2_000


async def abort(context: Any, error: pb.Error) -> None:
    """End a unary call with the error's gRPC status, and with the error as its detail.

    Both are cut to a size that every gRPC client accepts (8 KiB).
    """
    error.message = cut(error.message)
    if len(error.data) > _STATUS_DATA_BYTES_MAX:
        error.message += (
            f" (its data of {len(error.data)} bytes is too large for Call: use a Session)"
        )
        error.data = b""
    code = grpc_status(error)
    status = Status(code=code.value[0], message=error.message, details=details_of(error))
    await context.abort(
        code, error.message, (("grpc-status-details-bin", status.SerializeToString()),)
    )


def cut(message: str) -> str:
    """Return the part of a message for which the trailing metadata of a call has room."""
    if (
        len(message) <= _STATUS_MESSAGE_CHARS_MAX
        and len(quote(message)) <= _STATUS_MESSAGE_BYTES_MAX
    ):
        return message
    room, kept = _STATUS_MESSAGE_BYTES_MAX, 0
    for character in message[:_STATUS_MESSAGE_CHARS_MAX]:
        room -= len(quote(character))
        if room < 0:
            break
        kept += 1
    return message[:kept] + "..."


def details_of(error: pb.Error) -> list[AnyMessage]:
    """Return the error, and its facts in the standard forms of google.rpc."""
    facts = {
        "definite": str(error.definite).lower(),
        "request_id": error.request_id.hex(),
        "type": error.type,
        "path": error.path,
    }
    reason = pb.Code.Name(error.code).removeprefix("CODE_")
    messages: list[Any] = [
        error,
        error_details_pb2.ErrorInfo(
            reason=reason,
            domain=DOMAIN,
            metadata={name: fact for name, fact in facts.items() if fact},
        ),
    ]
    if error.code == pb.CODE_INVALID_ARGUMENT:
        field = error.path.removeprefix("$").removeprefix(".")
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=field, description=error.message[:_DESCRIPTION_CHARS_MAX]
        )
        messages.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retryable and error.retry_after_ms:
        again = error_details_pb2.RetryInfo()
        again.retry_delay.FromMilliseconds(error.retry_after_ms)
        messages.append(again)
    details: list[AnyMessage] = []
    for message in messages:
        detail = AnyMessage()
        detail.Pack(message)
        if details and sum(each.ByteSize() for each in (*details, detail)) > _DETAILS_BYTES_MAX:
            break
        details.append(detail)
    return details
