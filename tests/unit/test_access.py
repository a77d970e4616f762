"""Who is let in, and what they may: the access file."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from holdfast.logs import RateLimitedLog
from holdfast.v1 import objects_pb2 as pb
from holdfast_gateway.admission import access
from holdfast_gateway.admission.access import (
    ANONYMOUS,
    Access,
    AccessError,
    AccessFile,
    Identity,
    RateLimits,
    SubjectLimits,
    UnknownCaller,
)
from holdfast_gateway.admission.auth import Caller

LIFETIME_S = 600


class In(NamedTuple):
    """So many seconds from when the token is made."""

    seconds: float


def _base64(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def sha(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def parse(text: str, folder: Path = Path()) -> Access:
    return Access.parse(text.encode(), folder)


POLICY = f"""
[tokens]
billing = ["{sha("b-1")}", "{sha("b-2")}"]
"team/a" = ["{sha("team")}"]

[[allow]]
subjects = ["billing"]
kinds = ["Invoice", "Report*"]
methods = ["*"]

[[allow]]
subjects = ["team/*"]
kinds = ["Invoice"]
methods = ["get", "list_*"]

[[allow]]
subjects = ["anonymous"]
kinds = ["Public"]
methods = ["read"]

[[admin]]
subjects = ["billing"]
may = "read"

