"""The access file: it says who may call what. docs/security.md has its format.

`Access` is one reading of the file. It is pure, except that it reads the JWKS file. `AccessFile`
follows the file while the gateway runs. Neither the access file nor a log contains a token: the
file has the tokens' SHA-256.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import jwt
import msgspec
from holdfast.files import fingerprint

log = logging.getLogger(__name__)

ANONYMOUS = "anonymous"
"""The subject of a caller that shows no token and no certificate. No pattern matches it: a rule for
it has to name it."""
OBJECT_PREFIX = "object:"
"""The beginning of `self.caller` in calls that objects make. No subject may begin with it."""
LOOK_S = 2.0

_ALGORITHMS = [
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "EdDSA",
]
_KNOWN_TOKENS_MAX = 10_000
_LEEWAY_S = 5
_FOR_EVER = float("inf")
_FAR = 1 << 53


class AccessError(Exception):
    """The access file is wrong; the message says where."""


class UnknownCaller(Exception):
    """The caller is unknown. The message has no secrets, so it may go to the caller."""


class _Jwt(msgspec.Struct, forbid_unknown_fields=True):
    jwks: str
    issuer: str
    audience: str
    subject_claim: str = "sub"
    prefix: str | None = None


class _Certificates(msgspec.Struct, forbid_unknown_fields=True):
    subject: Literal["common-name", "dns"]
    prefix: str | None = None


class _Allow(msgspec.Struct, forbid_unknown_fields=True):
    subjects: list[str]
    kinds: list[str]
    methods: list[str]


class _Admin(msgspec.Struct, forbid_unknown_fields=True):
    subjects: list[str]
    may: Literal["read", "change"]


class SubjectLimits(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The limits of one subject at each gateway; None: no limit.

    `bytes_per_s` counts whole calls: arguments, names and metadata.
    """

    calls_per_s: float | None = None
    in_flight: int | None = None
    sessions: int | None = None
    bytes_per_s: float | None = None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    tokens: dict[str, list[str]] = {}
    jwt: _Jwt | None = None
    certificates: _Certificates | None = None
    allow: list[_Allow] = []
    admin: list[_Admin] = []
    limits: dict[str, SubjectLimits] = {}


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller's subject, and the time until which its token is valid (Unix seconds)."""

    subject: str
    until: float = _FOR_EVER


