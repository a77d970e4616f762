"""The calls that `holdfast verify` makes, and the checks of their results."""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import time
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from holdfast.client.client import Client
from holdfast.errors import HoldfastError
from holdfast.ids import new_request_id
from holdfast.verify import forking
from holdfast.verify.app import Account, Clock, Counter, Journal, Register, Station
from holdfast.verify.linearizability import NEVER, Call, linearizable, register

T = TypeVar("T")

_REGISTERS = 8
_COUNTERS = 12
_JOURNALS = 12
_STATIONS = 7
_TOKENS = 5
_ACCOUNTS = 10
_CLOCKS = 6
_EVERY_MS = 400
_SETTLE_S = 120.0
_STILL_S = 15.0  # longer than the pause between two attempts of a notification after such a run
# The registers change after this time: a short history is checked quickly.
_GENERATION_S = 15.0
_PAGE = 1000
_HASTY = 3
_HASTY_JOURNALS = 4
_FORK_EVERY_S = 1.0
_FORK_TIMEOUT_S = 5 * forking.TIMEOUT_S
_FORKS_A_JOURNAL = 10
_HASTY_TIMEOUTS_S = (0.002, 0.02, 0.2, 1.0)


@dataclass(slots=True)
class Made:
    """A call that was made. `ok`: True acknowledged, False certainly without effect, None
    unknown.
    """

    began: float
    ended: float
    ok: bool | None
    error: str = ""


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


