"""Where callers are asked who they are, once for each session or call, and what they may is kept at
hand."""

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
    Refused,
    SubjectLimits,
)

log = logging.getLogger(__name__)

_DECISIONS_MAX = 1_000
_few = RateLimitedLog()


class Authenticator:
    """Lets in whom the access file knows."""

    def __init__(self, file: AccessFile) -> None:
        self.file = file
        self._uses = RateLimits()

    def authenticate(self, context: Any) -> Caller:
        """Who makes a call or opens a session. Raises Refused."""
        shown_as = [
            str(value)
            for name, value in context.invocation_metadata() or ()
            if name == "authorization"
        ]
        if len(shown_as) > 1:
            raise Refused("authorization was given more than once")
        names: list[str] = []
        common_name = ""
        if self.file.access.asks_certificates:
            names = names_of(context)
            shown = context.auth_context().get("x509_common_name", ())
            common_name = next((name.decode(errors="replace") for name in shown), "")
        return Caller(
            self.file,
            self._uses,
            shown_as[0] if shown_as else None,
            common_name,
            names,
            context.peer(),
        )


class Caller:
    """A caller that was let in. What it may is looked up once; after a change of the access file,
    or of its token's end, anew."""

    def __init__(
        self,
        file: AccessFile,
        uses: RateLimits,
        authorization: str | None,
        common_name: str,
        names: list[str],
        peer: str,
    ) -> None:
        self._file = file
        self._uses = uses
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
        self._use: RateLimit | None = self._uses.of(
            identity.subject, file.access.limits_of(identity.subject)
        )
        self._decisions: dict[tuple[str, str], bool] = {}

    def look(self, now: float) -> str | None:
        """Whether it is still who it was: why not, or None. Ask it now and then."""
        if self._version != self._file.version or now >= self._until:
            before, subject = self._use, self.subject
            try:
                self._identify(now)
            except Refused as refused:
                return str(refused)
            if self.subject != subject:
                return "what you have shown names another subject by now: connect again"
            if before is not self._use:
                if before is not None and self._use is None:
                    before.limits = SubjectLimits()
                self._use = before  # what is under way was counted there, or was not
        return None

    def may(self, kind: str, method: str) -> bool:
        decided = self._decisions.get((kind, method))
        if decided is None:
            if len(self._decisions) >= _DECISIONS_MAX:
                self._decisions.clear()
            decided = self._decisions[kind, method] = self._file.access.may_call(
                self.subject, kind, method
            )
        return decided

    def may_admin(self, change: bool) -> bool:
        return self._file.access.may_admin(self.subject, change)

    def take(self, call: pb.Call) -> tuple[str, float] | None:
        """Count a call in: None, or which limit it would pass, and in how many seconds it would
        not."""
        return None if self._use is None else self._use.take(call.ByteSize())

    def begin_session(self) -> str | None:
        """Count a session in: None, or which limit it would pass."""
        use = self._use
        if use is None:
            return None
        most = use.limits.sessions
        if most is not None and use.sessions >= most:
            return f"{most} sessions of this subject are open"
        use.sessions += 1
        self._session = use
        return None

    def end_session(self) -> None:
        """The session that was counted in is over."""
        if self._session is not None:
            self._session.sessions -= 1
            self._session = None

    def done(self, calls: int) -> None:
        """So many calls are answered, or given up."""
        if self._use is not None:
            self._use.in_flight -= calls


async def permit(
    authenticator: Authenticator | None, context: Any, change: bool, refused: Any
) -> str:
    """Let an operator in: its name for logs. Ends the call, and counts it, when it may not."""
    if authenticator is None:
        return str(context.peer())
    try:
        caller = authenticator.authenticate(context)
    except Refused as why:
        refused["unauthenticated"] += 1
        if _few.allow():
            log.info("unauthenticated: %s, from %s", why, context.peer())
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(why))
        raise AssertionError from None
    if not caller.may_admin(change):
        refused["permission_denied"] += 1
        what = "change anything" if change else "look"
        if _few.allow():
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