@dataclass
class Access:
    """One reading of an access file."""

    _file: _File
    _tokens: dict[bytes, str]
    _keys: list[jwt.PyJWK]
    _known: OrderedDict[bytes, Identity] = field(default_factory=OrderedDict)

    @classmethod
    def parse(cls, text: bytes, folder: Path) -> Access:
        """Read a file's text, and the JWKS file that it names in `folder`. Raise AccessError."""
        try:
            file = msgspec.toml.decode(text, type=_File)
        except Exception as error:  # msgspec also raises RecursionError, which is no ValueError
            raise AccessError(str(error) or type(error).__name__) from None
        tokens: dict[bytes, str] = {}
        for subject, hashes in file.tokens.items():
            _check_subject(subject)
            for given in hashes:
                try:
                    digest = bytes.fromhex(given)
                except ValueError:
                    digest = b""
                if len(digest) != 32:
                    raise AccessError(
                        f"tokens.{subject}: {given[:8]}... is not a SHA-256 in hexadecimal"
                        " (`holdfast token` makes them)"
                    )
                if tokens.setdefault(digest, subject) != subject:
                    raise AccessError(f"tokens: {subject} and {tokens[digest]} have the same token")
        for name, limits in file.limits.items():
            for what in ("calls_per_s", "in_flight", "sessions", "bytes_per_s"):
                if (bound := getattr(limits, what)) is not None and not bound > 0:
                    raise AccessError(f"limits.{name}.{what} is {bound}; it has to be above 0")
        if (
            file.jwt is not None
            and file.certificates is not None
            and None in (file.jwt.prefix, file.certificates.prefix)
        ):
            raise AccessError(
                "jwt and certificates: give a `prefix` to each, so that a token's subject differs"
                " from a certificate's. If the same name means the same caller, write"
                ' `prefix = ""` in both'
            )
        if file.jwt is not None and file.certificates is not None:
            mine, theirs = file.jwt.prefix or "", file.certificates.prefix or ""
            if (mine or theirs) and (mine.startswith(theirs) or theirs.startswith(mine)):
                raise AccessError(
                    f"jwt and certificates: one prefix begins with the other ({mine!r},"
                    f" {theirs!r}), so a token's subject could be a certificate's. Give two"
                    ' different prefixes, or `""` in both'
                )
        keys = [] if file.jwt is None else _read_jwks(folder / file.jwt.jwks)
        return cls(file, tokens, keys)

    @property
    def asks_certificates(self) -> bool:
        """Whether clients' certificates name subjects."""
        return self._file.certificates is not None

    # -- the caller's identity

    def identify(
        self, authorization: str | None, common_name: str, dns_names: Sequence[str], now: float
    ) -> Identity:
        """Return the identity of a caller: by its `authorization` metadata, else by its
        certificate.

        A caller that shows neither is ANONYMOUS. `now` is in Unix seconds. Raise UnknownCaller.
        """
        if authorization is not None:
            scheme, _, token = authorization.partition(" ")
            if scheme.lower() != "bearer" or not token:
                raise UnknownCaller("authorization has to be: Bearer TOKEN")
            return self._of_token(token.strip(), now)
        if self._file.certificates is not None:
            names = [common_name] if self._file.certificates.subject == "common-name" else dns_names
            for name in names:
                subject = f"{self._file.certificates.prefix or ''}{name}"
                if name and self._is_free(subject):
                    return Identity(subject)
        return Identity(ANONYMOUS)

    def _of_token(self, token: str, now: float) -> Identity:
        digest = hashlib.sha256(token.encode()).digest()
        for known, subject in self._tokens.items():
            if hmac.compare_digest(known, digest):
                return Identity(subject)
        identity = self._known.get(digest)
        if identity is None:
            if self._file.jwt is None:
                raise UnknownCaller("the token is not known")
            identity = self._of_jwt(token, self._file.jwt)
            self._known[digest] = identity
            if len(self._known) > _KNOWN_TOKENS_MAX:
                self._known.popitem(last=False)
        if identity.until <= now:
            raise UnknownCaller("the token has expired")
        return identity

    def _of_jwt(self, token: str, config: _Jwt) -> Identity:
        try:
            header = jwt.get_unverified_header(token)
        except Exception:  # any text may come from outside, and the library may raise anything
            raise UnknownCaller("the token is not known") from None
        wanted = header.get("kid")
        keys = [key for key in self._keys if wanted is None or key.key_id == wanted]
        if header.get("alg") not in _ALGORITHMS or not keys:
            raise UnknownCaller("the token's key or algorithm is not accepted")
        for key in keys:
            try:
                claims: dict[str, Any] = jwt.decode(
                    token,
                    key,
                    algorithms=_ALGORITHMS,
                    issuer=config.issuer,
                    audience=config.audience,
                    leeway=_LEEWAY_S,
                    options={"require": ["exp", "iss", "aud", config.subject_claim]},
                )
            except jwt.ExpiredSignatureError:
                raise UnknownCaller("the token has expired") from None
            except (
                jwt.InvalidSignatureError,
                jwt.InvalidKeyError,
                jwt.InvalidAlgorithmError,
                TypeError,
            ):
                continue
            except jwt.InvalidTokenError as error:
                raise UnknownCaller(f"the token is not valid: {error}") from None
            except Exception as error:  # the library cannot handle a claim, such as `exp` of 1e400
                raise UnknownCaller(f"the token is not valid: {type(error).__name__}") from None
            name = claims[config.subject_claim]
            if (
                not isinstance(name, str)
                or not name
                or not self._is_free(subject := f"{config.prefix or ''}{name}")
            ):
                raise UnknownCaller("the token names no subject, or one that it may not name")
            return Identity(subject, min(int(claims["exp"]), _FAR) + _LEEWAY_S)
        raise UnknownCaller("the token's signature does not verify")

    def _is_free(self, subject: str) -> bool:
        """Return whether a token or certificate may name the subject.

        It may not if the subject is reserved, or if the file gives the subject tokens of its own.
        """
        try:
            subject.encode()
        except UnicodeEncodeError:  # a lone surrogate, which cannot be encoded
            return False
        return (
            subject != ANONYMOUS
            and not subject.startswith(OBJECT_PREFIX)
            and subject not in self._file.tokens
        )

    # -- the caller's permissions

    def may_call(self, subject: str, kind: str, method: str) -> bool:
        """Return whether a rule allows the subject to call the method."""
        return any(
            _matches(rule.subjects, subject)
            and _like(rule.kinds, kind)
            and _like(rule.methods, method)
            for rule in self._file.allow
        )

    def may_admin(self, subject: str, change: bool) -> bool:
        """Return whether a rule allows the subject to look as an operator, or, with `change`, to
        change anything."""
        return any(
            _matches(rule.subjects, subject) and (rule.may == "change" or not change)
            for rule in self._file.admin
        )

    def limits_of(self, subject: str) -> SubjectLimits | None:
        """Return the subject's own limits, else those of the first pattern that matches, else
        None."""
        limits = self._file.limits
        if subject in limits:
            return limits[subject]
        return next(
            (
                bound
                for pattern, bound in limits.items()
                if subject != ANONYMOUS and _fits(subject, pattern)
            ),
            None,
        )


