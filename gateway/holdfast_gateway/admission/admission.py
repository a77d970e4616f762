"""The checks of a call that every edge makes before the call goes to a node."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

from holdfast.errors import (
    HoldfastError,
    InvalidArgument,
    Overloaded,
    PermissionDenied,
    Unavailable,
    error_to_proto,
    not_definite_after,
)
from holdfast.ids import EFFECT, idempotent_id
from holdfast.logs import RateLimitedLog
from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.placement.model import SEND
from holdfast_cluster.routing.dispatch import Dispatcher

from holdfast_gateway.admission.access import UnknownCaller
from holdfast_gateway.admission.auth import Authenticator, Caller

log = logging.getLogger(__name__)

REASONS = ("draining", "malformed", "unauthenticated", "permission_denied", "limit", "unread")
"""The reasons why the gateway refuses a call or a session, or ends a session. `unread`: the
session's client sends calls, but does not read the replies."""

RESERVED = bytes([EFFECT])
"""Request ids that begin with this byte, or a higher one, are the cluster's own."""


class Admission:
    """The checks of callers and their calls, the same for all edges of a gateway."""

    def __init__(self, dispatcher: Dispatcher, authenticator: Authenticator | None) -> None:
        """`authenticator` checks the callers; None: every caller may do everything."""
        self._dispatcher = dispatcher
        self._authenticator = authenticator
        self._log_limit = RateLimitedLog()
        self.refused: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
        """The number of calls and sessions refused, and of sessions ended, by reason."""
        self.draining = False
        """Set when the gateway stops. Then a session ends when its calls have ended, and the
        gateway accepts no new call."""

    def authenticate(self, context: Any) -> Caller | None:
        """Return the caller; None if callers are not checked. Raise UnknownCaller."""
        if self._authenticator is None:
            return None
        try:
            return self._authenticator.authenticate(context)
        except UnknownCaller as refused:
            self.refused["unauthenticated"] += 1
            if self._log_limit.allow():
                log.info("unauthenticated: %s, from %s", refused, context.peer())
            raise

    def check_form(self, call: pb.Call) -> pb.Error | None:
        """Check what any caller's call must be: its request id, and whether it can be stored.

        Derive the request id of a call with an idempotency key. Return None, or a refusal.
        """
        request_id = call.request_id
        refused = None if request_id and request_id[:1] < RESERVED else self._check_id(call)
        if refused is None and call.send:
            return self._cannot_send(call)
        return refused

    def check_caller(self, caller: Caller, call: pb.Call) -> pb.Error | None:
        """Check a call's permission and limits. Return a refusal, or None.

        If the call is allowed, set its `caller`.
        """
        error: HoldfastError
        if not caller.may(call.kind, call.method):
            self.refused["permission_denied"] += 1
            error = PermissionDenied(
                f"{caller.subject} may not call {call.kind[:100]}.{call.method[:100]}",
                definite=True,
            )
            if self._log_limit.allow():
                log.info("permission denied: %s, from %s", error.message, caller.peer)
        elif (over := caller.take(call)) is not None:
            self.refused["limit"] += 1
            error = Overloaded(over[0], definite=True, retryable=True, retry_after_s=over[1])
        else:
            call.caller = caller.name
            return None
        error.request_id = call.request_id
        return not_definite_after(call.attempt, error_to_proto(error))

    def _check_id(self, call: pb.Call) -> pb.Error | None:
        """Derive the request id of a call with an idempotency key. Return None, or a refusal.

        A call with a reserved request id is refused, too.
        """
        if call.request_id or not call.idempotency_key:
            # The dispatcher refuses a call without a request id.
            return self._taken(call.request_id, call.attempt) if call.request_id else None
        try:
            call.request_id = idempotent_id(call.kind, call.key, call.idempotency_key)
        except ValueError as error:
            self.refused["malformed"] += 1
            refused = error_to_proto(
                InvalidArgument(str(error), path="idempotency_key", definite=True)
            )
            return not_definite_after(call.attempt, refused)
        call.ClearField("idempotency_key")
        call.keep_reply = True
        return None

    def _taken(self, request_id: bytes, attempt: int) -> pb.Error:
        self.refused["malformed"] += 1
        message = (
            f"request ids that begin with {request_id[:1].hex()} are the cluster's own: use a"
            " UUIDv7, or an idempotency key"
        )
        refused = InvalidArgument(message, path="request_id", definite=True, request_id=request_id)
        return not_definite_after(attempt, error_to_proto(refused))

    def _cannot_send(self, call: pb.Call) -> pb.Error | None:
        """Return the reason why a call cannot be stored; None if every node can store calls.

        An older node would run the call at once.
        """
        if self._dispatcher.knows(SEND):
            return None
        message = "calls cannot be sent while a node of the cluster is too old to store them"
        error = Unavailable(
            message, definite=True, retryable=True, retry_after_s=1.0, request_id=call.request_id
        )
        return not_definite_after(call.attempt, error_to_proto(error))
