"""What both clients are made with, and the checks of these options."""

from __future__ import annotations

from abc import ABC, abstractmethod

from holdfast.channels import check_address
from holdfast.client import forks
from holdfast.client.requests import TIMEOUT_S
from holdfast.client.retry_budget import RATIO
from holdfast.deadlines import checked_timeout
from holdfast.ids import RequestIds
from holdfast.tls import TLS, Token, authorization
from holdfast.tracing import ClientTracing, of_application


class BaseClient(ABC):
    """The options of a client. Forks of its process are told to it."""

    def __init__(
        self,
        *endpoints: str,
        timeout: float = TIMEOUT_S,
        retry_budget: float = RATIO,
        tls: TLS | None = None,
        token: Token | None = None,
        tracing: bool = False,
    ) -> None:
        if not endpoints:
            raise ValueError("name at least one gateway, as host:port")
        for endpoint in endpoints:
            check_address(endpoint)
        self._endpoints = endpoints
        if tls is not None:
            tls.credentials()  # raise now if it is wrong
        self._tls = tls
        if not callable(token):
            authorization(token)  # raise now if it is wrong
        self._token = token
        self._tracing = ClientTracing(of_application()) if tracing else None
        self._timeout = checked_timeout(timeout)
        self._retry_budget = retry_budget
        self._ids = RequestIds()
        self._closed = False
        self._begin()
        forks.register(self)

    @abstractmethod
    def _begin(self) -> None:
        """Set up everything that each process has for itself."""

    @abstractmethod
    def before_fork(self) -> bool:
        """See `holdfast.client.forks`."""

    @abstractmethod
    def after_fork(self) -> None:
        """See `holdfast.client.forks`."""