def _check_subject(subject: str) -> None:
    if not subject or subject == ANONYMOUS or subject.startswith(OBJECT_PREFIX):
        raise AccessError(f"tokens: {subject!r} may not be a subject's name: it is reserved")


def _matches(patterns: Sequence[str], subject: str) -> bool:
    if subject == ANONYMOUS:
        return ANONYMOUS in patterns
    return _like(patterns, subject)


def _like(patterns: Sequence[str], text: str) -> bool:
    return any(_fits(text, pattern) for pattern in patterns)


def _fits(text: str, pattern: str) -> bool:
    """Return whether a pattern with * and ? matches. Brackets have no special meaning."""
    return fnmatchcase(text, pattern.replace("[", "[[]"))


def _read_jwks(path: Path) -> list[jwt.PyJWK]:
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict) or not isinstance(found.get("keys"), list):
            raise ValueError("it is not a JSON object with a list of `keys`")
    except Exception as error:  # RecursionError is no ValueError
        raise AccessError(f"jwt.jwks {path}: {error or type(error).__name__}") from None
    usable = []
    for one in found["keys"]:
        try:
            key = jwt.PyJWK.from_dict(one)
        except Exception as error:
            # The library does not know the key's type, or the key is malformed.
            log.warning("access: a key in %s is skipped: %s", path, error or type(error).__name__)
            continue
        if key.algorithm_name in _ALGORITHMS:
            usable.append(key)
    if not usable:
        raise AccessError(
            f"jwt.jwks {path}: no key for an accepted algorithm ({', '.join(_ALGORITHMS)})"
        )
    return usable


