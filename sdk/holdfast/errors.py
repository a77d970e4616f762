"""The errors of Holdfast: one class for each code. One table maps the codes to gRPC status.

Every error answers two questions of a caller. `definite`: did the request certainly have no effect?
`retryable`: can the same request succeed later? If `definite` is false, the outcome of the call is
unknown. Then the caller may repeat the call with the same request id: the effect still happens
once.

The rule of `definite`: an error is definite only if no attempt of the request, at any hop, has had
an effect or can ever have one. The error of one attempt says nothing about the other attempts. So
every call carries `attempt`, the number of its attempts whose outcome is unknown:

1. A sender that sends a call again counts the attempt before, unless the answer to that attempt was
   a definite error. The sender counts an attempt when it gives the attempt up: the connection
   broke, the shard moved, or the answer was not definite.
2. A process that makes an error for a call sets `definite` only if `attempt` is 0 and this delivery
   has no effect. That is so if the call was refused before it ran, or was rolled back before it had
   called another object.
3. A process that passes an error on keeps `definite` only if `attempt` is 0 by its own count.
4. A call with a request id or an idempotency key of the caller's own begins at 1, because only the
   caller knows of earlier attempts. Calls of a turn whose own attempt is not 0 begin at 1 too, and
   so do calls of turns that notifications and alarms cause.

A call may be sent many times with attempt 0, if all earlier attempts ended with definite errors. In
doubt, an attempt counts. `not_definite_after` applies the rule to an error.

On the wire an error is a `holdfast.v1.Error`. `error_from_proto` is the inverse of
`error_to_proto`, with one exception: an error class of the user's own arrives as
`ApplicationError`, with its name in `type`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import grpc
import msgspec

from holdfast.v1 import objects_pb2 as pb


def code_name(code: int) -> str:
    """Return the name of a wire code as errors show it: `OK` for no error, and the number for a
    code that this version does not know.
    """
    if code == pb.CODE_UNSPECIFIED:
        return "OK"
    known = pb.Code.DESCRIPTOR.values_by_number.get(code)
    return str(code) if known is None else known.name.removeprefix("CODE_")


class HoldfastError(Exception):
    """The base class of all errors that calls of Holdfast raise.

    Attributes: `message`; `definite`, whether the request certainly had no effect; `retryable`,
    whether the same request can succeed later; `retry_after_s`, the pause in seconds that the
    cluster asks for; `request_id`, which also finds the request in logs.
    """

    code: ClassVar[str] = "INTERNAL"
    callee: str = ""
    """The call that returned this error, as `Kind/key.method()`. Empty if the error is not from a
    call.
    """

    def __init__(
        self,
        message: object,
        *,
        definite: bool = False,
        retryable: bool = False,
        retry_after_s: float = 0.0,
        request_id: bytes = b"",
    ) -> None:
        self.message = text = as_text(message)
        super().__init__(text)
        self.definite = definite
        self.retryable = retryable
        self.retry_after_s = retry_after_s
        self.request_id = request_id

    def __str__(self) -> str:
        """Return the message. An error that a call returned adds the call, and the request id to
        search logs for.
        """
        if not self.callee:
            return self.message
        text = (
            self._told()
            if self.message.startswith(self.callee.removesuffix("()"))
            else f"{self.callee}: {self._told()}"
        )
        return f"{text} (request {self.request_id.hex()})" if self.request_id else text

    def _told(self) -> str:
        return self.message


def as_text(message: object) -> str:
    """Return the text of an error's message. For an exception, or any other value that is no text,
    this is its `str()`, or else its class name.
    """
    if isinstance(message, str):
        return message
    try:
        return str(message) or type(message).__name__
    except Exception:
        return type(message).__name__


class NotFound(HoldfastError):
    """There is no such kind or method. The message names the nearest ones."""

    code = "NOT_FOUND"


class InvalidArgument(HoldfastError):
    """An argument is missing, unexpected or of the wrong type. `path` names the field, as in
    `$.change.price`.
    """

    code = "INVALID_ARGUMENT"

    def __init__(self, message: object, *, path: str = "", **rest: Any) -> None:
        super().__init__(message, **rest)
        self.path = as_text(path)


class UnfitArguments(InvalidArgument):
    """The arguments do not fit the handler. The handler did not run."""


class ApplicationError(HoldfastError):
    """The handler raised an exception, and its turn was rolled back.

    `type` is the name of the exception's class, `data` is the data that it carried.
    """

    code = "APPLICATION"

    def __init__(
        self, message: object, *, type: str = "", data: dict[str, Any] | None = None, **rest: Any
    ) -> None:
        super().__init__(message, **rest)
        self.type = as_text(type) if type else self.__class__.__name__
        self.data = data or {}

    def _told(self) -> str:
        return f"{self.type}: {self.message}"


class Rejected(ApplicationError):
    """Refuses a request on the application's grounds. Raise it in a handler: `raise Rejected("too
    late", limit=3)`.

    The turn is rolled back. The caller gets a `Rejected` with the same message and data. Holdfast
    does not try the request again.
    """

    def __init__(self, message: object, /, **data: Any) -> None:
        super().__init__(message, data=data, definite=True)


class WrongOwner(HoldfastError):
    """The node that was asked does not serve the shard. Gateways hold the call and send it again,
    so callers do not see this error.
    """

    code = "WRONG_OWNER"


class LacksKind(WrongOwner):
    """The node that was asked serves the shard, but does not have the kind. Another node has it, or
    may have it.
    """


class Unavailable(HoldfastError):
    """The object cannot be served now: its node is away, or the client reached no gateway before
    the deadline.
    """

    code = "UNAVAILABLE"


class Overloaded(HoldfastError):
    """A named limit is reached, such as mailbox, calls in flight or held calls. Call again after
    `retry_after_s` seconds.
    """

    code = "OVERLOADED"


class DeadlineExceeded(HoldfastError):
    """The deadline passed. If the error is `definite`, the turn was rolled back or never
    started.
    """

    code = "DEADLINE_EXCEEDED"


class Aborted(HoldfastError):
    """The turn was ended and rolled back: an operator aborted it (`holdfast objects abort`), or its
    caller cancelled the call.
    """

    code = "ABORTED"


class Deadlock(HoldfastError):
    """The call would wait for itself. `cycle` names the objects of the cycle, with the object that
    was called as the last one.
    """

    code = "DEADLOCK"

    def __init__(self, message: object, *, cycle: tuple[str, ...] = (), **rest: Any) -> None:
        super().__init__(message, **rest)
        self.cycle = cycle


class TooLarge(HoldfastError):
    """An argument, a result, a value, the writes of a turn or a chain of calls is over its
    limit.
    """

    code = "TOO_LARGE"


class Unauthenticated(HoldfastError):
    """The gateway does not know the caller: there is no token, the token is unknown or has expired,
    or there is no certificate.
    """

    code = "UNAUTHENTICATED"


class PermissionDenied(HoldfastError):
    """The gateway's policy does not allow this subject to make the call."""

    code = "PERMISSION_DENIED"


