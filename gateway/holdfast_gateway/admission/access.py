"""Who may call what: the access file, and what follows from it. The file's format is in
docs/security.md.

`Access` is one reading of the file: pure but for the JWKS file that it names. `AccessFile` follows
the file while the gateway runs. Nothing here, or in what it logs, holds a token: files have their
SHA-256.
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
from holdfast.files import state_of

log = logging.getLogger(__name__)

ANONYMOUS = "anonymous"
"""The subject of who shows nothing. No pattern matches it: rules that are meant for it name it."""
OBJECT_PREFIX = "object:"
"""What `self.caller` begins with for calls of objects; no subject may."""
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
    """The file is not what it should be; the message says where."""


class Refused(Exception):
    """Who calls is not known; the message may be told to anybody."""


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
    """Bounds of one subject at each gateway; None: no bound. `bytes_per_s` counts calls' arguments
    and names."""

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
    """Who calls, and until when that is known (Unix seconds)."""

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
        """Read a file's text. Raises AccessError."""
        try:
            file = msgspec.toml.decode(text, type=_File)
        except Exception as error:  # whatever its library raises: RecursionError is no ValueError
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
                    raise AccessError(f"tokens: {subject} and {tokens[digest]} have the same one")
        for name, limits in file.limits.items():
            for what in ("calls_per_s", "in_flight", "sessions", "bytes_per_s"):
                if (bound := getattr(limits, what)) is not None and not bound > 0:
                    raise AccessError(f"limits.{name}.{what} is {bound}; more than 0")
        if (
            file.jwt is not None
            and file.certificates is not None
            and None in (file.jwt.prefix, file.certificates.prefix)
        ):
            raise AccessError(
                "jwt and certificates: say the `prefix` of each one's subjects, so that a token's"
                ' subject is not a certificate\'s; or `prefix = ""` in both, if the same name is'
                " the same caller"
            )
        if file.jwt is not None and file.certificates is not None:
            mine, theirs = file.jwt.prefix or "", file.certificates.prefix or ""
            if (mine or theirs) and (mine.startswith(theirs) or theirs.startswith(mine)):
                raise AccessError(
                    f"jwt and certificates: one prefix begins with the other ({mine!r},"
                    f" {theirs!r}), so that names of the one could be names of the other; say two"
                    ' that differ, or `""` in both'
                )
        keys = [] if file.jwt is None else _read_jwks(folder / file.jwt.jwks)
        return cls(file, tokens, keys)

    @property
    def asks_certificates(self) -> bool:
        """Whether clients' certificates name subjects."""
        return self._file.certificates is not None

    # -- who it is

    def identify(
        self, authorization: str | None, common_name: str, dns_names: Sequence[str], now: float
    ) -> Identity:
        """Who shows this: the `authorization` metadata if there is one, else the certificate.
        Raises Refused."""
        if authorization is not None:
            scheme, _, token = authorization.partition(" ")
            if scheme.lower() != "bearer" or not token:
                raise Refused("authorization has to be: Bearer TOKEN")
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
                raise Refused("the token is not known")
            identity = self._of_jwt(token, self._file.jwt)
            self._known[digest] = identity
            if len(self._known) > _KNOWN_TOKENS_MAX:
                self._known.popitem(last=False)
        if identity.until <= now:
            raise Refused("the token has expired")
        return identity

    def _of_jwt(self, token: str, config: _Jwt) -> Identity:
        try:
            header = jwt.get_unverified_header(token)
        except Exception:  # it is a stranger's
            raise Refused("the token is not known") from None
        wanted = header.get("kid")
        keys = [key for key in self._keys if wanted is None or key.key_id == wanted]
        if header.get("alg") not in _ALGORITHMS or not keys:
            raise Refused("the token is signed by a key, or in a way, that is not accepted")
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
                raise Refused("the token has expired") from None
            except (
                jwt.InvalidSignatureError,
                jwt.InvalidKeyError,
                jwt.InvalidAlgorithmError,
                TypeError,
            ):
                continue
            except jwt.InvalidTokenError as error:
                raise Refused(f"the token is not valid: {error}") from None
            except Exception as error:  # a claim that its library cannot work on: `exp` of 1e400
                raise Refused(f"the token is not valid: {type(error).__name__}") from None
            name = claims[config.subject_claim]
            if (
                not isinstance(name, str)
                or not name
                or not self._is_free(subject := f"{config.prefix or ''}{name}")
            ):
                raise Refused("the token names no subject, or one that it may not name")
            return Identity(subject, min(int(claims["exp"]), _FAR) + _LEEWAY_S)
        raise Refused("the token's signature does not verify")

    def _is_free(self, subject: str) -> bool:
        """Whether somebody else than this file's author may name it: it is not reserved, and no
        token's of the file."""
        try:
            subject.encode()
        except UnicodeEncodeError:  # half a character: no name that anything could carry
            return False
        return (
            subject != ANONYMOUS
            and not subject.startswith(OBJECT_PREFIX)
            and subject not in self._file.tokens
        )

    # -- what it may

    def may_call(self, subject: str, kind: str, method: str) -> bool:
        return any(
            _matches(rule.subjects, subject)
            and _like(rule.kinds, kind)
            and _like(rule.methods, method)
            for rule in self._file.allow
        )

    def may_admin(self, subject: str, change: bool) -> bool:
        return any(
            _matches(rule.subjects, subject) and (rule.may == "change" or not change)
            for rule in self._file.admin
        )

    def limits_of(self, subject: str) -> SubjectLimits | None:
        """The subject's own, else those of the first pattern that matches."""
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
        raise AccessError(f"tokens: {subject!r} is no subject's name: it is taken")


