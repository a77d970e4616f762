"""TLS: the certificates of clients, and of processes, whose files may change while they run.

Every process of a cluster has one certificate, for what it serves and for what it connects to.
Between processes both sides show one (mutual TLS), signed by the cluster's CA and made out to the
cluster's *TLS name*: a DNS name among the certificate's alternative names that all processes share
and nobody else has. Addresses play no part in that, so pods may come and go under any. A client's
certificate, even one of the same CA, does not have that name, and so does not open a node's ports.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from cryptography import x509

from holdfast.files import state_of

log = logging.getLogger(__name__)

LOOK_S = 2.0
"""How often the files are looked at."""
EXPIRES_SOON_S = 7 * 86_400


@dataclass(frozen=True, slots=True)
class TLS:
    """What a client needs for TLS: `ca` to trust (None: the system's), `cert` and `key` where the
    gateway asks for a certificate.

    `server_name`: the name that the gateway's certificate has to have, when it is not the address
    that is connected to.

    The files are read for each new connection: renewed ones are used from the next on.
    """

    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """For a channel. Reads the files; raises OSError when one cannot be read, ValueError for
        what is no PEM, or half a pair."""
        if (self.cert is None) != (self.key is None):
            raise ValueError("a certificate needs its key, and a key its certificate")
        ca, cert, key = (
            None if file is None else Path(file) for file in (self.ca, self.cert, self.key)
        )
        pems = [None if file is None else file.read_bytes() for file in (ca, key, cert)]
        # gRPC tells nobody what is wrong with files
        trial = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if ca is not None:
            try:
                trial.load_verify_locations(ca)
            except ssl.SSLError as error:
                raise ValueError(f"{ca} holds no certificate in PEM: {error}") from None
        if cert is not None:
            try:
                trial.load_cert_chain(cert, key)
            except ssl.SSLError as error:
                raise ValueError(
                    f"{cert} and {key} are no certificate and its key in PEM: {error}"
                ) from None
        return grpc.ssl_channel_credentials(*pems)

    def state(self) -> tuple[object, ...]:
        """Something that is another thing when one of the files has changed."""
        return state_of(
            None if file is None else Path(file) for file in (self.ca, self.cert, self.key)
        )

    def options(self) -> list[tuple[str, str]]:
        """For the same channel."""
        return (
            []
            if self.server_name is None
            else [("grpc.ssl_target_name_override", self.server_name)]
        )


Token = str | Callable[[], str]
"""A bearer token, or what gives the one to show now: called for each connection (each call of a
blocking client), on the loop or the calling thread, so it should be quick."""


def authorization(token: Token | None) -> tuple[tuple[str, str], ...] | None:
    """The metadata that show a token."""
    if token is None:
        return None
    shown = (
        token() if callable(token) else token
    ).strip()  # what is read from a file ends with its line
    if not shown or not shown.isascii() or not shown.isprintable():
        raise ValueError("a token is printable ASCII text, and not empty")
    return (("authorization", f"Bearer {shown}"),)


class CertificateError(Exception):
    """Files that are no certificate, key or CA, or do not belong together; the message
    names them."""


class Certificates:
    """A process's certificate, key and cluster CA, and for a gateway the CA of its clients. `watch`
    follows changes of the files."""

    def __init__(
        self, cert: Path, key: Path, ca: Path, name: str, client_ca: Path | None = None
    ) -> None:
        """`name`: the cluster's TLS name. Raises CertificateError."""
        self.name = name
        self._cert, self._key, self._ca, self._client_ca = cert, key, ca, client_ca
        self.version = 0
        """Grows with each change that was taken over."""
        self.server_context: ssl.SSLContext
        """For streams that others open; demands a certificate of the cluster's CA. Another one
        after each change, as the next is."""
        self.client_context: ssl.SSLContext
        """For streams to others."""
        self._files = (cert, key, ca, client_ca)
        self._seen = state_of(self._files)
        self._load()

    @property
    def expires_in_s(self) -> float:
        """Seconds until the certificate is valid no longer."""
        return self._not_after - time.time()

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For a gRPC channel to another process, with `channel_options`. Of the files as they were
        last."""
        return grpc.ssl_channel_credentials(self._ca_pem, self._key_pem, self._cert_pem)

    def channel_options(self) -> list[tuple[str, str]]:
        return [("grpc.ssl_target_name_override", self.name)]

    def server_credentials(self, for_clients: bool = False) -> grpc.ServerCredentials:
        """For a gRPC server, always of the newest files. It demands a certificate of the cluster's
        CA; `for_clients`: one of the clients' CA if there is such a CA, else none.
        """

        given = self.version

        def current() -> grpc.ServerCertificateConfiguration:
            ca = self._client_ca_pem if for_clients else self._ca_pem
            return grpc.ssl_server_certificate_configuration([(self._key_pem, self._cert_pem)], ca)

        def changed() -> grpc.ServerCertificateConfiguration | None:
            # Asked at every handshake. None, for no change, is not only cheaper: gRPC replaces what
            # handshakes under way on its other threads use, without a lock, and a process that was
            # given something new each time died of it now and then.
            nonlocal given
            if given == self.version:
                return None
            given = self.version
            return current()

        demanded = not for_clients or self._client_ca is not None
        return grpc.dynamic_ssl_server_credentials(current(), changed, demanded)  # type: ignore[arg-type]

    async def watch(self) -> None:
        """Take over changed files, until cancelled. Files that do not fit together are left alone,
        and said to be wrong."""
        complained: object = None
        soon = False
        while True:
            await asyncio.sleep(LOOK_S)
            seen = state_of(self._files)
            if seen != self._seen:
                try:
                    self._load()
                except CertificateError as error:
                    if complained != seen:
                        log.error("certificates: %s; the old ones stay in use", error)
                        complained = seen
                else:
                    self._seen = seen
                    log.info(
                        "certificates: taken over, valid for %.1f days", self.expires_in_s / 86_400
                    )
            if (self.expires_in_s < EXPIRES_SOON_S) != soon:
                soon = not soon
                if soon:
                    log.warning(
                        "certificates: %s is valid for %.1f days only",
                        self._cert,
                        self.expires_in_s / 86_400,
                    )

    def _load(self) -> None:
        from cryptography import x509  # which only servers need

        try:
            cert, key, ca = self._cert.read_bytes(), self._key.read_bytes(), self._ca.read_bytes()
            client_ca = None if self._client_ca is None else self._client_ca.read_bytes()
            for authority in (ca, client_ca):
                if authority is not None:
                    x509.load_pem_x509_certificates(authority)
            certificate = x509.load_pem_x509_certificate(cert)
            names = _dns_names(certificate)
            if self.name not in names:
                shown = ", ".join(names) or "no name"
                raise CertificateError(
                    f"{self._cert} is made out to {shown}; the cluster's TLS name is {self.name}"
                )
            contexts = (
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            )
            for context in contexts:
                context.minimum_version = ssl.TLSVersion.TLSv1_3
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_cert_chain(self._cert, self._key)
                context.load_verify_locations(cadata=ca.decode("ascii", "ignore"))
        except (OSError, ValueError) as error:
            raise CertificateError(f"{self._cert}, {self._key}, {self._ca}: {error}") from None
        self.server_context, self.client_context = contexts
        self._cert_pem, self._key_pem, self._ca_pem, self._client_ca_pem = cert, key, ca, client_ca
        self._not_after = certificate.not_valid_after_utc.timestamp()
        self.names = names
        self.version += 1

    # -- who the other side is

    def is_process(self, names: Iterable[str]) -> bool:
        """Whether a certificate of these names is one of this cluster's processes."""
        return self.name in names


def names_of(context: Any) -> list[str]:
    """The DNS names of the certificate that a gRPC caller has shown: no other kind of
    name counts."""
    names: Iterable[bytes] = context.auth_context().get("peer_dns", ())
    return [name.decode(errors="replace") for name in names]


def names_of_transport(transport: asyncio.BaseTransport) -> list[str]:
    """The DNS names of the certificate that the other side of a connection has shown."""
    certificate: Mapping[str, Any] = transport.get_extra_info("peercert") or {}
    return [name for kind, name in certificate.get("subjectAltName", ()) if kind == "DNS"]


def _dns_names(certificate: x509.Certificate) -> list[str]:
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return list(names.get_values_for_type(x509.DNSName))


class Exposed(ValueError):
    """A process would be reachable from other machines, with nothing encrypted and nobody asked who
    they are."""


def check_exposed(address: str, encrypted: bool, insecure: bool) -> None:
    """Raises Exposed for an address beyond loopback, unless that is encrypted, or meant."""
    host = address.rpartition(":")[0].strip("[]")
    if encrypted or insecure or host == "localhost":
        return
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise Exposed(
            f"{address} can be reached from other machines, and nothing would be encrypted: give"
            " --tls-cert, --tls-key and --tls-ca, or say --insecure"
        )