[[admin]]
subjects = ["ops"]
may = "change"
"""


def test_tokens_name_subjects_and_old_ones_work_beside_new_ones() -> None:
    rules = parse(POLICY)
    for token, subject in (("b-1", "billing"), ("b-2", "billing"), ("team", "team/a")):
        assert rules.identify(f"Bearer {token}", "", (), time.time()) == Identity(subject)
    assert rules.identify(f"bearer  {'b-1'}", "", (), time.time()).subject == "billing"
    assert rules.identify(None, "", (), time.time()).subject == ANONYMOUS


@pytest.mark.parametrize(
    ("authorization", "why"),
    [
        ("b-1", "has to be: Bearer"),
        ("Basic b-1", "has to be: Bearer"),
        ("Bearer ", "has to be: Bearer"),
        ("Bearer b-3", "not known"),
        ("", "Bearer"),
    ],
)
def test_what_is_shown_and_wrong_is_refused_and_not_taken_for_nothing(
    authorization: str, why: str
) -> None:
    with pytest.raises(UnknownCaller, match=why) as refused:
        parse(POLICY).identify(authorization, "", (), time.time())
    assert "b-3" not in str(refused.value)


def test_rules_say_who_may_call_what_and_nothing_else_is_allowed() -> None:
    may = parse(POLICY).may_call
    assert may("billing", "Invoice", "anything")
    assert may("billing", "Reports", "x")
    assert not may("billing", "Public", "read")
    assert may("team/a", "Invoice", "list_open")
    assert not may("team/a", "Invoice", "delete")
    assert not may("team", "Invoice", "get")
    assert not may("stranger", "Invoice", "get")


def test_no_pattern_matches_the_anonymous() -> None:
    everything = '[[allow]]\nsubjects = ["*"]\nkinds = ["*"]\nmethods = ["*"]\n'
    rules = parse(
        everything + '[[admin]]\nsubjects = ["*"]\nmay = "change"\n[limits."*"]\nin_flight = 1'
    )
    assert rules.may_call("somebody", "K", "m")
    assert not rules.may_call(ANONYMOUS, "K", "m")
    assert not rules.may_admin(ANONYMOUS, change=False)
    assert rules.limits_of(ANONYMOUS) is None
    assert parse(POLICY).may_call(ANONYMOUS, "Public", "read")


def test_operators_may_look_or_change() -> None:
    rules = parse(POLICY)
    assert rules.may_admin("billing", change=False)
    assert not rules.may_admin("billing", change=True)
    assert rules.may_admin("ops", change=True)
    assert rules.may_admin("ops", change=False)
    assert not rules.may_admin("team/a", change=False)


def test_certificates_name_subjects_by_common_name_or_dns_name() -> None:
    by_name = parse('[certificates]\nsubject = "common-name"')
    assert by_name.identify(None, "shop", ("shop.example",), time.time()).subject == "shop"
    assert by_name.identify(None, "", ("shop.example",), time.time()).subject == ANONYMOUS
    assert (
        parse('[certificates]\nsubject = "dns"')
        .identify(None, "shop", ("shop.example",), time.time())
        .subject
        == "shop.example"
    )
    assert parse("").identify(None, "shop", ("shop.example",), time.time()).subject == ANONYMOUS
    for name in ("object:Shop/a", ANONYMOUS):
        assert by_name.identify(None, name, (), time.time()).subject == ANONYMOUS
    both = parse(POLICY + '[certificates]\nsubject = "common-name"')
    assert both.identify("Bearer b-1", "shop", (), time.time()).subject == "billing"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[tokens]\nx = ['abc']", "tokens.x: abc... is not a SHA-256"),
        (f"[tokens]\nanonymous = ['{'0' * 64}']", "it is reserved"),
        (f"[tokens]\n'object:K/a' = ['{'0' * 64}']", "it is reserved"),
        (f"[tokens]\na = ['{'0' * 64}']\nb = ['{'0' * 64}']", "have the same token"),
        ("[[allow]]\nsubjects = ['a']\nkinds = ['K']", "missing required field `methods`"),
        (
            "[[allow]]\nsubjects = ['a']\nkinds = ['K']\nmethods = ['*']\nmay = 'x'",
            "unknown field `may`",
        ),
        ("[[admin]]\nsubjects = ['a']\nmay = 'everything'", "Invalid enum value"),
        ("[limits.a]\nin_flight = 0", "limits.a.in_flight is 0; it has to be above 0"),
        ("[limits.a]\ncalls = 1", "unknown field `calls`"),
        ("[jwt]\njwks = 'nowhere.json'\nissuer = 'i'\naudience = 'a'", "nowhere.json"),
        ("tokens = [", "Invalid"),
    ],
)
def test_a_file_that_is_wrong_says_where(text: str, why: str) -> None:
    with pytest.raises(AccessError) as wrong:
        parse(text)
    assert why in str(wrong.value)


# -- JWT

ISSUER, AUDIENCE = "https://id.example/", "holdfast"


class Issuer:
    """Makes tokens, and the JWKS file of its keys."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rsa = rsa.generate_private_key(65537, 2048)
        self.ec = ec.generate_private_key(ec.SECP256R1())
        self.publish()

    def publish(self) -> None:
        rsa = jwt.algorithms.RSAAlgorithm.to_jwk(self.rsa.public_key(), as_dict=True)
        ec = jwt.algorithms.ECAlgorithm.to_jwk(self.ec.public_key(), as_dict=True)
        keys = [{**rsa, "kid": "r", "alg": "RS256"}, {**ec, "kid": "e", "alg": "ES256"}]
        (self.folder / "jwks.json").write_text(json.dumps({"keys": keys}))

    def token(
        self, key: Any = None, algorithm: str = "RS256", kid: str | None = "r", **claims: Any
    ) -> str:
        all_claims = {
            "sub": "alice",
            "iss": ISSUER,
            "aud": AUDIENCE,
            "exp": In(LIFETIME_S),
            **claims,
        }
        all_claims = {
            name: time.time() + of.seconds if isinstance(of, In) else of
            for name, of in all_claims.items()
        }
        return jwt.encode(
            {name: value for name, value in all_claims.items() if value is not None},
            key or self.rsa,
            algorithm=algorithm,
            headers={} if kid is None else {"kid": kid},
        )

    def rules(self) -> Access:
        return parse(
            f'[jwt]\njwks = "jwks.json"\nissuer = "{ISSUER}"\naudience = "{AUDIENCE}"', self.folder
        )


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path)