class AccessFile:
    """An access file that is followed, and with it the JWKS file that it names.

    `access` is the newest correct reading; `version` counts the correct readings. `failing`: the
    file is wrong now.
    """

    def __init__(self, path: Path) -> None:
        """Read the file. Raise AccessError."""
        self._path = path
        self.version = 0
        self.failing = False
        self._seen: object = None
        self._read()

    def _read(self) -> None:
        access: Access | None = None
        seen: object = None
        while (
            before := self._look(access)
        ) != seen:  # read again if a file changed meanwhile, or to look at the named JWKS file too
            seen = before
            try:
                access = Access.parse(self._path.read_bytes(), self._path.parent)
            except OSError as error:
                raise AccessError(str(error)) from None
            except AccessError as error:
                raise AccessError(f"{self._path}: {error}") from None
        assert access is not None
        self.access, self._seen = access, seen
        self.version += 1

    def _look(self, current: Access | None) -> object:
        files: list[Path | None] = [self._path]
        if current is not None and current._file.jwt is not None:
            files.append(self._path.parent / current._file.jwt.jwks)
        return fingerprint(files)

    async def watch(self) -> None:
        """Apply changes of the file within 2 s, until cancelled.

        If the file is wrong, log an error, and keep the old rules.
        """
        tried: object = None
        while True:
            await asyncio.sleep(LOOK_S)
            seen = self._look(self.access)
            if seen in (self._seen, tried):
                continue
            tried = seen
            try:
                self._read()
            except AccessError as error:
                self.failing = True
                log.error("access: %s; the old rules stay in force", error)
            else:
                self.failing = False
                tried = None
                log.warning("access: the new version of %s is in force", self._path)


class RateLimits:
    """The use of limits by each subject, at this gateway."""

    def __init__(self, clock: Any = time.monotonic) -> None:
        self._clock = clock
        self._by_subject: dict[str, RateLimit] = {}

    def of(self, subject: str, limits: SubjectLimits | None) -> RateLimit | None:
        """Return a subject's use of its limits, for all its sessions together; None: no limits."""
        if limits is None:
            return None
        limit = self._by_subject.get(subject)
        if limit is None:
            if len(self._by_subject) >= _KNOWN_TOKENS_MAX:
                for name in [
                    name for name, other in self._by_subject.items() if other.at_rest(self._clock())
                ]:
                    del self._by_subject[name]
            limit = self._by_subject[subject] = RateLimit(limits, self._clock)
        limit.limits = limits
        return limit


class RateLimit:
    """One subject's use of its limits. It may save up the calls and bytes of one second."""

    __slots__ = ("_at", "_bytes", "_calls", "_clock", "in_flight", "limits", "sessions")

    def __init__(self, limits: SubjectLimits, clock: Any) -> None:
        self.limits = limits
        self.in_flight = 0
        self.sessions = 0
        self._clock = clock
        self._at: float = clock()
        self._calls = max(limits.calls_per_s or 0.0, 1.0)
        self._bytes = limits.bytes_per_s or 0.0

    def take(self, size: int) -> tuple[str, float] | None:
        """Count a call of `size` bytes in, and return None.

        If the call would pass a limit, do not count it. Return the limit's text, and the seconds
        after which the call would pass no limit.
        """
        limits = self.limits
        if limits.in_flight is not None and self.in_flight >= limits.in_flight:
            return f"{limits.in_flight} calls of this subject are in flight", 0.1
        now = self._clock()
        passed, self._at = now - self._at, now
        if limits.calls_per_s is not None:
            self._calls = min(
                max(limits.calls_per_s, 1.0), self._calls + passed * limits.calls_per_s
            )
            if self._calls < 1:
                return (
                    f"{limits.calls_per_s:g} calls a second of this subject",
                    (1 - self._calls) / limits.calls_per_s,
                )
        if limits.bytes_per_s is not None:
            # The balance may become negative: a call larger than a second's bytes is allowed, and
            # the next calls wait for it.
            self._bytes = min(limits.bytes_per_s, self._bytes + passed * limits.bytes_per_s)
            if self._bytes <= 0:
                return (
                    f"{limits.bytes_per_s:g} bytes a second of this subject",
                    (1 - self._bytes) / limits.bytes_per_s,
                )
            self._bytes -= size
        if limits.calls_per_s is not None:
            self._calls -= 1
        self.in_flight += 1
        return None

    def at_rest(self, now: float) -> bool:
        """Return whether a new RateLimit in its place would allow no more calls."""
        return self.in_flight == self.sessions == 0 and now - self._at > 1 and self._bytes >= 0
