"""TLS: the certificates of clients and of processes. Their files may change while they are in use.

Every process of a cluster has one certificate, as a server and as a client. Between processes both
sides show their certificate (mutual TLS). The cluster's CA signs these certificates. Each has the
cluster's *TLS name*: a DNS name among its alternative names that all processes of the cluster
share. No other certificate may have that name.

Addresses play no part in this check, so pods may come and go under any address. A client's
certificate does not have the TLS name, even if the same CA signed it. So a client cannot connect to
the ports of a node.
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

from holdfast.files import fingerprint

log = logging.getLogger(__name__)

LOOK_S = 2.0
"""How often the files are looked at, in seconds."""
EXPIRES_SOON_S = 7 * 86_400


@dataclass(frozen=True, slots=True)
class TLS:
    """The TLS settings of a client.

    `ca`: the CA to trust; None: the system's. `cert` and `key`: the client's own certificate, if
    the gateway asks for one. `server_name`: the name in the gateway's certificate, if it is not the
    address to which the client connects.

    All files are PEM. The client reads them for each new connection, so it uses renewed files from
    its next connection on.
    """

    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Return the credentials for a channel, read from the files.

        Raises OSError if a file cannot be read. Raises ValueError if a file is not PEM, or if a
        certificate or its key is missing.
        """
        if (self.cert is None) != (self.key is None):
            raise ValueError("a certificate needs its key, and a key its certificate")
        ca, cert, key = (
            None if file is None else Path(file) for file in (self.ca, self.cert, self.key)
        )
        pems = [None if file is None else file.read_bytes() for file in (ca, key, cert)]
        # load the files here: gRPC does not say what is wrong with them
        trial = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if ca is not None:
            try:
                trial.load_verify_locations(ca)
            except ssl.SSLError as error:
                raise ValueError(f"{ca} has no certificate in PEM: {error}") from None
        if cert is not None:
            try:
                trial.load_cert_chain(cert, key)
            except ssl.SSLError as error:
                raise ValueError(
                    f"{cert} and {key} are not a certificate and its key in PEM: {error}"
                ) from None
        return grpc.ssl_channel_credentials(*pems)

    def state(self) -> tuple[object, ...]:
        """Return a value that changes when one of the files changes."""
        return fingerprint(
            None if file is None else Path(file) for file in (self.ca, self.cert, self.key)
        )

    def options(self) -> list[tuple[str, str]]:
        """Return the options for the same channel."""
        return (
            []
            if self.server_name is None
            else [("grpc.ssl_target_name_override", self.server_name)]
        )


Token = str | Callable[[], str]
"""A bearer token, or a function that returns the token to show now.

An asyncio client calls the function for each connection, on its loop. A blocking client calls it
for each call, on the calling thread. So the function should be quick.
"""


def authorization(token: Token | None) -> tuple[tuple[str, str], ...] | None:
    """Return the metadata that show a token. Raise ValueError if the token is empty or not
    printable ASCII.
    """
    if token is None:
        return None
    shown = (
        token() if callable(token) else token
    ).strip()  # a token from a file ends with a newline
    if not shown or not shown.isascii() or not shown.isprintable():
        raise ValueError("a token must be printable ASCII text, and not empty")
    return (("authorization", f"Bearer {shown}"),)


class CertificateError(Exception):
    """Files are not a certificate, key or CA, or do not belong together. The message names them."""


class Certificates:
    """A process's certificate, key and cluster CA, and for a gateway the CA of its clients. `watch`
    follows changes of the files.
    """

    def __init__(
        self, cert: Path, key: Path, ca: Path, name: str, client_ca: Path | None = None
    ) -> None:
        """`name`: the cluster's TLS name. Raises CertificateError."""
        self.name = name
        self._cert, self._key, self._ca, self._client_ca = cert, key, ca, client_ca
        self.version = 0
        """Grows with each change of the files that was taken over."""
        self.server_context: ssl.SSLContext
        """For streams that other processes open. It demands a certificate of the cluster's CA. A
        change of the files makes a new context.
        """
        self.client_context: ssl.SSLContext
        """For streams to other processes. A change of the files makes a new context."""
        self._files = (cert, key, ca, client_ca)
        self._seen = fingerprint(self._files)
        self._load()

    @property
    def expires_in_s(self) -> float:
        """The seconds until the certificate expires."""
        return self._not_after - time.time()

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Return the credentials for a gRPC channel to another process, from the files as last
        loaded. Use them with `channel_options`.
        """
        return grpc.ssl_channel_credentials(self._ca_pem, self._key_pem, self._cert_pem)

    def channel_options(self) -> list[tuple[str, str]]:
        return [("grpc.ssl_target_name_override", self.name)]

    def server_credentials(self, for_clients: bool = False) -> grpc.ServerCredentials:
        """Return the credentials for a gRPC server. They always use the newest files.

        The server demands a certificate of the cluster's CA. With `for_clients` it demands a
        certificate of the clients' CA, or none if there is no such CA.
        """

        given = self.version

        def current() -> grpc.ServerCertificateConfiguration:
            ca = self._client_ca_pem if for_clients else self._ca_pem
            return grpc.ssl_server_certificate_configuration([(self._key_pem, self._cert_pem)], ca)

        def changed() -> grpc.ServerCertificateConfiguration | None:
            # gRPC calls this at every handshake. None means no change, and must be used: for
            # anything else gRPC replaces, without a lock, the data of handshakes on its other
            # threads. Processes that returned new data each time crashed now and then.
            nonlocal given
            if given == self.version:
                return None
            given = self.version
            return current()

        demanded = not for_clients or self._client_ca is not None
        return grpc.dynamic_ssl_server_credentials(current(), changed, demanded)  # type: ignore[arg-type]

    async def watch(self) -> None:
        """Take over changed files, until cancelled. If files do not fit together, log an error and
        keep the old ones.
        """
        complained: object = None
        soon = False
        while True:
            await asyncio.sleep(LOOK_S)
            seen = fingerprint(self._files)
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
                        "certificates: taken over, valid for %.1f days",
                        self.expires_in_s / 86_400,
                    )
            if (self.expires_in_s < EXPIRES_SOON_S) != soon:
                soon = not soon
                if soon:
                    log.warning(
                        "certificates: %s expires in %.1f days",
                        self._cert,
                        self.expires_in_s / 86_400,
                    )

    def _load(self) -> None:
        from cryptography import x509  # clients may lack this package

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
                    f"{self._cert} is for {shown}; it must have the cluster's TLS name {self.name}"
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

    # -- the other side's certificate

    def is_process(self, names: Iterable[str]) -> bool:
        """Return whether a certificate with these names belongs to one of this cluster's
        processes.
        """
        return self.name in names


def names_of(context: Any) -> list[str]:
    """Return the DNS names in the certificate that a gRPC caller has shown. Other kinds of names do
    not count.
    """
    names: Iterable[bytes] = context.auth_context().get("peer_dns", ())
    return [name.decode(errors="replace") for name in names]


def names_of_transport(transport: asyncio.BaseTransport) -> list[str]:
    """Return the DNS names in the certificate that the other side of a connection has shown."""
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
    """Other machines could reach a process that neither encrypts nor authenticates."""


def check_exposed(address: str, encrypted: bool, insecure: bool) -> None:
    """Raise Exposed if the address is not loopback, unless the connection is encrypted or
    `insecure` is set.
    """
    host = address.rpartition(":")[0].strip("[]")
    if encrypted or insecure or host == "localhost":
        return
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise Exposed(
            f"other machines can reach {address}, and nothing would be encrypted: give --tls-cert,"
            " --tls-key and --tls-ca, or --insecure"
        )