def test_a_token_that_verifies_names_its_subject_until_it_expires(issuer: Issuer) -> None:
    rules = issuer.rules()
    for token in (issuer.token(), issuer.token(issuer.ec, "ES256", "e"), issuer.token(kid=None)):
        known = rules.identify(f"Bearer {token}", "", (), time.time())
        assert known.subject == "alice"
        assert abs(known.until - time.time() - LIFETIME_S) < 10
        with pytest.raises(UnknownCaller, match="expired"):
            rules.identify(f"Bearer {token}", "", (), time.time() + LIFETIME_S + 100)


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"exp": In(-60)}, "expired"),
        ({"exp": None}, "exp"),
        ({"iss": "https://evil.example/"}, "issuer"),
        ({"aud": "other"}, "Audience"),
        ({"aud": None}, "aud"),
        ({"sub": None}, "sub"),
        ({"sub": ""}, "names no subject"),
        ({"sub": "object:Shop/a"}, "names no subject"),
        ({"nbf": In(LIFETIME_S // 2)}, "not yet valid"),
        ({"kid": "unknown"}, "key or algorithm is not accepted"),
        ({"sub": ["alice"]}, "(not valid|names no subject)"),
        ({"sub": "half \ud800"}, "(not valid|names no subject)"),
    ],
)
def test_a_token_that_is_not_for_us_is_refused(
    issuer: Issuer, claims: dict[str, Any], why: str
) -> None:
    token = issuer.token(**claims)
    with pytest.raises(UnknownCaller, match=f"(?i){why}") as refused:
        issuer.rules().identify(f"Bearer {token}", "", (), time.time())
    assert token not in str(refused.value)


@pytest.mark.parametrize("exp", [10**400, "Infinity", "NaN", -(10**400), "x", [1], 1e300])
def test_a_token_whose_end_is_no_time_is_refused_or_good_for_long(issuer: Issuer, exp: Any) -> None:
    """What its library raises of it is many things: OverflowError ended a gateway."""
    claims = json.dumps({"sub": "alice", "iss": ISSUER, "aud": AUDIENCE, "exp": 0}).replace(
        '"exp": 0', f'"exp": {json.dumps(exp)}'
    )
    claims = claims.replace('"Infinity"', "Infinity").replace('"NaN"', "NaN")
    head = (
        _base64(json.dumps({"alg": "RS256", "kid": "r"}).encode()) + b"." + _base64(claims.encode())
    )
    token = (
        head
        + b"."
        + _base64(
            jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256).sign(head, issuer.rsa)
        )
    ).decode()
    try:
        known = issuer.rules().identify(f"Bearer {token}", "", (), time.time())
    except UnknownCaller:
        return
    assert known.subject == "alice"
    assert time.time() < known.until < float("inf")


def test_a_subject_that_is_a_tokens_is_nobody_elses(issuer: Issuer) -> None:
    text = f'[tokens]\nalice = ["{sha("b-1")}"]\n'
    text += f'[jwt]\njwks = "jwks.json"\nissuer = "{ISSUER}"\naudience = "{AUDIENCE}"\n'
    with pytest.raises(UnknownCaller, match="may not name"):
        parse(text, issuer.folder).identify(f"Bearer {issuer.token()}", "", (), time.time())
    rules = parse(text + 'prefix = "jwt:"\n', issuer.folder)
    assert rules.identify(f"Bearer {issuer.token()}", "", (), time.time()).subject == "jwt:alice"
    assert rules.identify("Bearer b-1", "", (), time.time()).subject == "alice"
    with pytest.raises(UnknownCaller, match="may not name"):
        parse(text + 'prefix = "object:"\n', issuer.folder).identify(
            f"Bearer {issuer.token()}", "", (), time.time()
        )


