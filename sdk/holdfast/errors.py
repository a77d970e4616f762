"""The errors of Holdfast: one class for each code, and the one table that maps codes to gRPC
status.

Every error answers two questions that a caller has to ask. `definite`: did the request certainly
have no effect? `retryable`: can the same request succeed later? A call whose outcome is unknown
(`definite` is false) may be repeated with the same request id: the effect still happens once.

The rule of `definite`. An error is definite only if no attempt of the request, at any hop, has had
or can ever have an effect. An error of one attempt says nothing of the others. So every call
carries `attempt`, the number of its attempts whose outcome is unknown:

1. Whoever sends a call again has counted the attempt before, unless that was answered by a definite
   error. An attempt is counted when
   its sender gives it up: its connection broke, its shard moved, or its answer was not definite.
2. Whoever makes an error for a call calls it definite only if `attempt` is 0, and if this very
   delivery has no effect: it was refused
   before it ran, or was rolled back before it had called another object.
3. Whoever passes an error on calls it definite only if it is, and if `attempt` is 0 by its own
   count.
4. A call whose caller brought a request id or an idempotency key begins at 1: only the caller knows
   of attempts before. So do the
   calls of turns whose own attempt is not 0, and of turns that notifications and alarms cause.

A call may be sent again and again with attempt 0: nothing is left of those before. In doubt an
attempt counts. `not_definite_after` applies the rule to an error.

On the wire an error is a `holdfast.v1.Error`. `error_from_proto` and `error_to_proto` are each
other's inverse, except that a class of the user's own arrives as `ApplicationError` with its name
in `type`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import grpc
import msgspec

from holdfast.v1 import objects_pb2 as pb


def code_name(code: int) -> str:
    """The name of a code on the wire as errors show it; `OK` for none. One that this version does
    not know is its number."""
    if code == pb.CODE_UNSPECIFIED:
        return "OK"
    known = pb.Code.DESCRIPTOR.values_by_number.get(code)
    return str(code) if known is None else known.name.removeprefix("CODE_")


class HoldfastError(Exception):
    """Base of every error that Holdfast raises at a caller."""

    code: ClassVar[str] = "INTERNAL"
    callee: str = ""
    """Which call it came back from, as `Kind/key.method()`; empty for one that comes from
    no call."""

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
        """The message, and, of an error that came back from a call: from which one, and the id to
        search logs for."""
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
    """What an error says: of an exception, or anything else that is no text, what it says of
    itself."""
    if isinstance(message, str):
        return message
    try:
        return str(message) or type(message).__name__
    except Exception:
        return type(message).__name__


class NotFound(HoldfastError):
    """No such kind or method; the message names the nearest ones."""

    code = "NOT_FOUND"


class InvalidArgument(HoldfastError):
    """An argument is missing, unexpected or of the wrong type; `path` names the field, as in
    `$.change.price`."""

    code = "INVALID_ARGUMENT"

    def __init__(self, message: object, *, path: str = "", **rest: Any) -> None:
        super().__init__(message, **rest)
        self.path = as_text(path)


class UnfitArguments(InvalidArgument):
    """The arguments do not fit the handler, which did not run."""


class ApplicationError(HoldfastError):
    """The handler raised: `type` is the exception's class name, `data` what it carried. Its turn
    was rolled back."""

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
    """Raise this in a handler to refuse a request on the application's grounds: `raise
    Rejected("too late", limit=3)`.

    The turn is rolled back, the caller gets a `Rejected` with the same message and data, and nobody
    tries it again.
    """

    def __init__(self, message: object, /, **data: Any) -> None:
        super().__init__(message, data=data, definite=True)


class WrongOwner(HoldfastError):
    """The shard is not served by the node that was asked. Gateways hold and resend; callers do not
    see it."""

    code = "WRONG_OWNER"


class LacksKind(WrongOwner):
    """The node that was asked serves the shard but lacks the kind, which another node has or may
    have."""


class Unavailable(HoldfastError):
    """The object cannot be served now: its node is away, or nothing could be reached before the
    deadline."""

    code = "UNAVAILABLE"


class Overloaded(HoldfastError):
    """A named limit is reached (mailbox, calls in flight, held calls): come back after
    `retry_after_s`."""

    code = "OVERLOADED"


class DeadlineExceeded(HoldfastError):
    """The deadline passed. When it is `definite`, the turn was rolled back or never started."""

    code = "DEADLINE_EXCEEDED"


class Aborted(HoldfastError):
    """The turn was ended and rolled back: an operator aborted it (`holdfast objects abort`), or its
    caller had cancelled the call."""

    code = "ABORTED"


class Deadlock(HoldfastError):
    """The call would wait for itself; `cycle` names the objects, the one that was called last."""

    code = "DEADLOCK"

    def __init__(self, message: object, *, cycle: tuple[str, ...] = (), **rest: Any) -> None:
        super().__init__(message, **rest)
        self.cycle = cycle


class TooLarge(HoldfastError):
    """An argument, a result, a value, a turn's writes or a chain of calls is over its limit."""

    code = "TOO_LARGE"


class Unauthenticated(HoldfastError):
    """The gateway does not know who calls: no token, or one that is unknown or has expired; or no
    certificate."""

    code = "UNAUTHENTICATED"


class PermissionDenied(HoldfastError):
    """The gateway's policy does not let this subject make the call."""

    code = "PERMISSION_DENIED"


class InternalError(HoldfastError):
    """A fault of Holdfast's own; the request id finds it in the log."""

    code = "INTERNAL"


MESSAGE_CHARS_MAX = 10_000
"""What is kept of an error's message on the wire."""

PATH_CHARS_MAX = 300
"""What is kept of the path of an INVALID_ARGUMENT, and of the name of an exception's class."""

DATA_BYTES_MAX = 1 << 20
"""Larger data of an ApplicationError stays behind; the message says so."""

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
    """The gRPC status of `Objects.Call` for an error. A handler that refuses is
    FAILED_PRECONDITION, one that crashed UNKNOWN."""
    if error.code == pb.CODE_APPLICATION and not is_refusal(error):
        return grpc.StatusCode.UNKNOWN
    return CODES[_BY_NUMBER.get(error.code, "INTERNAL")][1]


def is_refusal(error: pb.Error) -> bool:
    """Whether a handler refused on its own grounds. One of an earlier version says so by its type
    alone."""
    return error.rejected or error.type == Rejected.__name__


def error_to_proto(error: HoldfastError, codec: pb.Codec = pb.CODEC_MSGPACK) -> pb.Error:
    """The wire form of an error. `codec` encodes the data of an `ApplicationError`."""
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
                except Exception as unfit:  # whatever users put there, the error itself must arrive
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
    """The error, not definite if an earlier attempt of its call has an unknown outcome (the rule of
    `definite`, above)."""
    if attempt and error.definite:
        error.definite = False
    return error


def error_from_proto(message: pb.Error, codec: pb.Codec = pb.CODEC_MSGPACK) -> HoldfastError:
    """The exception for a wire error; a code that this version does not know becomes
    `InternalError`."""
    name = _BY_NUMBER.get(message.code, "INTERNAL")
    error: HoldfastError
    if name == "APPLICATION":
        module = msgspec.json if codec == pb.CODEC_JSON else msgspec.msgpack
        try:
            data = module.decode(message.data) if message.data else {}
        except Exception:  # a later version's, or nobody's
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
