"""TLS on every link, who is let in, and what each may: real processes, real certificates, one test
for each refusal."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import holdfast
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2
from holdfast.channels import open_channel
from holdfast.ids import EFFECT
from holdfast.local import free_port
from holdfast.v1 import admin_pb2
from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.peerpb import peer_pb2
from holdfast_cluster.streams.tcp import StreamRefused, open_stream

from tests.certs import Authority
from tests.cluster.processes import Processes, bare_call, run

APP = str(Path(__file__).parent / "monitoring_app.py")
NAME = "default.holdfast"
TOKENS = {
    "shop": "token-of-the-shop",
    "ops": "token-of-ops",
    "watcher": "token-of-the-watcher",
    "slow": "token-of-slow",
    "few": "token-of-few",
    "large": "token-of-large",
    "one": "token-of-one",
    "jürgen 中": "token-of-juergen",
}
ACCESS = """
[tokens]
{tokens}

[certificates]
subject = "common-name"

[[allow]]
subjects = ["shop", "slow", "few", "large", "one", "cert-*"]
kinds = ["Shop"]
methods = ["*"]

[[allow]]
subjects = ["ops"]
kinds = ["*"]
methods = ["*"]

[[admin]]
subjects = ["ops", "jürgen 中"]
may = "change"

[[admin]]
subjects = ["watcher"]
may = "read"

[limits.slow]
calls_per_s = 5

[limits.few]
in_flight = 2

[limits.one]
sessions = 1

