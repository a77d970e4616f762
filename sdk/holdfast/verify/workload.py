"""The calls that `holdfast verify` makes, and what can be said about them afterwards."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter as Tally
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from holdfast.client import Client
from holdfast.errors import HoldfastError
from holdfast.verify.app import Counter, Journal, Register
from holdfast.verify.linearizability import NEVER, Call, linearizable, register

_REGISTERS = 8
_COUNTERS = 12
_JOURNALS = 12
_GENERATION_S = 15.0  # registers are new ones after that: a history that is short is checked quickly
_PAGE = 1000


@dataclass(slots=True)
class Made:
    """One call that was made. `ok`: True acknowledged, False certainly without effect, None nobody knows."""

    began: float
    ended: float
    ok: bool | None
    error: str = ""


@dataclass
class Findings:
    """What the histories say. Empty lists are what one wants."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    not_linearizable: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)
    registers: int = 0

    @property
    def broken(self) -> bool:
        return bool(self.lost or self.doubled or self.not_linearizable)


class Workload:
    """`clients` call registers, counters and journals, each with a pause of `think_s` on average between calls.

    `run_id` keeps the objects of two runs against one cluster apart. Times are seconds since the workload was made.
    """

    def __init__(self, client: Client, clients: int, think_s: float, seed: int, run_id: str) -> None:
        self._client = client
        self._clients = clients
        self._think_s = think_s
        self._random = random.Random(seed)
        self._run = run_id
        self._zero = time.monotonic()
        self._values = itertools.count(1)
        self.made: list[Made] = []
        self._registers: dict[str, list[Call]] = defaultdict(list)
        self._increments: dict[str, list[tuple[bool | None, int]]] = defaultdict(list)
        self._appends: dict[str, dict[str, bool | None]] = defaultdict(dict)

    def now(self) -> float:
        return time.monotonic() - self._zero

    async def run(self, stop: asyncio.Event) -> None:
        """Call until `stop` is set; calls under way are waited for."""
        async with asyncio.TaskGroup() as group:
            for i in range(self._clients):
                group.create_task(self._work(i, random.Random(self._random.random()), stop))

    async def _work(self, i: int, chance: random.Random, stop: asyncio.Event) -> None:
        while not stop.is_set():
            kind = chance.random()
            if kind < 0.5:
                # Each register has the calls of a few clients only.
                await self._register(
                    f"{self._run}-{int(self.now() / _GENERATION_S)}-{(i + chance.randrange(2)) % _REGISTERS}", chance
                )
            elif kind < 0.8:
                await self._increment(f"{self._run}-{chance.randrange(_COUNTERS)}")
            else:
                await self._append(f"{self._run}-{chance.randrange(_JOURNALS)}", f"{i}-{next(self._values)}")
            await asyncio.sleep(chance.expovariate(1 / self._think_s))

    async def _register(self, key: str, chance: random.Random) -> None:
        stub = self._client.get(Register, key)
        which = chance.random()
        value = next(self._values)
        if which < 0.4:
            what: tuple[Any, ...] = ("read",)
            coroutine: Any = stub.read()
        elif which < 0.75:
            what = ("write", value)
            coroutine = stub.write(value)
        else:
            earlier = [call.what[-1] for call in self._registers[key][-8:] if call.what[0] != "read"]
            expected = chance.choice(earlier) if earlier else 0
            what = ("swap", expected, value)
            coroutine = stub.swap(expected, value)
        began, ended, ok, result = await self._make(coroutine)
        if ok:
            self._registers[key].append(Call(began, ended, what, result))
        elif ok is None and what[0] != "read":
            self._registers[key].append(Call(began, NEVER, what))

    async def _increment(self, key: str) -> None:
        _, _, ok, result = await self._make(self._client.get(Counter, key).increment())
        self._increments[key].append((ok, result if ok else 0))

    async def _append(self, key: str, element: str) -> None:
        self._appends[key][element] = None
        _, _, ok, _ = await self._make(self._client.get(Journal, key).append(element))
        self._appends[key][element] = ok

    async def _make(self, coroutine: Any) -> tuple[float, float, bool | None, Any]:
        began = self.now()
        try:
            result = await coroutine
        except HoldfastError as error:
            ended = self.now()
            ok = False if error.definite else None
            self.made.append(Made(began, ended, ok, f"{error.code}: {error.message}"))
            return began, ended, ok, None
        ended = self.now()
        self.made.append(Made(began, ended, True))
        return began, ended, True, result

    async def check(self) -> Findings:
        """Compare what is there now with what was answered. Call it when the cluster is whole again."""
        found = Findings(registers=len(self._registers))
        for key, increments in self._increments.items():
            value = await self._client.get(Counter, key).value()
            acknowledged = sum(ok is True for ok, _ in increments)
            unknown = sum(ok is None for ok, _ in increments)
            if value < acknowledged:
                found.lost.append(f"counter {key} is {value}, but {acknowledged} increments were acknowledged")
            if value > acknowledged + unknown:
                found.doubled.append(f"counter {key} is {value}, but only {acknowledged} and perhaps {unknown} more were made")
            twice = [n for n, times in Tally(n for ok, n in increments if ok).items() if times > 1]
            if twice:
                found.doubled.append(f"counter {key} answered {twice[:5]} twice")
        for key, elements in self._appends.items():
            there: list[str] = []
            while page := await self._client.get(Journal, key).elements(len(there), _PAGE):
                there += page
            times = Tally(there)
            found.lost += [f"journal {key} has not {e}, which was acknowledged" for e, ok in elements.items() if ok and not times[e]]
            found.doubled += [f"journal {key} has {e} {n} times" for e, n in times.items() if n > 1]
            found.doubled += [f"journal {key} has {e}, which certainly failed" for e in times if elements.get(e, False) is False]
        for key, calls in self._registers.items():
            order = await asyncio.to_thread(linearizable, calls, register, 0)
            if order is False:
                found.not_linearizable.append(f"register {key}: no order of its {len(calls)} calls explains their results")
            elif order is None:
                found.undecided.append(f"register {key}: {len(calls)} calls, too many at once to decide")
        return found
