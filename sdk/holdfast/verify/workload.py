"""The calls that `holdfast verify` makes."""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import time
from datetime import timedelta
from functools import partial
from typing import Any

from holdfast.client.client import Client
from holdfast.errors import HoldfastError
from holdfast.ids import new_request_id
from holdfast.verify import forking
from holdfast.verify.app import Account, Clock, Counter, Journal, Register, Station
from holdfast.verify.checks import Checks, Findings, insist
from holdfast.verify.history import EVERY_MS, TOKENS, History, Made
from holdfast.verify.linearizability import NEVER, Call

_REGISTERS = 8
_COUNTERS = 12
_JOURNALS = 12
_STATIONS = 7
_ACCOUNTS = 10
_CLOCKS = 6
# The registers change after this time: a short history is checked quickly.
_GENERATION_S = 15.0
_HASTY = 3
_HASTY_JOURNALS = 4
_FORK_EVERY_S = 1.0
_FORK_TIMEOUT_S = 5 * forking.TIMEOUT_S
_FORKS_A_JOURNAL = 10
_HASTY_TIMEOUTS_S = (0.002, 0.02, 0.2, 1.0)


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
        self._history = History(
            stations=[f"{run_id}-{i}" for i in range(_STATIONS)],
            accounts=[f"{run_id}-{i}" for i in range(_ACCOUNTS)],
            clocks=[f"{run_id}-{i}" for i in range(_CLOCKS)],
        )
        self.forked = 0
        """How many calls were acknowledged to clients that have forked or are forked."""

    def now(self) -> float:
        return time.monotonic() - self._zero

    async def run(self, stop: asyncio.Event) -> None:
        """Make calls until `stop` is set, then wait for the calls under way."""
        for i in range(TOKENS):
            station = self._client.get(
                Station, self._history.stations[i], request_id=new_request_id()
            )
            await insist(partial(station.arrive, f"token {i}", 0, self._history.stations))
        for key in self._history.clocks:
            await insist(partial(self._client.get(Clock, key).start, EVERY_MS))
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
            self._history.appends[key][element] = None
            call = self._client.get(Journal, key, timeout=chance.choice(_HASTY_TIMEOUTS_S)).append(
                element
            )
            _, _, self._history.appends[key][element], _ = await self._make(call, self.hasty)
            await asyncio.sleep(chance.expovariate(1 / self._think_s))

    async def _fork(self, stop: asyncio.Event) -> None:
        """Run clients that fork while they are in use. If a process does not report an outcome, the
        outcome is unknown.
        """
        for n in itertools.count():
            if stop.is_set():
                return
            key, prefix = f"{self._run}-forks-{n // _FORKS_A_JOURNAL}", f"fork{n}"
            elements = self._history.appends[key]
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
                call.what[-1]
                for call in self._history.registers[key][-8:]
                if call.what[0] != "read"
            ]
            expected = chance.choice(earlier) if earlier else 0
            what = ("swap", expected, value)
            coroutine = stub.swap(expected, value)
        began, ended, ok, result = await self._make(coroutine)
        if ok:
            self._history.registers[key].append(Call(began, ended, what, result))
        elif ok is None and what[0] != "read":
            self._history.registers[key].append(Call(began, NEVER, what))
        elif what[0] != "read":
            self._history.refused[key].add(value)

    async def _increment(self, key: str) -> None:
        _, _, ok, result = await self._make(self._client.get(Counter, key).increment())
        self._history.increments[key].append((ok, result if ok else 0))

    async def _append(self, key: str, element: str) -> None:
        self._history.appends[key][element] = None
        _, _, ok, _ = await self._make(self._client.get(Journal, key).append(element))
        self._history.appends[key][element] = ok

    async def _post(self, key: str, i: int, chance: random.Random) -> None:
        """Make the cluster store an append, to run later: every other one after a delay."""
        delay = timedelta(milliseconds=chance.randrange(3_000)) if chance.random() < 0.5 else None
        element = f"{'delayed' if delay else 'post'} {i}-{next(self._values)}"
        self._history.appends[key][element] = None
        _, _, ok, _ = await self._make(
            self._client.notify(Journal, key, delay=delay).append(element)
        )
        self._history.appends[key][element] = ok
        if ok:
            self._history.posts[key].append(element)

    async def _transfer(self, chance: random.Random) -> None:
        """Give money away. Repeat the call with the same request id until it is acknowledged, so
        that no transfer stays half-done.
        """
        # calls in a circle would wait for each other
        giver, taker = sorted(chance.sample(self._history.accounts, 2))
        stub = self._client.get(Account, giver, request_id=new_request_id())
        amount = chance.choice((-1, 1)) * chance.randrange(1, 100)
        method = stub.send if chance.random() < 0.5 else stub.transfer
        self._history.transfers += 1
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
        return await Checks(self._client, self._history).check()