[limits.large]
bytes_per_s = 20_000
"""


class Secured(Processes):
    """A cluster with TLS on every link, etcd's included, that asks callers who they are."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, replication=3)
        self.ca = Authority(folder / "certs", "cluster")
        self.clients_ca = Authority(folder / "certs", "clients")
        self.ca.sign("process", NAME, "localhost")
        self.access = folder / "access.toml"
        self.write_access()

    def write_access(self, extra: str = "") -> None:
        lines = [
            f'"{subject}" = ["{hashlib.sha256(token.encode()).hexdigest()}"]'
            for subject, token in TOKENS.items()
        ]
        self.access.write_text(ACCESS.format(tokens="\n".join(lines)) + extra)

    @property
    def files(self) -> Path:
        return self.ca.file.parent

    def tls(self) -> list[str]:
        process, key = self.files / "process.pem", self.files / "process-key.pem"
        return [
            "--tls-cert",
            str(process),
            "--tls-key",
            str(key),
            "--tls-ca",
            str(self.ca.file),
            "--etcd-ca",
            str(self.ca.file),
            "--etcd-cert",
            str(process),
            "--etcd-key",
            str(key),
        ]

    def start_secured(self, *gateway_options: str) -> None:
        process, key = self.files / "process.pem", self.files / "process-key.pem"
        self.start_etcd(
            "--cert-file",
            str(process),
            "--key-file",
            str(key),
            "--trusted-ca-file",
            str(self.ca.file),
            "--client-cert-auth",
            scheme="https",
        )
        for i in (1, 2, 3):
            self.node(f"n{i}", "--members-min", "3", "--log-format", "json", *self.tls(), app=APP)
        self.front(
            *self.tls(), "--access", str(self.access), "--log-format", "json", *gateway_options
        )

    def shown(self, subject: str | None = "ops") -> holdfast.Client:
        """A client that shows a subject's token."""
        return holdfast.connect(
            self.gateway,
            timeout=20,
            tls=holdfast.TLS(self.ca.file),
            token=None if subject is None else TOKENS[subject],
        )

    def command(self, subject: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        file = self.folder / f"{subject}.token"
        file.write_text(TOKENS[subject] + "\n")
        return run(
            *arguments,
            "--gateway",
            self.gateway,
            "--gateway-ca",
            str(self.ca.file),
            "--token-file",
            str(file),
        )

    def member(self, node: str = "n1") -> Any:
        """What the cluster knows of a node."""
        answer = self.command("ops", "status", "--json")
        return next(n for n in json.loads(answer.stdout)["nodes"] if n["id"].startswith(node))

    async def serves(self) -> None:
        async with self.shown() as client:
            await client.get("Shop", "ready", timeout=60).sold()


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    cluster = Secured(tmp_path_factory.mktemp("secured"))
    try:
        cluster.start_secured()
        asyncio.run(cluster.serves())
        yield cluster
    finally:
        cluster.stop()


async def test_who_is_known_calls_with_tls_on_every_link_and_the_handler_sees_who(
    secured: Secured,
) -> None:
    async with secured.shown("shop") as client:
        assert await client.get("Shop", "a").sell(2) == 2
        assert await client.get("Shop", "a").who() == "shop"
        assert await client.get("Shop", "a").who_told() == "object:Shop/a"
    with holdfast.connect_blocking(
        secured.gateway, tls=holdfast.TLS(secured.ca.file), token=lambda: TOKENS["ops"]
    ) as blocking:
        assert blocking.get("Shop", "a").who() == "ops"
    async with secured.shown("ops") as client:
        async with asyncio.timeout(10):
            # a notification crossed from node to node
            while await client.get("Ledger", "a").total() != 2:
                await asyncio.sleep(0.05)


async def test_a_client_cannot_say_that_it_is_somebody_else(secured: Secured) -> None:
    channel = open_channel(secured.gateway, credentials=holdfast.TLS(secured.ca.file).credentials())
    session: Any = channel.stream_stream("/holdfast.v1.Objects/Session")(
        metadata=(("authorization", f"Bearer {TOKENS['shop']}"),)
    )
    call = pb.Call(
        id=1,
        kind="Shop",
        key="a",
        method="who",
        request_id=holdfast.new_request_id(),
        caller="object:Ledger/a",
        chain=["Shop/a"],
    )
    await session.write(pb.SessionRequest(calls=[call]).SerializeToString())
    reply = pb.SessionResponse.FromString(await session.read()).replies[0]
    assert reply.result == b"\xa4shop"
    session.cancel()
    await channel.close()


async def test_a_client_cannot_take_the_ids_of_the_cluster_s_own_effects(secured: Secured) -> None:
    taken = bytes([EFFECT]) * 16
    async with secured.shown("shop") as client:
        with pytest.raises(
            ValueError, match="request ids that begin with fe are the cluster's own"
        ):
            client.get("Shop", "a", request_id=taken)
    channel = open_channel(secured.gateway, credentials=holdfast.TLS(secured.ca.file).credentials())
    call: Any = channel.unary_unary(
        "/holdfast.v1.Objects/Call", request_serializer=pb.CallRequest.SerializeToString
    )
    request = pb.CallRequest(kind="Shop", key="a", method="sold", json="[]", request_id=taken)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(request, metadata=(("authorization", f"Bearer {TOKENS['shop']}"),))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    await channel.close()


# -- refusals at the gateway


async def test_without_a_token_or_with_a_wrong_one_nobody_is_let_in(secured: Secured) -> None:
    tls = holdfast.TLS(secured.ca.file)
    for token, why in (
        ("nonsense", "the token is not known"),
        (TOKENS["shop"][:-1], "the token is not known"),
    ):
        async with holdfast.connect(secured.gateway, timeout=20, tls=tls, token=token) as client:
            began = time.monotonic()
            with pytest.raises(holdfast.Unauthenticated, match=why):
                await client.get("Shop", "a").sold()
            assert time.monotonic() - began < 10  # and it is told at once, not at the deadline
        with (
            holdfast.connect_blocking(secured.gateway, tls=tls, token=token) as blocking,
            pytest.raises(holdfast.Unauthenticated, match=why),
        ):
            blocking.get("Shop", "a").sold()
    async with holdfast.connect(
        secured.gateway, tls=tls
    ) as client:  # who shows nothing is anonymous
        with pytest.raises(holdfast.PermissionDenied, match=r"anonymous may not call Shop\.sold"):
            await client.get("Shop", "a").sold()


async def test_a_subject_may_call_what_the_policy_says_and_nothing_else(secured: Secured) -> None:
    async with secured.shown("shop") as client:
        with pytest.raises(
            holdfast.PermissionDenied, match=r"shop may not call Ledger\.total"
        ) as denied:
            await client.get("Ledger", "a").total()
        assert denied.value.definite
        assert not denied.value.retryable
        # what objects do among themselves is theirs
        assert await client.get("Shop", "b").audit() == 0
    tls = holdfast.TLS(secured.ca.file)
    with (
        holdfast.connect_blocking(secured.gateway, tls=tls, token=TOKENS["watcher"]) as blocking,
        pytest.raises(holdfast.PermissionDenied),
    ):
        blocking.get("Shop", "a").sold()


def test_operators_may_what_the_policy_says(secured: Secured) -> None:
    assert secured.command("ops", "status").returncode == 0
    assert secured.command("watcher", "status").returncode == 0
    refused = secured.command("shop", "status")
    assert "PERMISSION_DENIED: shop may not look as an operator" in refused.stderr
    for change in (
        ("objects", "delete", "Shop", "a", "--yes"),
        ("objects", "delete", "Shop", "--prefix", "a", "--yes"),
        ("objects", "evict", "Shop", "a"),
        ("pause", "Shop"),
        ("deadletters", "drop", "--all"),
        ("drain", secured.member()["id"]),
        ("reset-shard", "1", "--confirm", "give up the data of shard 1"),
    ):
        refused = secured.command("watcher", *change)
        assert (
            "PERMISSION_DENIED: watcher may not change anything as an operator" in refused.stderr
        ), change
    assert (
        secured.command(
            "watcher", "objects", "delete", "Shop", "--prefix", "a", "--dry-run"
        ).returncode
        == 0
    )
    assert secured.command("watcher", "drain", secured.member()["id"], "--dry-run").returncode == 0
    assert secured.command("ops", "objects", "evict", "Shop", "nobody").returncode == 0
    assert "asked for by ops at ipv4:127.0.0.1" in secured.said("gateway")
    bare = run("status", "--gateway", secured.gateway, "--gateway-ca", str(secured.ca.file))
    assert "PERMISSION_DENIED: anonymous may not look" in bare.stderr


def test_every_method_of_the_admin_service_asks_who_calls(secured: Secured) -> None:
    channel = grpc.secure_channel(secured.gateway, holdfast.TLS(secured.ca.file).credentials())
    methods = admin_pb2.DESCRIPTOR.services_by_name["Admin"].methods
    assert len(methods) > 10
    for method in methods:
        kind: Any = channel.unary_stream if method.server_streaming else channel.unary_unary
        for metadata, code in (
            ((), grpc.StatusCode.PERMISSION_DENIED),
            ((("authorization", "Bearer nonsense"),), grpc.StatusCode.UNAUTHENTICATED),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                list(kind(f"/holdfast.v1.Admin/{method.name}")(b"", timeout=10, metadata=metadata))
            assert refused.value.code() == code, method.name
    channel.close()


async def test_limits_of_subjects(secured: Secured) -> None:
    async with secured.shown("slow") as client:
        shop = client.get("Shop", "slow")
        ended = await asyncio.gather(*(shop.sold() for _ in range(30)), return_exceptions=True)
        refused = [error for error in ended if isinstance(error, holdfast.Overloaded)]
        # The client itself tries again what is refused so, within its budget.
        assert refused
        assert "5 calls a second of this subject" in refused[0].message
        assert refused[0].retryable
        assert refused[0].definite
        assert refused[0].retry_after_s > 0
    async with secured.shown("few") as client:
        waiting = [
            asyncio.ensure_future(client.get("Shop", f"few{i}").think(1.5)) for i in range(2)
        ]
        await asyncio.sleep(0.3)
        async with holdfast.connect(
            secured.gateway, tls=holdfast.TLS(secured.ca.file), token=TOKENS["few"], retry_budget=0
        ) as other:  # another session of the same subject
            with pytest.raises(holdfast.Overloaded, match="2 calls of this subject are in flight"):
                await other.get("Shop", "few2").sold()
            await asyncio.gather(*waiting)
            assert await other.get("Shop", "few2").sold() == 0
            async with secured.shown(
                "few"
            ) as third:  # what a session leaves behind when it ends still runs, and still counts
                left = [
                    asyncio.ensure_future(third.get("Shop", f"few{i}").think(1.5)) for i in range(2)
                ]
                await asyncio.sleep(0.3)
            await asyncio.gather(*left, return_exceptions=True)
            with pytest.raises(holdfast.Overloaded, match="2 calls of this subject are in flight"):
                await other.get("Shop", "few2").sold()
            await asyncio.sleep(2)
            assert await other.get("Shop", "few2").sold() == 0
    async with holdfast.connect(
        secured.gateway, tls=holdfast.TLS(secured.ca.file), token=TOKENS["large"], retry_budget=0
    ) as client:  # bytes are counted as they come, whatever the node says of them
        with pytest.raises(holdfast.InvalidArgument):
            await client.get("Shop", "large").sell("x" * 60_000)
        with pytest.raises(
            holdfast.Overloaded, match="20000 bytes a second of this subject"
        ) as refused_for:
            await client.get("Shop", "large").sold()
        assert 0 < refused_for.value.retry_after_s <= 2.1
        await asyncio.sleep(refused_for.value.retry_after_s)
        assert await client.get("Shop", "large").sold() == 0
    async with secured.shown("ops") as client:  # and nobody else is the slower for it
        await asyncio.gather(*(client.get("Shop", f"o{i}").sold() for i in range(200)))


async def test_limits_that_are_taken_back_bind_no_session_any_more(secured: Secured) -> None:
    async with holdfast.connect(
        secured.gateway,
        timeout=20,
        tls=holdfast.TLS(secured.ca.file),
        token=TOKENS["slow"],
        retry_budget=0,
    ) as client:
        shop = client.get("Shop", "free")
        refused = await asyncio.gather(*(shop.sold() for _ in range(100)), return_exceptions=True)
        assert any(isinstance(one, holdfast.Overloaded) for one in refused)
        secured.access.write_text(secured.access.read_text().partition("[limits.slow]")[0])
        try:
            await asyncio.sleep(3)
            assert await asyncio.gather(*(shop.sold() for _ in range(100))) == [0] * 100
        finally:
            secured.write_access()
            await asyncio.sleep(2.5)


async def test_a_changed_access_file_holds_for_sessions_that_are_open(secured: Secured) -> None:
    async with secured.shown("shop") as client:
        with pytest.raises(holdfast.PermissionDenied):
            await client.get("Ledger", "x").total()
        secured.write_access(
            '\n[[allow]]\nsubjects = ["shop"]\nkinds = ["Ledger"]\nmethods = ["total"]\n'
        )
        try:
            async with asyncio.timeout(15):
                while True:
                    try:
                        assert await client.get("Ledger", "x").total() == 0
                        break
                    except holdfast.PermissionDenied:
                        await asyncio.sleep(0.2)
            text = secured.access.read_text().replace(
                hashlib.sha256(TOKENS["shop"].encode()).hexdigest(), "0" * 64
            )
            secured.access.write_text(text)  # the token is taken back
            async with asyncio.timeout(15):
                while True:
                    try:
                        await client.get("Ledger", "x", timeout=3).total()
                        await asyncio.sleep(0.2)
                    except (holdfast.Unauthenticated, holdfast.Unavailable):
                        break
        finally:
            secured.write_access()
            await asyncio.sleep(2.5)


def test_refusals_are_counted_and_logged_and_no_secret_with_them(secured: Secured) -> None:
    said = secured.said("gateway")
    assert "unauthenticated: the token is not known" in said
    assert "permission denied: shop may not call Ledger.total" in said
    everything = "".join(secured.log(name).read_text() for name in secured.processes)
    for token in (*TOKENS.values(), "nonsense"):
        assert token not in everything
        assert hashlib.sha256(token.encode()).hexdigest() not in everything


# -- refusals of certificates


def test_commands_say_what_is_missing(secured: Secured, tmp_path: Path) -> None:
    bare = run("status", "--gateway", secured.gateway)
    assert "if it speaks TLS, name the CA of its certificate with --gateway-ca" in bare.stderr
    ca = ("--gateway", secured.gateway, "--gateway-ca", str(secured.ca.file))
    assert (
        "(show a token with --token-file, or a certificate with --client-cert)"
        in run("status", *ca).stderr
    )
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "two").write_text("one\ntwo\n")
    for name in ("empty", "binary", "two"):
        refused = run("status", *ca, "--token-file", str(tmp_path / name))
        assert refused.returncode == 1
        assert refused.stderr.startswith(f"Error: --token-file {tmp_path / name}: ")
        assert "Traceback" not in refused.stderr
    key = secured.files / "process-key.pem"
    wrong = run("status", "--gateway", secured.gateway, "--gateway-ca", str(key))
    assert f"{key} has no certificate in PEM" in wrong.stderr
    assert wrong.returncode == 1
    (tmp_path / "rubbish.pem").write_text(
        "-----BEGIN CERTIFICATE-----\nrubbish\n-----END CERTIFICATE-----\n"
    )
    assert (
        "rubbish.pem has no certificate"
        in run("status", *ca[:3], str(tmp_path / "rubbish.pem")).stderr
    )


async def test_no_link_works_without_tls(secured: Secured) -> None:
    async with holdfast.connect(secured.gateway, timeout=2) as client:
        with pytest.raises(holdfast.Unavailable):
            await client.get("Shop", "a").sold()
    member = secured.member()
    channel = grpc.aio.insecure_channel(member["address"])
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await bare_call(channel, "/holdfast.peer.v1.Peer/Stats")(b"", timeout=5)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    await channel.close()
    with pytest.raises((ConnectionError, TimeoutError)):
        await open_stream(
            streams_of(secured, "n1"), "pipe", f"{member['id']}:1", lambda frame: None
        )


def etcdctl(secured: Secured, *arguments: str) -> str:
    process, key = secured.files / "process.pem", secured.files / "process-key.pem"
    return subprocess.run(
        [
            "etcdctl",
            "--endpoints",
            f"https://{secured.etcd}",
            "--cacert",
            str(secured.ca.file),
            "--cert",
            str(process),
            "--key",
            str(key),
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=True,
        env={
            **os.environ,
            "ETCDCTL_API": "3",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
    ).stdout


def streams_of(secured: Secured, node: str) -> str:
    """Where a node takes streams."""
    found = etcdctl(
        secured, "get", "--prefix", "--print-value-only", f"/holdfast/default/members/{node}"
    )
    return str(json.loads(found.splitlines()[0])["streams"])


def test_etcd_is_rebuilt_with_the_certificate_of_a_process_only(secured: Secured) -> None:
    lineage = etcdctl(
        secured, "get", "--print-value-only", "/holdfast/default/etcd_lineage"
    ).strip()
    etcdctl(
        secured,
        "put",
        "/holdfast/default/etcd_lineage",
        lineage[:-1] + ',"state":"halted","by":"a test","why":"so"}',
    )
    at = ["adopt-etcd", "--etcd-endpoints", secured.etcd, "--dry-run"]
    try:
        done = run(*at, *secured.tls())
        assert "reports of 3 nodes" in done.stdout, done.stderr
        plain = run(*at, *secured.tls()[6:])
        assert plain.returncode == 1
        assert "no node has reported" in plain.stderr
    finally:
        etcdctl(secured, "put", "/holdfast/default/etcd_lineage", lineage)
    deadline = time.monotonic() + 30
    while secured.command("ops", "status", "--json").returncode:  # it is followed again
        assert time.monotonic() < deadline
        time.sleep(0.2)


class Shown:
    """Certificates as `open_stream` takes them, of anybody."""

    def __init__(self, ca: Path, pair: tuple[Path, Path] | None, name: str = NAME) -> None:
        self.name = name
        self.client_context = ssl.create_default_context(cafile=str(ca))
        if pair is not None:
            self.client_context.load_cert_chain(*pair)


async def test_a_node_s_ports_want_a_certificate_of_a_process_of_this_cluster(
    secured: Secured,
) -> None:
    member = secured.member()
    streams = streams_of(secured, "n1")
    me = f"{member['id']}:{member['incarnation']}"
    process = secured.ca.sign("another-process", NAME)

    async def open_as(pair: tuple[Path, Path] | None) -> Any:
        certificates: Any = Shown(secured.ca.file, pair)
        return await open_stream(streams, "pipe", me, lambda frame: None, certificates=certificates)

    stream = await open_as(process)
    stream.abort("done")
    strangers = {
        "none": None,
        "another CA": Authority(secured.files, "evil").sign("evil-process", NAME),
        "expired": secured.ca.sign("expired", NAME, lasts=-datetime.timedelta(hours=1)),
    }
    for pair in strangers.values():
        with pytest.raises((ConnectionError, TimeoutError, ssl.SSLError)):
            await open_as(pair)
    client = secured.ca.sign("client-of-the-same-ca", "client.example")
    with pytest.raises(
        StreamRefused, match=r"not belong to a process of this cluster; its names: client\.example"
    ):
        await open_as(client)

    other_kinds = secured.ca.sign(
        "other-kinds-of-names",
        "me.example",
        other=(x509.RFC822Name(NAME), x509.UniformResourceIdentifier(NAME)),
    )
    for pair, code in (
        (process, None),
        (client, grpc.StatusCode.PERMISSION_DENIED),
        (other_kinds, grpc.StatusCode.PERMISSION_DENIED),
        (None, grpc.StatusCode.UNAVAILABLE),
        (strangers["another CA"], grpc.StatusCode.UNAVAILABLE),
        (strangers["expired"], grpc.StatusCode.UNAVAILABLE),
    ):
        credentials = holdfast.TLS(secured.ca.file, *(pair or (None, None))).credentials()
        channel = open_channel(
            member["address"], [("grpc.ssl_target_name_override", NAME)], credentials
        )
        for method in peer_pb2.DESCRIPTOR.services_by_name["Peer"].methods:
            make: Any = channel.stream_unary if method.client_streaming else channel.unary_unary
            sent = [b""] if method.client_streaming else b""
            if code is None:
                if method.name == "Stats":
                    await make(f"/holdfast.peer.v1.Peer/{method.name}")(sent, timeout=10)
                continue
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await make(f"/holdfast.peer.v1.Peer/{method.name}")(sent, timeout=5)
            assert refused.value.code() == code, method.name
        await channel.close()


async def test_a_client_does_not_trust_a_gateway_of_another_ca(secured: Secured) -> None:
    other = Authority(secured.folder / "other", "other")
    async with holdfast.connect(
        secured.gateway, timeout=2, tls=holdfast.TLS(other.file), token=TOKENS["ops"]
    ) as client:
        with pytest.raises(holdfast.Unavailable):
            await client.get("Shop", "a").sold()
    named = holdfast.TLS(secured.ca.file, server_name="elsewhere.example")
    async with holdfast.connect(
        secured.gateway, timeout=2, tls=named, token=TOKENS["ops"]
    ) as client:
        with pytest.raises(holdfast.Unavailable):
            await client.get("Shop", "a").sold()


async def test_what_strangers_do_leaves_lines_of_json_only(secured: Secured) -> None:
    for address in (secured.gateway, secured.member()["address"], streams_of(secured, "n1")):
        host, _, port = address.rpartition(":")
        for garbage in (
            b"GET / HTTP/1.1\r\n\r\n",
            os.urandom(200),
            b"\x16\x03\x01\x02\x00\x01" + os.urandom(100),
        ):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(garbage)
            await asyncio.sleep(0.05)
            writer.close()
        with pytest.raises(ssl.SSLError):
            await asyncio.open_connection(
                host, int(port), ssl=ssl.create_default_context(), server_hostname="x"
            )
    channel = open_channel(secured.gateway, credentials=holdfast.TLS(secured.ca.file).credentials())
    call = bare_call(channel, "/holdfast.v1.Objects/Call")
    for wait in range(1, 40):  # some of these go away at the very moment in which they are refused
        await asyncio.gather(
            *(call(b"", timeout=wait / 10_000) for _ in range(50)), return_exceptions=True
        )
    await channel.close()
    await asyncio.sleep(0.5)
    assert "ExecuteBatchError" not in secured.said("gateway")
    for process in ("n1", "n2", "n3", "gateway"):
        for line in secured.said(process).splitlines():
            assert json.loads(line)["level"], line


async def test_certificates_are_taken_over_without_a_restart(secured: Secured) -> None:
    member = secured.member()
    before = (
        await fingerprint(secured, secured.gateway),
        await fingerprint(secured, member["address"]),
    )
    async with secured.shown() as client:
        secured.ca.sign("process", NAME, "localhost")  # the same files
        async with asyncio.timeout(20):
            for address, shown in zip((secured.gateway, member["address"]), before, strict=True):
                while await fingerprint(secured, address) == shown:
                    assert await client.get("Shop", "a").sold() is not None
                    await asyncio.sleep(0.3)
        assert await client.get("Shop", "a").sold() is not None
    # New connections between processes are made with the new ones: a node that comes back is
    # reached, and copies.
    secured.kill("n1")
    secured.node("n1", "--members-min", "3", "--log-format", "json", *secured.tls(), app=APP)
    async with asyncio.timeout(40):
        while (await asyncio.to_thread(secured.command, "ops", "status")).returncode != 0:
            await asyncio.sleep(0.5)
    for name in ("gateway", "n2", "n3"):
        assert "certificates: taken over" in secured.said(name)


async def fingerprint(secured: Secured, address: str) -> str:
    """Of the certificate that a server shows."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=str(secured.ca.file))
    context.load_cert_chain(*secured.ca.sign("looker", NAME))
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname=NAME)
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return hashlib.sha256(shown).hexdigest()


async def test_many_handshakes_at_once_harm_nobody(secured: Secured) -> None:
    """gRPC's server died of them while it was given its certificates anew for each."""
    context = ssl.create_default_context(cafile=str(secured.ca.file))
    context.load_cert_chain(*secured.ca.sign("many", NAME))
    context.set_alpn_protocols(["h2"])

    async def shake(address: str) -> None:
        host, _, port = address.rpartition(":")
        _, writer = await asyncio.open_connection(
            host, int(port), ssl=context, server_hostname=NAME
        )
        writer.close()

    for address in (secured.gateway, secured.member()["address"]):
        for _ in range(25):
            await asyncio.gather(*(shake(address) for _ in range(20)))
    assert all(process.poll() is None for process in secured.processes.values())


async def test_clients_may_have_to_show_certificates(secured: Secured) -> None:
    port = free_port()
    secured.start_gateway(
        "mutual",
        port,
        *secured.tls(),
        "--access",
        str(secured.access),
        "--client-ca",
        str(secured.clients_ca.file),
        "--health-port",
        "0",
    )
    try:
        shop = secured.clients_ca.sign("shop-client", common_name="cert-shop")
        async with holdfast.connect(
            f"127.0.0.1:{port}", timeout=20, tls=holdfast.TLS(secured.ca.file, *shop)
        ) as client:
            assert await client.get("Shop", "c").who() == "cert-shop"
            with pytest.raises(holdfast.PermissionDenied, match="cert-shop may not call"):
                await client.get("Ledger", "c").total()
        expired = secured.clients_ca.sign(
            "renewed", common_name="cert-shop", lasts=-datetime.timedelta(hours=1)
        )
        with holdfast.connect_blocking(
            f"127.0.0.1:{port}", tls=holdfast.TLS(secured.ca.file, *expired), timeout=2
        ) as blocking:
            with pytest.raises(holdfast.Unavailable):
                blocking.get("Shop", "c").who()
            secured.clients_ca.sign("renewed", common_name="cert-shop")  # the same files
            assert blocking.get("Shop", "c", timeout=20).who() == "cert-shop"
        for pair in ((), secured.ca.sign("not-a-client", common_name="cert-shop")):
            async with holdfast.connect(
                f"127.0.0.1:{port}", timeout=2, tls=holdfast.TLS(secured.ca.file, *pair)
            ) as client:
                with pytest.raises(holdfast.Unavailable):
                    await client.get("Shop", "c").who()
    finally:
        secured.kill("mutual")


# -- refusals at the start


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (
            ("--listen", "0.0.0.0:0"),
            "other machines can reach 0.0.0.0:0, and nothing would be encrypted",
        ),
        (("--listen", "shop.example:0"), "other machines can reach shop.example:0"),
        (("--tls-cert", "process.pem"), "TLS needs all of --tls-cert, --tls-key and --tls-ca"),
        (
            ("--tls-cert", "process.pem", "--tls-key", "other-key.pem", "--tls-ca", "cluster.pem"),
            "process.pem",
        ),
        (
            (
                "--tls-cert",
                "cluster.pem",
                "--tls-key",
                "process-key.pem",
                "--tls-ca",
                "process-key.pem",
            ),
            "process-key.pem",
        ),
        (
            ("--tls-cert", "named.pem", "--tls-key", "named-key.pem", "--tls-ca", "cluster.pem"),
            "named.pem is for other.holdfast; it must have the cluster's TLS name default.holdfast",
        ),
        (("--etcd-cert", "process.pem"), "TLS to etcd needs --etcd-ca"),
    ],
)
@pytest.mark.parametrize("what", ["node", "gateway"])
def test_what_is_not_safe_does_not_start(
    secured: Secured, tmp_path: Path, what: str, options: tuple[str, ...], why: str
) -> None:
    secured.ca.sign("other")
    secured.ca.sign("named", "other.holdfast")
    given = [
        str(secured.files / option) if option.endswith(".pem") else option for option in options
    ]
    command = ("node", APP, "--data", str(tmp_path)) if what == "node" else ("gateway",)
    refused = run(*command, *given, timeout=30)
    assert refused.returncode == 1
    assert why in refused.stderr


@pytest.mark.parametrize(
    ("text", "why"),
    [("[[allow]]", "missing required field"), ("nonsense = 1", "unknown field `nonsense`")],
)
def test_a_gateway_with_a_wrong_access_file_does_not_start(
    tmp_path: Path, text: str, why: str
) -> None:
    file = tmp_path / "access.toml"
    file.write_text(text)
    refused = run("gateway", "--listen", "127.0.0.1:0", "--access", str(file), timeout=30)
    assert refused.returncode == 1
    assert why in refused.stderr
    assert str(file) in refused.stderr


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--listen", "0.0.0.0:0"), "give its reachable address with --advertise"),
        (("--listen", "[::]:0"), "give its reachable address with --advertise"),
        (
            ("--listen", "127.0.0.1:0", "--advertise", "0.0.0.0:1"),
            "give its reachable address with --advertise",
        ),
        (
            ("--listen", "127.0.0.1:0", "--stream-advertise", "0.0.0.0:1"),
            "give its reachable address with --stream-advertise",
        ),
    ],
)
def test_a_node_says_where_others_reach_it(
    tmp_path: Path, options: tuple[str, ...], why: str
) -> None:
    refused = run("node", APP, "--data", str(tmp_path), "--insecure", *options, timeout=30)
    assert refused.returncode == 1
    assert why in refused.stderr