def test_certificates_and_tokens_of_one_name_are_told_apart(issuer: Issuer) -> None:
    jwt_part = f'[jwt]\njwks = "jwks.json"\nissuer = "{ISSUER}"\naudience = "{AUDIENCE}"\n'
    certificates = '[certificates]\nsubject = "common-name"\n'
    for text in (
        jwt_part + certificates,
        f'{jwt_part}prefix = "a"\n{certificates}',
        f'{jwt_part}{certificates}prefix = "c"\n',
    ):
        with pytest.raises(AccessError, match="give a `prefix` to each"):
            parse(text, issuer.folder)
    for jwt_prefix, cert_prefix in (("", "cert:"), ("a", "a:"), ("x:", "x:"), ("cert:", "")):
        with pytest.raises(AccessError, match="one prefix begins with the other"):
            parse(
                f'{jwt_part}prefix = "{jwt_prefix}"\n{certificates}prefix = "{cert_prefix}"\n',
                issuer.folder,
            )
    rules = parse(f'{jwt_part}prefix = "jwt:"\n{certificates}prefix = "cert:"\n', issuer.folder)
    assert rules.identify(None, "alice", (), time.time()).subject == "cert:alice"
    assert rules.identify(f"Bearer {issuer.token()}", "", (), time.time()).subject == "jwt:alice"
    same = parse(f'{jwt_part}prefix = ""\n{certificates}prefix = ""\n', issuer.folder)
    assert (
        same.identify(None, "alice", (), time.time()).subject
        == same.identify(f"Bearer {issuer.token()}", "", (), time.time()).subject
        == "alice"
    )
    own = parse(f'[tokens]\nalice = ["{sha("b-1")}"]\n{certificates}', issuer.folder)
    assert own.identify(None, "alice", (), time.time()).subject == ANONYMOUS


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[" * 5_000,
        "a = " + "{b=" * 3_000,
        "\udcff".encode("utf-8", "surrogateescape").decode("latin-1"),
        "[tokens]\na = 1e999",
    ],
)
def test_a_file_that_no_parser_reads_is_wrong_and_nothing_worse(text: str) -> None:
    with pytest.raises(AccessError):
        parse(text)


def test_forged_tokens_are_refused(issuer: Issuer) -> None:
    rules = issuer.rules()
    public = issuer.rsa.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    claims = {"sub": "alice", "iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + LIFETIME_S}
    hs256 = b".".join(
        _base64(json.dumps(part).encode()) for part in ({"alg": "HS256", "kid": "r"}, claims)
    )
    confused = (
        hs256 + b"." + _base64(hmac.digest(public, hs256, "sha256"))
    ).decode()  # the public key for a secret
    head, body, _ = issuer.token().split(".")
    forged = [
        issuer.token(rsa.generate_private_key(65537, 2048)),
        issuer.token(ec.generate_private_key(ec.SECP256R1()), "ES256", "e"),
        issuer.token(issuer.ec, "ES256", "r"),  # the right key under another's name
        confused,
        jwt.encode(claims, "", algorithm="none", headers={"kid": "r"}),
        f"{head}.{body}.",
        "a.b.c",
        "..",
    ]
    for token in forged:
        with pytest.raises(UnknownCaller):
            rules.identify(f"Bearer {token}", "", (), time.time())


async def test_changed_files_are_taken_over_and_wrong_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, issuer: Issuer
) -> None:
    monkeypatch.setattr(access, "LOOK_S", 0.02)
    path = tmp_path / "access.toml"

    def write(extra: str) -> None:
        path.write_text(
            f'[jwt]\njwks = "jwks.json"\nissuer = "{ISSUER}"\naudience = "{AUDIENCE}"\n{extra}'
        )

    write("")
    file = AccessFile(path)
    task = asyncio.create_task(file.watch())

    async def version(wanted: int) -> None:
        async with asyncio.timeout(5):
            while file.version != wanted:
                await asyncio.sleep(0.01)

    try:
        assert not file.access.may_call("alice", "K", "m")
        await asyncio.sleep(0.1)
        write('[[allow]]\nsubjects = ["alice"]\nkinds = ["K"]\nmethods = ["m"]')
        await version(2)
        assert file.access.may_call("alice", "K", "m")
        write("[[allow")
        async with asyncio.timeout(5):
            while not file.failing:
                await asyncio.sleep(0.01)
        assert file.access.may_call("alice", "K", "m")
        write('[[allow]]\nsubjects = ["bob"]\nkinds = ["K"]\nmethods = ["m"]')
        await version(3)
        assert not file.failing
        assert not file.access.may_call("alice", "K", "m")
        old = issuer.token()
        issuer.rsa = rsa.generate_private_key(65537, 2048)
        issuer.publish()
        await version(4)
        assert (
            file.access.identify(f"Bearer {issuer.token()}", "", (), time.time()).subject == "alice"
        )
        with pytest.raises(UnknownCaller):
            file.access.identify(f"Bearer {old}", "", (), time.time())
    finally:
        task.cancel()