def _matches(patterns: Sequence[str], subject: str) -> bool:
    if subject == ANONYMOUS:
        return ANONYMOUS in patterns
    return _like(patterns, subject)


def _like(patterns: Sequence[str], text: str) -> bool:
    return any(_fits(text, pattern) for pattern in patterns)


def _fits(text: str, pattern: str) -> bool:
    """Whether a pattern with * and ? matches; brackets stand for themselves."""
    return fnmatchcase(text, pattern.replace("[", "[[]"))


def _read_jwks(path: Path) -> list[jwt.PyJWK]:
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict) or not isinstance(found.get("keys"), list):
            raise ValueError("it is no JSON object with a list of `keys`")
    except Exception as error:  # RecursionError is no ValueError
        raise AccessError(f"jwt.jwks {path}: {error or type(error).__name__}") from None
    usable = []
    for one in found["keys"]:
        try:
            key = jwt.PyJWK.from_dict(one)
        except Exception as error:
            # of a kind that this library does not know, or an odd one, which may raise anything
            log.warning(
                "access: a key of %s is passed over: %s", path, error or type(error).__name__
            )
            continue
        if key.algorithm_name in _ALGORITHMS:
            usable.append(key)
    if not usable:
        raise AccessError(
            f"jwt.jwks {path}: no key of a kind that is accepted ({', '.join(_ALGORITHMS)})"
        )
    return usable


class AccessFile:
    """Follows an access file, and the JWKS file that it names. `access` is the newest right
    reading; `version` counts them."""

    def __init__(self, path: Path) -> None:
        """Raises AccessError."""
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
        ) != seen:  # once more when a file has changed meanwhile, and for the JWKS file it names
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
        return state_of(files)

    async def watch(self) -> None:
        """Take over changes, until cancelled. A file that is wrong is said to be, and the old rules
        stay."""
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
                log.warning("access: %s is in force as it is now", self._path)


class RateLimits:
    """What each subject uses of its limits, at this gateway. `allowed`: whether it may make another
    call now."""

    def __init__(self, clock: Any = time.monotonic) -> None:
        self._clock = clock
        self._uses: dict[str, RateLimit] = {}

    def of(self, subject: str, limits: SubjectLimits | None) -> RateLimit | None:
        """The use of a subject that has limits, of all its sessions together."""
        if limits is None:
            return None
        use = self._uses.get(subject)
        if use is None:
            if len(self._uses) >= _KNOWN_TOKENS_MAX:
                for name in [
                    name for name, other in self._uses.items() if other.at_rest(self._clock())
                ]:
                    del self._uses[name]
            use = self._uses[subject] = RateLimit(limits, self._clock)
        use.limits = limits
        return use


class RateLimit:
    """One subject's. A second's worth of calls and bytes may be saved up."""

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
        """Take a call of so many bytes: None; or which limit it would pass, and in how many seconds
        it would not."""
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
            # A debt is allowed: a call that is larger than a second's worth passes too, and the
            # next ones pay for it.
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
        """Whether forgetting it gives nothing away."""
        return self.in_flight == self.sessions == 0 and now - self._at > 1 and self._bytes >= 0
