"""Authentication of callers, once for each session or call, and their cached permissions."""

from __future__ import annotations

import logging
import time
from typing import Any

import grpc
from holdfast.logs import RateLimitedLog
from holdfast.tls import names_of
from holdfast.v1 import objects_pb2 as pb

from holdfast_gateway.admission.access import (
    ANONYMOUS,
    AccessFile,
    RateLimit,
    RateLimits,
    SubjectLimits,
    UnknownCaller,
)

log = logging.getLogger(__name__)

_DECISIONS_MAX = 1_000
_log_limit = RateLimitedLog()


class Authenticator:
    """The authentication of callers by the access file."""

    def __init__(self, file: AccessFile) -> None:
        self.file = file
        self._rate_limits = RateLimits()

    def authenticate(self, context: Any) -> Caller:
        """Return the caller that makes a call or opens a session. Raise UnknownCaller."""
        shown_as = [
            str(value)
            for name, value in context.invocation_metadata() or ()
            if name == "authorization"
        ]
        if len(shown_as) > 1:
            raise UnknownCaller("authorization was given more than once")
        names: list[str] = []
        common_name = ""
        if self.file.access.asks_certificates:
            names = names_of(context)
            shown = context.auth_context().get("x509_common_name", ())
            common_name = next((name.decode(errors="replace") for name in shown), "")
        return Caller(
            self.file,
            self._rate_limits,
            shown_as[0] if shown_as else None,
            common_name,
            names,
            context.peer(),
        )


class Caller:
    """An authenticated caller.

    Each of its permissions is looked up once. After a change of the access file, or after the end
    of its token, the gateway identifies the caller again, and looks up its permissions again.
    """

    def __init__(
        self,
        file: AccessFile,
        rate_limits: RateLimits,
        authorization: str | None,
        common_name: str,
        names: list[str],
        peer: str,
    ) -> None:
        self._file = file
        self._rate_limits = rate_limits
        self._shown = authorization, common_name, names
        self.peer = peer
        self._session: RateLimit | None = None
        self._identify(time.time())

    def _identify(self, now: float) -> None:
        file = self._file
        self._version = file.version
        identity = file.access.identify(*self._shown, now)
        self.subject = identity.subject
        self.name = "" if identity.subject == ANONYMOUS else identity.subject
        self._until = identity.until
        self._rate_limit: RateLimit | None = self._rate_limits.of(
            identity.subject, file.access.limits_of(identity.subject)
        )
        self._decisions: dict[tuple[str, str], bool] = {}

    def look(self, now: float) -> str | None:
        """Check at `now` whether the caller is still the same; return None, or why it is not.

        Call this now and then, so that changes of the access file apply.
        """
        if self._version != self._file.version or now >= self._until:
            before, subject = self._rate_limit, self.subject
            try:
                self._identify(now)
            except UnknownCaller as refused:
                return str(refused)
            if self.subject != subject:
                return "your token or certificate names another subject now: connect again"
            if before is not self._rate_limit:
                if before is not None and self._rate_limit is None:
                    before.limits = SubjectLimits()
                self._rate_limit = before  # calls under way were counted there, or not at all
        return None

    def may(self, kind: str, method: str) -> bool:
        """Return whether the caller may call the method."""
        decided = self._decisions.get((kind, method))
        if decided is None:
            if len(self._decisions) >= _DECISIONS_MAX:
                self._decisions.clear()
            decided = self._decisions[kind, method] = self._file.access.may_call(
                self.subject, kind, method
            )
        return decided

    def may_admin(self, change: bool) -> bool:
        """Return whether the caller may look as an operator, or, with `change`, change anything."""
        return self._file.access.may_admin(self.subject, change)

    def take(self, call: pb.Call) -> tuple[str, float] | None:
        """Count a call in, and return None; or return its refusal, as `RateLimit.take` does."""
        return None if self._rate_limit is None else self._rate_limit.take(call.ByteSize())

    def begin_session(self) -> str | None:
        """Count a session in, and return None; or return the limit that it would pass."""
        limit = self._rate_limit
        if limit is None:
            return None
        most = limit.limits.sessions
        if most is not None and limit.sessions >= most:
            return f"{most} sessions of this subject are open"
        limit.sessions += 1
        self._session = limit
        return None

    def end_session(self) -> None:
        """Count out the session that was counted in, if there is one."""
        if self._session is not None:
            self._session.sessions -= 1
            self._session = None

    def done(self, calls: int) -> None:
        """Count out this number of calls, which are answered or given up."""
        if self._rate_limit is not None:
            self._rate_limit.in_flight -= calls


async def permit(
    authenticator: Authenticator | None, context: Any, change: bool, refused: Any
) -> str:
    """Check that the caller may act as an operator, and return its name for logs.

    Otherwise abort the call, and count it in `refused`.
    """
    if authenticator is None:
        return str(context.peer())
    try:
        caller = authenticator.authenticate(context)
    except UnknownCaller as why:
        refused["unauthenticated"] += 1
        if _log_limit.allow():
            log.info("unauthenticated: %s, from %s", why, context.peer())
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(why))
        raise AssertionError from None
    if not caller.may_admin(change):
        refused["permission_denied"] += 1
        what = "change anything" if change else "look"
        if _log_limit.allow():
            log.info(
                "permission denied: %s may not %s as an operator, from %s",
                caller.subject,
                what,
                context.peer(),
            )
        await context.abort(
            grpc.StatusCode.PERMISSION_DENIED, f"{caller.subject} may not {what} as an operator"
        )
    return f"{caller.subject} at {context.peer()}"