def test_insecure_has_to_be_said(processes: Processes) -> None:
    processes.start_etcd()
    port = free_port()
    processes.node("n1", "--listen", "0.0.0.0:0", "--advertise", f"127.0.0.1:{port}", "--insecure")
    deadline = time.monotonic() + 20
    while "serves at" not in processes.said("n1"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


async def test_the_health_port_says_how_it_is_and_nothing_else(processes: Processes) -> None:
    processes.start_etcd()
    port, front = free_port(), free_port()
    processes.node("n1", "--health-port", str(port))
    processes.front("--health-port", str(front))
    processes.wait_ready(processes.gateway)

    async def health(at: int, service: str) -> int:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{at}")
        try:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            return int(
                (await check(health_pb2.HealthCheckRequest(service=service), timeout=5)).status
            )
        finally:
            await channel.close()

    serving, not_serving = (
        health_pb2.HealthCheckResponse.SERVING,
        health_pb2.HealthCheckResponse.NOT_SERVING,
    )
    for at in (port, front):
        async with asyncio.timeout(5):
            while await health(at, "") != serving:
                await asyncio.sleep(0.1)
        assert await health(at, "live") == serving
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{at}")
        for method in ("Peer/Stats", "Admin/Status", "Objects/Call"):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await bare_call(channel, f"/holdfast.v1.{method}")(b"", timeout=5)
            assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
        await channel.close()
    processes.kill("etcd", signal.SIGKILL)
    await asyncio.sleep(5)
    # liveness does not depend on etcd
    assert await health(port, "live") == await health(front, "live") == serving
    assert await health(front, "") == serving  # nor do calls
    assert await health(port, "") in (serving, not_serving)


def test_a_token_is_made_for_a_subject() -> None:
    made = run("token", 'team "a"')
    token = made.stdout.strip()
    assert len(token) > 40
    assert (
        made.stderr
        == f'[tokens]\n"team \\"a\\"" = ["{hashlib.sha256(token.encode()).hexdigest()}"]\n'
    )


async def test_an_operator_of_any_name_may_change_what_its_rights_allow(secured: Secured) -> None:
    """gRPC's metadata, which tells nodes who asks, takes printable ASCII alone."""
    async with secured.shown() as client:
        await client.get("Shop", "evicted").sell(1)
    done = await asyncio.to_thread(
        secured.command, "jürgen 中", "objects", "evict", "Shop", "evicted"
    )
    assert (done.returncode, done.stdout.strip()) == (0, "the object left memory"), done.stderr
    logged = "".join(secured.said(node) for node in ("n1", "n2", "n3"))
    assert any(
        "asked for by jürgen 中 at" in json.loads(line)["message"] for line in logged.splitlines()
    )


async def test_a_token_that_is_shown_twice_is_refused(secured: Secured) -> None:
    """The last one would win: a proxy that adds one of its own and a caller that brings another do
    not mean the same."""
    tls = holdfast.TLS(secured.ca.file)
    async with grpc.aio.secure_channel(
        secured.gateway, tls.credentials(), options=tls.options()
    ) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[pb.CallRequest, bytes] = channel.unary_unary(
            "/holdfast.v1.Objects/Call", request_serializer=pb.CallRequest.SerializeToString
        )
        shown = [("authorization", f"Bearer {TOKENS[subject]}") for subject in ("shop", "ops")]
        with pytest.raises(
            grpc.aio.AioRpcError, match="authorization was given more than once"
        ) as refused:
            await call(
                pb.CallRequest(kind="Shop", key="a", method="sold"), metadata=shown, timeout=10
            )
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_a_subject_has_no_more_sessions_than_its_limit(secured: Secured) -> None:
    async with secured.shown("one") as first:
        assert await first.get("Shop", "one").sold() == 0
        async with secured.shown("one") as second:
            with pytest.raises(holdfast.Unavailable, match="1 sessions of this subject are open"):
                await second.get("Shop", "one", timeout=1.5).sold()
    async with secured.shown("one") as third:
        assert await third.get("Shop", "one").sold() == 0