# -- limits


def test_calls_a_second_are_bounded_and_saved_up_for_a_second() -> None:
    now = 100.0
    use = RateLimits(lambda: now).of("a", SubjectLimits(calls_per_s=10))
    assert use is not None
    assert sum(use.take(1) is None for _ in range(50)) == 10
    refused = use.take(1)
    assert refused is not None
    why, wait = refused
    assert why == "10 calls a second of this subject"
    assert 0 < wait <= 0.1
    now += wait + 1e-6
    assert use.take(1) is None
    assert use.take(1) is not None
    now += 60
    assert sum(use.take(1) is None for _ in range(50)) == 10


def test_less_than_one_call_a_second_is_possible() -> None:
    now = 0.0
    use = RateLimits(lambda: now).of("a", SubjectLimits(calls_per_s=0.5))
    assert use is not None
    taken = 0
    for _ in range(100):
        now += 0.1
        taken += use.take(1) is None
    assert taken in (5, 6)


def test_calls_in_flight_and_bytes_are_bounded_for_all_sessions_of_a_subject() -> None:
    now = 0.0
    uses = RateLimits(lambda: now)
    limits = SubjectLimits(in_flight=3, bytes_per_s=1000)
    one, two = uses.of("a", limits), uses.of("a", limits)
    assert one is not None
    assert one is two
    assert [one.take(10) is None for _ in range(4)] == [True, True, True, False]
    one.in_flight -= 3
    assert one.take(5000) is None  # larger than a second's worth: it passes, and is paid for
    refused = one.take(1)
    assert refused is not None
    assert "bytes a second" in refused[0]
    now += 3.9
    assert one.take(1) is not None
    now += 0.2
    assert one.take(1) is None
    assert uses.of("b", None) is None


def test_limits_are_a_subject_s_own_or_those_of_a_pattern() -> None:
    rules = parse(
        "[limits.a]\nin_flight = 1\n[limits.'team/*']\nin_flight = 2\n[limits.'*']\nin_flight = 3"
    )
    assert [rules.limits_of(subject).in_flight for subject in ("a", "team/x", "other")] == [1, 2, 3]  # type: ignore[union-attr]


def test_only_a_few_refusals_a_second_are_logged() -> None:
    now = 7.2
    few = RateLimitedLog(3, lambda: now)
    assert [few.allow() for _ in range(5)] == [True, True, True, False, False]
    now = 8.0
    assert few.allow()


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        '"x"',
        '{"keys": [1]}',
        '{"keys": {}}',
        '{"keys": ' + "[" * 100_000,
        '{"keys": []}',
    ],
)
def test_a_jwks_file_of_another_shape_is_wrong_and_nothing_worse(tmp_path: Path, text: str) -> None:
    (tmp_path / "jwks.json").write_text(text)
    with pytest.raises(AccessError, match=r"jwks\.json"):
        parse(f'[jwt]\njwks = "jwks.json"\nissuer = "{ISSUER}"\naudience = "{AUDIENCE}"', tmp_path)


@pytest.mark.parametrize(
    "odd",
    [
        {"kty": "RSA", "n": "!", "e": 5},
        {"kty": "EC", "crv": []},
        {"kty": {}},
        {"kty": "OKP"},
        7,
        "x",
        None,
    ],
)
def test_an_odd_key_of_a_jwks_file_is_passed_over(issuer: Issuer, odd: Any) -> None:
    path = issuer.folder / "jwks.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps({"keys": [odd, *found["keys"]]}))
    assert (
        issuer.rules().identify(f"Bearer {issuer.token()}", "", (), time.time()).subject == "alice"
    )