class Workload:
    """Calls registers, counters and journals from `clients` clients, each with an average pause of
    `think_s` seconds between calls.

    `run_id` keeps the objects of two runs against one cluster apart. Times are seconds since the
    workload was made.
    """

    def __init__(
        self, client: Client, gateway: str, clients: int, think_s: float, seed: int, run_id: str
    ) -> None:
        self._gateway = gateway
        self._client = client
        self._clients = clients
        self._think_s = think_s
        self._random = random.Random(seed)
        self._run = run_id
        self._zero = time.monotonic()
        self._values = itertools.count(1)
        self.made: list[Made] = []
        self.hasty: list[Made] = []
        """Calls with deadlines that are too short during a fault. The cluster refuses many of them,
        and each refusal is checked.
        """
        self._registers: dict[str, list[Call]] = defaultdict(list)
        # values that registers certainly must never have
        self._refused: dict[str, set[int]] = defaultdict(set)
        self._increments: dict[str, list[tuple[bool | None, int]]] = defaultdict(list)
        self._appends: dict[str, dict[str, bool | None]] = defaultdict(dict)
        self._stations = [f"{run_id}-{i}" for i in range(_STATIONS)]
        self._accounts = [f"{run_id}-{i}" for i in range(_ACCOUNTS)]
        self._clocks = [f"{run_id}-{i}" for i in range(_CLOCKS)]
        self._transfers = 0
        self._posts: dict[str, list[str]] = defaultdict(list)  # accepted posts, in order
        self.forked = 0
        """How many calls were acknowledged to clients that have forked or are forked."""

    def now(self) -> float:
        return time.monotonic() - self._zero

    async def run(self, stop: asyncio.Event) -> None:
        """Make calls until `stop` is set, then wait for the calls under way."""
        for i in range(_TOKENS):
            station = self._client.get(Station, self._stations[i], request_id=new_request_id())
            await _insist(partial(station.arrive, f"token {i}", 0, self._stations))
        for key in self._clocks:
            await _insist(partial(self._client.get(Clock, key).start, _EVERY_MS))
        async with asyncio.TaskGroup() as group:
            for i in range(self._clients):
                group.create_task(self._work(i, random.Random(self._random.random()), stop))
            for i in range(_HASTY):
                group.create_task(self._hurry(i, random.Random(self._random.random()), stop))
            group.create_task(self._fork(stop))

    async def _work(self, i: int, chance: random.Random, stop: asyncio.Event) -> None:
        while not stop.is_set():
            kind = chance.random()
            if kind < 0.15:
                await self._transfer(chance)
            elif kind < 0.5:
                # Only a few clients call each register.
                register = (i + chance.randrange(2)) % _REGISTERS
                generation = int(self.now() / _GENERATION_S)
                await self._register(f"{self._run}-{generation}-{register}", chance)
            elif kind < 0.8:
                await self._increment(f"{self._run}-{chance.randrange(_COUNTERS)}")
            elif kind < 0.9:
                await self._append(
                    f"{self._run}-{chance.randrange(_JOURNALS)}", f"{i}-{next(self._values)}"
                )
            else:
                await self._post(f"{self._run}-posts-{chance.randrange(_JOURNALS)}", i, chance)
            await asyncio.sleep(chance.expovariate(1 / self._think_s))

    async def _hurry(self, i: int, chance: random.Random, stop: asyncio.Event) -> None:
        while not stop.is_set():
            key, element = (
                f"{self._run}-hasty-{chance.randrange(_HASTY_JOURNALS)}",
                f"hasty {i}-{next(self._values)}",
            )
            self._appends[key][element] = None
            call = self._client.get(Journal, key, timeout=chance.choice(_HASTY_TIMEOUTS_S)).append(
                element
            )
            _, _, self._appends[key][element], _ = await self._make(call, self.hasty)
            await asyncio.sleep(chance.expovariate(1 / self._think_s))

    async def _fork(self, stop: asyncio.Event) -> None:
        """Run clients that fork while they are in use. If a process does not report an outcome, the
        outcome is unknown.
        """
        for n in itertools.count():
            if stop.is_set():
                return
            key, prefix = f"{self._run}-forks-{n // _FORKS_A_JOURNAL}", f"fork{n}"
            elements = self._appends[key]
            names = [
                f"child{child}.{i}"
                for child in range(forking.CHILDREN)
                for i in range(forking.EACH)
            ]
            elements |= {f"{prefix}-{name}": None for name in ("before", *names, "after")}
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "holdfast.verify.forking",
                self._gateway,
                key,
                prefix,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
            began = self.now()
            try:
                told, _ = await asyncio.wait_for(process.communicate(), _FORK_TIMEOUT_S)
            except TimeoutError:
                process.kill()
                told, _ = await process.communicate()
            if process.returncode:
                self.made.append(
                    Made(
                        began,
                        self.now(),
                        None,
                        f"a client that forks ended with {process.returncode}",
                    )
                )
            for line in told.decode().splitlines():
                element, _, ok = line.partition(" ")
                elements[element] = {"True": True, "False": False}.get(ok)
                self.forked += ok == "True"
            await asyncio.sleep(_FORK_EVERY_S)

    async def _register(self, key: str, chance: random.Random) -> None:
        stub = self._client.get(Register, key)
        which = chance.random()
        value = next(self._values)
        if which < 0.4:
            what: tuple[Any, ...] = ("read",)
            coroutine: Any = stub.read() if chance.random() < 0.5 else stub.glance()
        elif which < 0.75:
            what = ("write", value)
            coroutine = stub.write(value)
        else:
            earlier = [
                call.what[-1] for call in self._registers[key][-8:] if call.what[0] != "read"
            ]
            expected = chance.choice(earlier) if earlier else 0
            what = ("swap", expected, value)
            coroutine = stub.swap(expected, value)
        began, ended, ok, result = await self._make(coroutine)
        if ok:
            self._registers[key].append(Call(began, ended, what, result))
        elif ok is None and what[0] != "read":
            self._registers[key].append(Call(began, NEVER, what))
        elif what[0] != "read":
            self._refused[key].add(value)

    async def _increment(self, key: str) -> None:
        _, _, ok, result = await self._make(self._client.get(Counter, key).increment())
        self._increments[key].append((ok, result if ok else 0))

    async def _append(self, key: str, element: str) -> None:
        self._appends[key][element] = None
        _, _, ok, _ = await self._make(self._client.get(Journal, key).append(element))
        self._appends[key][element] = ok

    async def _post(self, key: str, i: int, chance: random.Random) -> None:
        """Make the cluster store an append, to run later: every other one after a delay."""
        delay = timedelta(milliseconds=chance.randrange(3_000)) if chance.random() < 0.5 else None
        element = f"{'delayed' if delay else 'post'} {i}-{next(self._values)}"
        self._appends[key][element] = None
        _, _, ok, _ = await self._make(
            self._client.notify(Journal, key, delay=delay).append(element)
        )
        self._appends[key][element] = ok
        if ok:
            self._posts[key].append(element)

    async def _transfer(self, chance: random.Random) -> None:
        """Give money away. Repeat the call with the same request id until it is acknowledged, so
        that no transfer stays half-done.
        """
        # calls in a circle would wait for each other
        giver, taker = sorted(chance.sample(self._accounts, 2))
        stub = self._client.get(Account, giver, request_id=new_request_id())
        amount = chance.choice((-1, 1)) * chance.randrange(1, 100)
        method = stub.send if chance.random() < 0.5 else stub.transfer
        self._transfers += 1
        while (await self._make(method(taker, amount)))[2] is not True:
            await asyncio.sleep(0.2)

    async def _make(
        self, coroutine: Any, made: list[Made] | None = None
    ) -> tuple[float, float, bool | None, Any]:
        made = self.made if made is None else made
        began = self.now()
        try:
            result = await coroutine
        except HoldfastError as error:
            ended = self.now()
            ok = False if error.definite else None
            made.append(Made(began, ended, ok, f"{error.code}: {error.message}"))
            return began, ended, ok, None
        ended = self.now()
        made.append(Made(began, ended, True))
        return began, ended, True, result

    async def check(self) -> Findings:
        """Compare the stored data with the replies. Call it when the cluster is whole again."""
        found = Findings(registers=len(self._registers), transfers=self._transfers)
        await self._check_tokens(found)
        await self._check_accounts(found)
        await self._check_alarms(found)
        await self._check_posts(found)
        for key, increments in self._increments.items():
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
        for key, elements in self._appends.items():
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
        for key, never in self._refused.items():
            seen = {call.result for call in self._registers[key] if call.what[0] == "read"}
            seen.add(await self._client.get(Register, key).read())
            found.definite += [
                f"register {key} had {value}, whose write certainly failed"
                for value in sorted(never & seen)
            ]
        for key, calls in self._registers.items():
            order = await asyncio.to_thread(linearizable, calls, register, 0)
            if order is False:
                found.not_linearizable.append(
                    f"register {key}: no order of its {len(calls)} calls explains their results"
                )
            elif order is None:
                found.undecided.append(
                    f"register {key}: of its {len(calls)} calls too many overlap to decide"
                )
        return found

    async def _check_tokens(self, found: Findings) -> None:
        """Check that each token has made each of its hops once, and rests at one station."""
        stubs = [self._client.get(Station, key) for key in self._stations]
        for stub in stubs:
            await _insist(stub.halt)

        async def resting() -> list[tuple[str, int]]:
            return [item for stub in stubs for item in (await stub.tokens()).items()]

        kept = await _settled(resting, lambda kept: len(kept) >= _TOKENS)
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
        for i in range(_TOKENS):
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
            return sum([await self._client.get(Account, key).balance() for key in self._accounts])

        left = await _settled(total, lambda left: left == 0)
        if left:
            (found.doubled if left > 0 else found.lost).append(
                f"all accounts together have {left}, after {self._transfers} transfers"
            )

    async def _check_posts(self, found: Findings) -> None:
        """Check that all accepted posts arrive, and that posts of one client without a delay arrive
        in order.
        """
        for key, posts in self._posts.items():
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
        for key in self._clocks:
            stub = self._client.get(Clock, key)
            await _insist(stub.stop)
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
                if next_one - one != _EVERY_MS:
                    found.lost.append(
                        f"clock {key} was not rung between {one} and {next_one}, every"
                        f" {_EVERY_MS} ms"
                    )


async def _insist(call: Callable[[], Awaitable[Any]]) -> None:
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
