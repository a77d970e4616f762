"""Holdfast: durable objects on your own machines. See docs/guide/objects.md."""

from typing import TYPE_CHECKING

from holdfast import grpc_log as _grpc_log  # noqa: F401  (before gRPC is loaded)
from holdfast import processes as _processes
from holdfast.alarms import Alarm
from holdfast.app import App
from holdfast.client.blocking import BlockingClient, connect_blocking
from holdfast.client.client import Client, connect
from holdfast.client.forks import ForkedError
from holdfast.errors import (
    Aborted,
    ApplicationError,
    DeadlineExceeded,
    Deadlock,
    HoldfastError,
    InternalError,
    InvalidArgument,
    NotFound,
    Overloaded,
    PermissionDenied,
    Rejected,
    TooLarge,
    Unauthenticated,
    Unavailable,
    WrongOwner,
)
from holdfast.ids import new_key, new_request_id
from holdfast.object import DurableObject
from holdfast.signature import Invocation, reads
from holdfast.tls import TLS

if TYPE_CHECKING:
    from holdfast import stubs as stubs  # holdfast.mypy_plugin looks it up here

__version__ = _processes.version()

__all__ = [
    "TLS",
    "Aborted",
    "Alarm",
    "App",
    "ApplicationError",
    "BlockingClient",
    "Client",
    "DeadlineExceeded",
    "Deadlock",
    "DurableObject",
    "ForkedError",
    "HoldfastError",
    "InternalError",
    "InvalidArgument",
    "Invocation",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "Rejected",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "WrongOwner",
    "__version__",
    "connect",
    "connect_blocking",
    "new_key",
    "new_request_id",
    "reads",
]