class InternalError(HoldfastError):
    """A fault of Holdfast itself. The request id finds it in the log."""

    code = "INTERNAL"


MESSAGE_CHARS_MAX = 10_000
"""Longer messages of errors are cut to this many characters on the wire."""

PATH_CHARS_MAX = 300
"""A longer path of an InvalidArgument, or a longer name of an exception's class, is cut to this
many characters.
"""

DATA_BYTES_MAX = 1 << 20
"""Larger data of an ApplicationError is left out, and the message says so."""

# code name -> (number on the wire, gRPC status of Objects.Call, class)
CODES: dict[str, tuple[pb.Code, grpc.StatusCode, type[HoldfastError]]] = {
    "NOT_FOUND": (pb.CODE_NOT_FOUND, grpc.StatusCode.NOT_FOUND, NotFound),
    "INVALID_ARGUMENT": (
        pb.CODE_INVALID_ARGUMENT,
        grpc.StatusCode.INVALID_ARGUMENT,
        InvalidArgument,
    ),
    "APPLICATION": (pb.CODE_APPLICATION, grpc.StatusCode.FAILED_PRECONDITION, ApplicationError),
    "WRONG_OWNER": (pb.CODE_WRONG_OWNER, grpc.StatusCode.UNAVAILABLE, WrongOwner),
    "UNAVAILABLE": (pb.CODE_UNAVAILABLE, grpc.StatusCode.UNAVAILABLE, Unavailable),
    "OVERLOADED": (pb.CODE_OVERLOADED, grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
    "DEADLINE_EXCEEDED": (
        pb.CODE_DEADLINE_EXCEEDED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        DeadlineExceeded,
    ),
    "DEADLOCK": (pb.CODE_DEADLOCK, grpc.StatusCode.ABORTED, Deadlock),
    "ABORTED": (pb.CODE_ABORTED, grpc.StatusCode.ABORTED, Aborted),
    "TOO_LARGE": (pb.CODE_TOO_LARGE, grpc.StatusCode.OUT_OF_RANGE, TooLarge),
    "UNAUTHENTICATED": (pb.CODE_UNAUTHENTICATED, grpc.StatusCode.UNAUTHENTICATED, Unauthenticated),
    "PERMISSION_DENIED": (
        pb.CODE_PERMISSION_DENIED,
        grpc.StatusCode.PERMISSION_DENIED,
        PermissionDenied,
    ),
    "INTERNAL": (pb.CODE_INTERNAL, grpc.StatusCode.INTERNAL, InternalError),
}
_BY_NUMBER = {number: name for name, (number, _, _) in CODES.items()}


def grpc_status(error: pb.Error) -> grpc.StatusCode:
    """Return the gRPC status of `Objects.Call` for an error.

    A handler that refuses gives FAILED_PRECONDITION. A handler that crashes gives UNKNOWN.
    """
    if error.code == pb.CODE_APPLICATION and not is_refusal(error):
        return grpc.StatusCode.UNKNOWN
    return CODES[_BY_NUMBER.get(error.code, "INTERNAL")][1]


def is_refusal(error: pb.Error) -> bool:
    """Return whether a handler refused on its own grounds. Errors of earlier versions say so only
    by their type.
    """
    return error.rejected or error.type == Rejected.__name__


def error_to_proto(error: HoldfastError, codec: pb.Codec = pb.CODEC_MSGPACK) -> pb.Error:
    """Return the wire form of an error. `codec` encodes the data of an `ApplicationError`."""
    number = CODES[error.code][0] if error.code in CODES else pb.CODE_INTERNAL
    out = pb.Error(
        code=number,
        message=_cut(error.message),
        definite=error.definite,
        retryable=error.retryable,
        retry_after_ms=max(0, min(round(error.retry_after_s * 1000), 1 << 31)),
        request_id=error.request_id,
    )
    match error:
        case ApplicationError():
            out.type = _cut(error.type, PATH_CHARS_MAX)
            out.rejected = isinstance(error, Rejected)
            if error.data:
                module = msgspec.json if codec == pb.CODEC_JSON else msgspec.msgpack
                try:
                    data = module.encode(error.data)
                except Exception as unfit:  # users may put anything there; the error must arrive
                    out.message = _cut(f"{error.message} (its data was left behind: {unfit})")
                else:
                    if len(data) <= DATA_BYTES_MAX:
                        out.data = data
                    else:
                        out.message = (
                            f"{_cut(error.message)} (its data, {len(data)} bytes, was left behind)"
                        )
        case InvalidArgument():
            out.path = _cut(error.path, PATH_CHARS_MAX)
        case LacksKind():
            out.lacks_kind = True
        case Deadlock():
            out.cycle.extend(error.cycle)
    return out


def not_definite_after(attempt: int, error: pb.Error) -> pb.Error:
    """Clear `definite` in an error if an earlier attempt of its call has an unknown outcome, and
    return the error. See the rule of `definite` above.
    """
    if attempt and error.definite:
        error.definite = False
    return error


def error_from_proto(message: pb.Error, codec: pb.Codec = pb.CODEC_MSGPACK) -> HoldfastError:
    """Return the exception for a wire error. A code that this version does not know becomes
    `InternalError`.
    """
    name = _BY_NUMBER.get(message.code, "INTERNAL")
    error: HoldfastError
    if name == "APPLICATION":
        module = msgspec.json if codec == pb.CODEC_JSON else msgspec.msgpack
        try:
            data = module.decode(message.data) if message.data else {}
        except Exception:  # data of a later version, or data that is no msgpack or JSON
            data = {}
        if not isinstance(data, dict) or not all(isinstance(name, str) for name in data):
            data = {}
        if is_refusal(message):
            error = Rejected(message.message, **data)
            error.type = message.type
        else:
            error = ApplicationError(message.message, type=message.type, data=data)
    elif name == "INVALID_ARGUMENT":
        error = InvalidArgument(message.message, path=message.path)
    elif name == "DEADLOCK":
        error = Deadlock(message.message, cycle=tuple(message.cycle))
    elif name == "WRONG_OWNER" and message.lacks_kind:
        error = LacksKind(message.message)
    else:
        error = CODES[name][2](message.message)
    error.definite = message.definite
    error.retryable = message.retryable
    error.retry_after_s = message.retry_after_ms / 1000
    error.request_id = message.request_id
    return error


def _cut(text: str, most: int = MESSAGE_CHARS_MAX) -> str:
    text = text.encode(errors="replace").decode()  # no lone surrogates on the wire
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"
