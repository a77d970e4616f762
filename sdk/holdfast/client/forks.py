"""Forks of a process that uses gRPC.

gRPC's threads and sockets do not survive in a child. Two processes would write into one connection,
and a lock that another thread held would stay locked. gRPC sets itself up anew in the child, but
only if no thread is inside it at the moment of the fork. So:

- Before a fork the connections of all blocking clients are closed, and the fork waits until no
  thread is in a call. A child inherits no connection. The parent sends calls that were under way
  again, with the same request id. The next call of either process connects.
- An open `Client` always has a thread in gRPC. A child of such a process cannot use gRPC at all,
  and `check_usable` says so.
- gRPC ends itself, in a thread, when its last channel goes. A child forked at that moment would
  wait for the thread for ever. So one channel, which connects to nothing, is always kept.

Some servers fork without telling Python (uWSGI without `py-call-osafterfork`). So blocking clients
compare the process id as well.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from weakref import WeakSet

import grpc

_QUIET_S = 5.0
"""How long, in seconds, a fork waits for threads to leave gRPC. Their calls are cancelled, so they
leave at once.
"""
_LOOK_S = 0.02


class ForkedError(RuntimeError):
    """A forked process inherited a client that it cannot use."""


class Connected(Protocol):
    """A client that forked children inherit."""

    def before_fork(self) -> bool:
        """Close the connections. Return whether no thread of this client is in gRPC then."""

    def after_fork(self) -> None:
        """Begin as a new client, in the child."""


class _Forks:
    """The state of this process. Its lock is reentrant, because a signal handler may make a call
    while its own thread is in one.
    """

    def __init__(self) -> None:
        self.clients: WeakSet[Connected] = WeakSet()
        self.unusable = ""
        self.begin()

    def begin(self) -> None:
        self.pid = os.getpid()
        self.changed = threading.Condition()
        self.forking = 0
        self.inside: dict[int, int] = {}  # calls by thread
        self.found_busy = False
        self.grpc_used = False

    def before(self) -> None:
        me = threading.get_ident()
        with self.changed:
            self.forking += 1
            clients = list(self.clients)
        for _ in range(int(_QUIET_S / _LOOK_S)):
            # repeat it: a thread that was about to connect may have done so meanwhile
            free = [client.before_fork() for client in clients]
            with self.changed:
                if self.changed.wait_for(lambda: not self.inside.keys() - {me}, _LOOK_S):
                    break
        with self.changed:
            self.found_busy = bool(self.inside) or not all(free)

    def after_in_parent(self) -> None:
        with self.changed:
            self.forking -= 1
            self.changed.notify_all()

    def untold(self) -> None:
        """Catch up with a fork that Python did not notice."""
        self.pid = os.getpid()
        self.found_busy = bool(self.inside)
        self.after_in_child()

    def after_in_child(self) -> None:
        switched_off = os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "1").lower() in (
            "0",
            "false",
            "no",
            "off",
            "f",
            "n",
        )
        if self.found_busy:
            self.unusable = "one of its threads was in gRPC; an open asyncio client always has one"
        elif self.grpc_used and switched_off:
            self.unusable = "GRPC_ENABLE_FORK_SUPPORT turns off gRPC's support for forks"
        self.begin()
        for client in list(self.clients):
            client.after_fork()


_forks = _Forks()
_anchor: grpc.Channel | None = None
_abandoned: list[Any] = []
os.register_at_fork(
    before=_forks.before,
    after_in_parent=_forks.after_in_parent,
    after_in_child=_forks.after_in_child,
)


def register(client: Connected) -> None:
    """Tell a client of forks for as long as it lives."""
    with _forks.changed:
        _forks.clients.add(client)


def check_usable() -> None:
    """Raise ForkedError in a process that cannot use gRPC."""
    if _forks.unusable:
        raise ForkedError(
            "this process cannot use gRPC, because its parent used gRPC when it forked"
            f" ({_forks.unusable}). Fork before the client is opened, or start processes with"
            " multiprocessing's spawn or forkserver"
        )


def opened() -> None:
    """Prepare this process for a channel that is about to be opened. Raise ForkedError if gRPC
    cannot work in it.
    """
    global _anchor
    check_usable()
    _forks.grpc_used = True
    if _anchor is None:
        _anchor = grpc.insecure_channel(
            "127.0.0.1:1", options=[("grpc.use_local_subchannel_pool", 1)]
        )


def abandon(inherited: Any) -> None:
    """Keep objects that a child inherited from being closed or freed: both would use the parent's
    gRPC.
    """
    _abandoned.append(inherited)


@contextmanager
def in_grpc() -> Iterator[None]:
    """Enter around a call. No fork begins while a thread is in a call, and no thread enters while a
    fork is under way.
    """
    me = threading.get_ident()
    forks = _forks
    if forks.pid != os.getpid():
        forks.untold()
    changed = forks.changed
    with changed:
        while forks.forking and me not in forks.inside:
            changed.wait()
        forks.inside[me] = forks.inside.get(me, 0) + 1
    try:
        yield
    finally:
        with changed:
            left = forks.inside.get(me, 1) - 1
            if left:
                forks.inside[me] = left
            else:
                forks.inside.pop(me, None)
            if forks.forking:
                changed.notify_all()
