"""The checks of `holdfast verify`: what a cluster has stored, against what it has answered."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter as Tally
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from holdfast.client.client import Client
from holdfast.errors import HoldfastError
from holdfast.verify.app import Account, Clock, Counter, Journal, Register, Station
from holdfast.verify.history import EVERY_MS, TOKENS, History
from holdfast.verify.linearizability import linearizable, register

T = TypeVar("T")

_SETTLE_S = 120.0
_STILL_S = 15.0  # longer than the pause between two attempts of a notification after such a run
_PAGE = 1000


@dataclass
class Findings:
    """The findings about a run; empty lists are good. `definite`: effects of calls whose errors
    said that they had no effect.
    """

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    definite: list[str] = field(default_factory=list)
    not_linearizable: list[str] = field(default_factory=list)
    disordered: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)
    registers: int = 0
    hops: int = 0
    transfers: int = 0
    alarms: int = 0
    posts: int = 0

    @property
    def broken(self) -> bool:
        return bool(
            self.lost or self.doubled or self.definite or self.not_linearizable or self.disordered
        )


class Checks:
    """Compares the stored data of a cluster with the history of a run."""

    def __init__(self, client: Client, history: History) -> None:
        self._client = client
        self._history = history

    async def check(self) -> Findings:
        """Compare the stored data with the replies. Call it when the cluster is whole again."""
        found = Findings(registers=len(self._history.registers), transfers=self._history.transfers)
        await self._check_tokens(found)
        await self._check_accounts(found)
        await self._check_alarms(found)
        await self._check_posts(found)
        await self._check_counters(found)
        await self._check_journals(found)
        await self._check_refused(found)
        await self._check_order(found)
        return found

    async def _check_counters(self, found: Findings) -> None:
        """Check that each counter has each acknowledged increment once."""
        for key, increments in self._history.increments.items():
            value = await self._client.get(Counter, key).value()
            acknowledged = sum(ok is True for ok, _ in increments)
            unknown = sum(ok is None for ok, _ in increments)
            if value < acknowledged:
                found.lost.append(
                    f"counter {key} is {value}, but {acknowledged} increments were acknowledged"
                )
            if value > acknowledged + unknown:
                refused = sum(ok is False for ok, _ in increments)
                (
                    found.definite if value <= acknowledged + unknown + refused else found.doubled
                ).append(
                    f"counter {key} is {value}, but only {acknowledged} increments were"
                    f" acknowledged; {unknown} have an unknown outcome, {refused} certainly failed"
                )
            twice = [n for n, times in Tally(n for ok, n in increments if ok).items() if times > 1]
            if twice:
                found.doubled.append(f"counter {key} answered {twice[:5]} twice")

    async def _check_journals(self, found: Findings) -> None:
        """Check that each journal has each acknowledged element once, and no other."""
        for key, elements in self._history.appends.items():
            there: list[str] = []
            while page := await self._client.get(Journal, key).elements(len(there), _PAGE):
                there += page
            times = Tally(there)
            found.lost += [
                f"journal {key} lacks {e}, which was acknowledged"
                for e, ok in elements.items()
                if ok and not times[e]
            ]
            found.doubled += [f"journal {key} has {e} {n} times" for e, n in times.items() if n > 1]
            found.definite += [
                f"journal {key} has {e}, which certainly failed"
                for e in times
                if elements.get(e) is False
            ]
            found.doubled += [
                f"journal {key} has {e}, which no client appended"
                for e in times
                if e not in elements
            ]

    async def _check_refused(self, found: Findings) -> None:
        """Check that no register had a value whose write certainly failed."""
        for key, never in self._history.refused.items():
            seen = {call.result for call in self._history.registers[key] if call.what[0] == "read"}
            seen.add(await self._client.get(Register, key).read())
            found.definite += [
                f"register {key} had {value}, whose write certainly failed"
                for value in sorted(never & seen)
            ]

    async def _check_order(self, found: Findings) -> None:
        """Check that one order of the calls of each register explains their results."""
        for key, calls in self._history.registers.items():
            order = await asyncio.to_thread(linearizable, calls, register, 0)
            if order is False:
                found.not_linearizable.append(
                    f"register {key}: no order of its {len(calls)} calls explains their results"
                )
            elif order is None:
                found.undecided.append(
                    f"register {key}: of its {len(calls)} calls too many overlap to decide"
                )

    async def _check_tokens(self, found: Findings) -> None:
        """Check that each token has made each of its hops once, and rests at one station."""
        stubs = [self._client.get(Station, key) for key in self._history.stations]
        for stub in stubs:
            await insist(stub.halt)

        async def resting() -> list[tuple[str, int]]:
            return [item for stub in stubs for item in (await stub.tokens()).items()]

        kept = await _settled(resting, lambda kept: len(kept) >= TOKENS)
        await asyncio.sleep(1.0)
        kept = await resting()
        hops: Tally[tuple[str, int]] = Tally()
        for stub in stubs:
            there: list[tuple[str, int]] = []
            while page := await stub.hops(len(there), _PAGE):
                there += page
            hops.update(there)
        found.hops = sum(hops.values())
        found.doubled += [
            f"{token} made hop {hop} {times} times"
            for (token, hop), times in hops.items()
            if times > 1
        ]
        for i in range(TOKENS):
            token = f"token {i}"
            rests = [hop for name, hop in kept if name == token]
            made = sorted(hop for name, hop in hops if name == token)
            if not rests:
                found.lost.append(
                    f"{token} is gone: it was last seen at hop {made[-1] if made else 'none'}"
                )
            elif len(rests) > 1:
                found.doubled.append(f"{token} rests at {len(rests)} stations")
            elif made != list(range(rests[0] + 1)):
                found.lost.append(
                    f"{token} rests at hop {rests[0]}, but only {len(made)} of its hops are known"
                )

    async def _check_accounts(self, found: Findings) -> None:
        """Check that all money that one account gave has arrived at another."""

        async def total() -> int:
            return sum(
                [await self._client.get(Account, key).balance() for key in self._history.accounts]
            )

        left = await _settled(total, lambda left: left == 0)
        if left:
            (found.doubled if left > 0 else found.lost).append(
                f"all accounts together have {left}, after {self._history.transfers} transfers"
            )

    async def _check_posts(self, found: Findings) -> None:
        """Check that all accepted posts arrive, and that posts of one client without a delay arrive
        in order.
        """
        for key, posts in self._history.posts.items():
            there: list[str] = []

            async def more(key: str = key, there: list[str] = there) -> list[str]:
                there += await self._client.get(Journal, key).elements(len(there), _PAGE)
                return [*there]

            await _settled(more, set(posts).issubset)
            places = {element: place for place, element in enumerate(there)}
            found.posts += len(posts)
            last: dict[str, str] = {}
            for element in posts:
                name = element.partition("-")[0]
                if name.startswith("post") and element in places:
                    if places[element] < places.get(last.get(name, ""), -1):
                        found.disordered.append(
                            f"journal {key} has {last[name]} behind {element}, which was posted"
                            " after it"
                        )
                    last[name] = element

    async def _check_alarms(self, found: Findings) -> None:
        """Check that each time at which an alarm was due is recorded once."""
        for key in self._history.clocks:
            stub = self._client.get(Clock, key)
            await insist(stub.stop)
            times: list[int] = []
            while page := await stub.times(len(times), _PAGE):
                times += page
            found.alarms += len(times)
            found.doubled += [
                f"clock {key} was rung {n} times for {at}"
                for at, n in Tally(times).items()
                if n > 1
            ]
            for one, next_one in itertools.pairwise(sorted(set(times))):
                if next_one - one != EVERY_MS:
                    found.lost.append(
                        f"clock {key} was not rung between {one} and {next_one}, every"
                        f" {EVERY_MS} ms"
                    )


async def insist(call: Callable[[], Awaitable[Any]]) -> None:
    """Repeat a call until it is acknowledged."""
    deadline = time.monotonic() + _SETTLE_S
    while True:
        try:
            await call()
            return
        except HoldfastError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)


async def _settled(ask: Callable[[], Awaitable[T]], wanted: Callable[[T], bool]) -> T:
    """Repeat a question until the answer is as wanted, or has not changed for a while:
    notifications may still be on their way.
    """
    changed = began = time.monotonic()
    before = None
    while True:
        answer = await ask()
        now = time.monotonic()
        if answer != before:
            before, changed = answer, now
        if wanted(answer) or now > began + _SETTLE_S or now > changed + _STILL_S:
            return answer
        await asyncio.sleep(0.2)