async def test_a_change_before_the_file_is_watched_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "LOOK_S", 0.02)
    path = tmp_path / "access.toml"
    path.write_text('[[admin]]\nsubjects = ["ops"]\nmay = "change"')
    file = AccessFile(path)
    path.write_text("")
    task = asyncio.create_task(file.watch())
    async with asyncio.timeout(5):
        while file.access.may_admin("ops", change=True):
            await asyncio.sleep(0.01)
    assert (file.version, file.failing) == (2, False)
    task.cancel()


def test_a_limit_that_is_no_number_is_refused() -> None:
    with pytest.raises(AccessError, match="has to be above 0"):
        parse("[limits.a]\ncalls_per_s = nan")


def test_a_file_that_is_wrong_half_way_leaves_the_old_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "access.toml"
    path.write_text('[[allow]]\nsubjects = ["a"]\nkinds = ["K"]\nmethods = ["m"]')
    file = AccessFile(path)
    parse_file = Access.parse

    def parse_and_change(text: bytes, folder: Path) -> Access:
        parsed = parse_file(text, folder)
        path.write_text("[[allow")
        return parsed

    path.write_text("")
    monkeypatch.setattr(Access, "parse", parse_and_change)
    with pytest.raises(AccessError):
        file._read()
    assert file.access.may_call("a", "K", "m")
    assert file.version == 1


def test_brackets_in_patterns_stand_for_themselves() -> None:
    rules = parse("[[allow]]\nsubjects = ['svc[1]*']\nkinds = ['K']\nmethods = ['?']")
    assert rules.may_call("svc[1]x", "K", "m")
    assert not rules.may_call("svc1", "K", "m")
    assert not rules.may_call("svc[1]", "K", "mm")


def caller(file: AccessFile, uses: RateLimits, token: str) -> Caller:
    return Caller(file, uses, f"Bearer {token}", "", [], "somewhere")


def test_limits_that_come_while_calls_are_under_way_are_not_paid_out_to_those_that_follow(
    tmp_path: Path,
) -> None:
    path = tmp_path / "access.toml"
    rules = f'[tokens]\na = ["{hashlib.sha256(b"secret").hexdigest()}"]\n'
    limits = "[limits.a]\nin_flight = 2\n"
    call = pb.Call(kind="K", key="k", method="m")
    path.write_text(rules)
    file, uses = AccessFile(path), RateLimits()
    before = caller(file, uses, "secret")
    assert [before.take(call) for _ in range(50)] == [None] * 50
    path.write_text(rules + limits)
    file._read()
    assert before.look(time.time()) is None
    before.done(50)
    after = caller(file, uses, "secret")
    assert [after.take(call) is None for _ in range(4)] == [True, True, False, False]
    path.write_text(rules)  # taken back, and given again
    file._read()
    assert after.look(time.time()) is None
    assert [after.take(call) is None for _ in range(4)] == [True] * 4
    path.write_text(rules + limits)
    file._read()
    assert after.look(time.time()) is None
    assert after.take(call) is not None
    after.done(6)
    assert [after.take(call) is None for _ in range(3)] == [True, True, False]


def test_a_token_that_becomes_another_subject_s_ends_its_sessions_and_frees_nobody_of_limits(
    tmp_path: Path,
) -> None:
    path = tmp_path / "access.toml"
    one, two = (hashlib.sha256(token).hexdigest() for token in (b"one", b"two"))
    limits = "[limits.a]\nin_flight = 2\n"
    path.write_text(f'[tokens]\na = ["{one}", "{two}"]\n{limits}')
    file, uses = AccessFile(path), RateLimits()
    moves, stays = caller(file, uses, "one"), caller(file, uses, "two")
    path.write_text(f'[tokens]\nb = ["{one}"]\na = ["{two}"]\n{limits}')
    file._read()
    assert (
        moves.look(time.time())
        == "your token or certificate names another subject now: connect again"
    )
    assert stays.look(time.time()) is None
    call = pb.Call(kind="K", key="k", method="m")
    assert [stays.take(call) is None for _ in range(3)] == [True, True, False]
