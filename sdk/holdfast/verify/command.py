"""`holdfast verify`: runs a cluster, breaks it in many ways, and checks that it kept its
promises.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import uvloop
from rich import box
from rich.console import Console
from rich.table import Table

from holdfast import codec
from holdfast.client.client import connect
from holdfast.errors import HoldfastError
from holdfast.local import ClusterFailed
from holdfast.options import local_option
from holdfast.processes import told_as_refusal, version
from holdfast.verify.checks import Findings
from holdfast.verify.faults import FAULTS, TYPICAL_S, Victims, strike
from holdfast.verify.history import Made
from holdfast.verify.picture import KEPT, Band, draw
from holdfast.verify.workload import Workload

_CALM_S = 3.0
# about how long the start of a cluster takes, and the check of its histories
_START_S, _CHECK_S = (
    4.0,
    5.0,
)
_CALL_TIMEOUT_S = 30.0
_THINK_S = 0.08


@dataclass(frozen=True)
class VerifyOptions:
    """The options of `holdfast verify`."""

    duration: float
    faults: str
    seed: int | None
    nodes: int
    replication: int | None
    clients: int
    target: str | None
    picture: Path
    as_json: bool


@click.command(short_help="Break a cluster on purpose and check that it kept its promises.")
@local_option(
    "--duration",
    default=60.0,
    help=(
        "Seconds in which rounds of faults begin. A round has each fault once, and is always"
        " finished."
    ),
)
@local_option(
    "--faults",
    default=",".join(FAULTS),
    help="Faults to make, comma-separated; empty: no faults.",
)
@local_option(
    "--seed",
    type=int,
    help=(
        "Seed that decides the order of faults, victims and calls. Default: a new one, which the"
        " report names."
    ),
)
@local_option(
    "--nodes", default=4, type=click.IntRange(1, 10), help="How many nodes the cluster has."
)
@local_option(
    "--replication",
    type=click.IntRange(2, 7),
    help="Copies of each shard. Default: 3, or as many as there are nodes.",
)
@local_option(
    "--clients",
    default=20,
    type=click.IntRange(1, 200),
    help="How many clients call, each with a pause between its calls.",
)
@local_option(
    "--target",
    help=(
        "A running cluster's gateway, host:port; its nodes must run holdfast.verify.app. Then the"
        " command only calls and checks, and you make the faults."
    ),
)
@local_option(
    "--picture",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("verify.svg"),
    help="SVG file for the timeline.",
)
@local_option("--json", "as_json", is_flag=True, default=False, help="Print the report as JSON.")
def verify(**given: Any) -> None:
    """Run a cluster under load and faults, then check that it kept its promises.

    It checks that

    \b
    - no acknowledged write is lost
    - no effect happened twice
    - no call had an effect if its error said that it certainly had none
    - one order of all calls explains all their replies

    Exit status 1 if a promise was broken, 3 if the cluster did not become whole again.

    \b
    Examples:
      holdfast verify
      holdfast verify --duration 600 --faults kill,pause --seed 7
      holdfast verify --target 127.0.0.1:7400 --duration 30
    """
    options = VerifyOptions(**given)
    seed = options.seed
    wanted = [fault for fault in options.faults.split(",") if fault]
    if unknown := set(wanted) - set(FAULTS):
        raise click.ClickException(
            f"--faults {', '.join(sorted(unknown))}: unknown; there are {', '.join(FAULTS)}"
        )
    if options.target is not None:
        wanted = []
    seed = random.randrange(1_000_000) if seed is None else seed
    folder = Path(tempfile.mkdtemp(prefix="holdfast-verify-"))
    run = _Run(options.duration, wanted, seed, options.clients, options.as_json)
    victims = (
        Victims(folder, options.nodes, options.replication or min(options.nodes, 3))
        if options.target is None
        else None
    )
    if not options.as_json:
        click.echo(_announced(wanted, options.duration, options.target))
    try:
        uvloop.run(run.go(victims, options.target))
    except Exception as error:
        run.failed = told_as_refusal(error, (ClusterFailed, HoldfastError)).message
    verdict = (
        "a promise was broken"
        if run.findings.broken
        else "the cluster did not become whole"
        if run.failed
        else KEPT
    )
    where = (
        f"{options.nodes} nodes, {options.replication or min(options.nodes, 3)} copies"
        if options.target is None
        else options.target
    )
    facts = f"{time.strftime('%Y-%m-%d %H:%M')}, holdfast {version()}, {where}"
    options.picture.write_text(
        draw(run.made, run.bands, run.seconds, f"holdfast verify, seed {seed}", verdict, facts)
    )
    run.report(options.picture)
    if run.findings.broken or run.failed:
        kept = folder / "logs"
        click.echo(f"logs: {kept}", err=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    if run.findings.broken:
        raise SystemExit(1)
    if run.failed:
        raise SystemExit(3)


def _announced(faults: list[str], duration: float, target: str | None) -> str:
    """Return how long the run will take. Each fault comes at least once, however short the duration
    is.
    """
    beside = 2 * _CALM_S + _CHECK_S + (0.0 if target is not None else _START_S)
    once = sum(TYPICAL_S[fault] + _CALM_S for fault in faults)
    text = f"this takes about {max(duration, once) + beside:.0f} s"
    return f"{text}: each of {len(faults)} faults at least once" if once > duration else text


class _Run:
    def __init__(
        self, duration: float, faults: list[str], seed: int, clients: int, quiet: bool
    ) -> None:
        self._duration = duration
        self._faults = faults
        self._seed = seed
        self._clients = clients
        self._quiet = quiet
        self._chance = random.Random(seed)
        self.bands: list[Band] = []
        self.made: list[Made] = []
        self.hasty: list[Made] = []
        self.findings = Findings()
        self.failed = ""
        self._work: Workload | None = None
        self.seconds = 0.0

    async def go(self, victims: Victims | None, target: str | None) -> None:
        """Make the whole run. If it fails, the results so far are kept."""
        try:
            if victims is not None:
                await victims.start_all()
                target = victims.gateway
            assert target is not None
            async with connect(target, timeout=_CALL_TIMEOUT_S) as client:
                work = self._work = Workload(
                    client,
                    target,
                    self._clients,
                    _THINK_S,
                    self._seed,
                    f"{self._seed}-{time.time_ns()}",
                )
                self.made, self.hasty = work.made, work.hasty
                stop = asyncio.Event()
                calling = asyncio.create_task(work.run(stop))
                try:
                    await asyncio.sleep(_CALM_S)
                    if victims is None or not self._faults:
                        await asyncio.sleep(self._duration)
                    else:
                        await self._make_faults(victims, work)
                    await asyncio.sleep(_CALM_S)
                finally:
                    stop.set()
                    await calling
                    self.seconds = work.now()
                self.findings = await work.check()
        finally:
            if victims is not None:
                await victims.close()

    async def _make_faults(self, victims: Victims, work: Workload) -> None:
        until = work.now() + self._duration
        order: list[str] = []
        while order or work.now() < until:
            if not order:
                order = [*self._faults]
                self._chance.shuffle(order)
            fault = order.pop()
            began = work.now()
            what, seconds, mend = await strike(fault, victims, self._chance)
            band = Band(fault, what, began, began, began)
            self.bands.append(band)
            self._say(f"{began:6.1f} s  {fault}: {what}")
            band.mended = band.ended = began + seconds
            await asyncio.sleep(seconds)
            await mend()
            band.mended = work.now()
            try:
                await victims.whole()
            finally:
                band.ended = work.now()
            self._say(f"{band.ended:6.1f} s  whole again")
            await asyncio.sleep(_CALM_S)

    def _say(self, what: str) -> None:
        if not self._quiet:
            click.echo(what)

    def _slowest(self, began: float, ended: float) -> float:
        """Return the longest duration, in seconds, of the calls that were under way in that
        time.
        """
        return max(
            (
                one.ended - one.began
                for one in self.made
                if one.began <= ended and one.ended >= began
            ),
            default=0.0,
        )

    def report(self, picture: Path) -> None:
        """Print the results of the run."""
        facts = self._facts(picture)
        if self._quiet:
            click.echo(codec.encode_json(facts).decode())
        else:
            self._print(facts)

    def _waits(self) -> dict[str, list[float]]:
        """Return the longest wait of a call in each band, in seconds, by fault."""
        by_fault: dict[str, list[float]] = {}
        for band in self.bands:
            by_fault.setdefault(band.fault, []).append(self._slowest(band.began, band.ended))
        return by_fault

    def _facts(self, picture: Path) -> dict[str, Any]:
        made, found = self.made, self.findings
        acknowledged = sum(one.ok is True for one in made)
        failed = [one for one in made if one.ok is False]
        unknown = [one for one in made if one.ok is None]
        latencies = sorted(one.ended - one.began for one in made if one.ok)
        calm = [
            one
            for one in made
            if not any(b.began <= one.ended and one.began <= b.ended for b in self.bands)
        ]
        order = (
            "no" if found.not_linearizable else "not decided for all" if found.undecided else "yes"
        )
        return {
            "seed": self._seed,
            "seconds": round(self.seconds, 1),
            "operations": len(made),
            "acknowledged": acknowledged,
            "failed": len(failed),
            "unknown": len(unknown),
            "lost": found.lost,
            "doubled": found.doubled,
            "definite_errors_with_an_effect": found.definite,
            "linearizable": order,
            "registers_checked": found.registers,
            "not_linearizable": found.not_linearizable,
            "token_hops": found.hops,
            "transfers": found.transfers,
            "forked_calls": self._work.forked if self._work is not None else 0,
            "alarms": found.alarms,
            "posts": found.posts,
            "disordered": found.disordered,
            "p99_ms": round(latencies[int(len(latencies) * 0.99)] * 1e3, 1) if latencies else 0.0,
            "slowest_without_fault_ms": round(
                max((one.ended - one.began for one in calm), default=0.0) * 1e3, 1
            ),
            "hasty_calls": {
                "acknowledged": sum(one.ok is True for one in self.hasty),
                "failed": sum(one.ok is False for one in self.hasty),
                "unknown": sum(one.ok is None for one in self.hasty),
            },
            "faults": {
                fault: {
                    "times": len(longest),
                    "longest_wait_s": round(max(longest), 2),
                    "waits_s": [round(w, 2) for w in longest],
                }
                for fault, longest in self._waits().items()
            },
            "errors": sorted({one.error for one in (*failed, *unknown)})[:20],
            "cluster": self.failed or "whole in the end",
            "kept_its_promises": not found.broken,
            "picture": str(picture),
        }

    def _print(self, facts: dict[str, Any]) -> None:
        found = self.findings
        console = Console()
        if not console.is_terminal:
            console.width = 120
        console.print(
            f"\n{facts['operations']:,} operations in {self.seconds:.0f} s (seed {self._seed}):"
            f" {facts['acknowledged']:,} acknowledged, {facts['failed']} failed without effect,"
            f" {facts['unknown']} with an unknown outcome"
        )
        hasty = [sum(one.ok is ok for one in self.hasty) for ok in (True, False, None)]
        console.print(
            f"{len(self.hasty):,} more operations with short deadlines: {hasty[0]:,} acknowledged,"
            f" {hasty[1]:,} failed without effect, {hasty[2]:,} with an unknown outcome"
        )
        console.print(f"{facts['forked_calls']:,} calls of forked clients were acknowledged")
        console.print(
            f"lost {len(found.lost)}, doubled {len(found.doubled)}, with an effect although they"
            f" certainly failed {len(found.definite)}"
        )
        console.print(f"linearizable: {facts['linearizable']} ({found.registers} registers)")
        console.print(
            f"{found.hops:,} hops of tokens by notification, {found.transfers:,} transfers by call"
            f" and by notification, {found.alarms:,} alarms, {found.posts:,} calls that were"
            " stored: each once"
            if not found.broken
            else (
                f"{found.hops:,} hops of tokens, {found.transfers:,} transfers, {found.alarms:,}"
                f" alarms and {found.posts:,} stored calls were checked"
            )
        )
        console.print(self._table(facts))
        self._print_broken(console, facts)
        if self.failed:
            console.print(f"[red]the cluster[/red]: {self.failed}")
        console.print(f"timeline: {facts['picture']}")
        console.print(
            "[red]a promise was broken[/red]"
            if found.broken
            else "[green]every promise was kept[/green]"
        )

    def _table(self, facts: dict[str, Any]) -> Table:
        """Return how long calls waited, without a fault and in each fault."""
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for title in ("fault", "times", "longest wait of a call"):
            table.add_column(title, justify="left" if title == "fault" else "right")
        table.add_row("none", "", f"{facts['slowest_without_fault_ms']} ms")
        for fault, longest in sorted(self._waits().items()):
            table.add_row(fault, str(len(longest)), f"{max(longest):.2f} s")
        return table

    def _print_broken(self, console: Console, facts: dict[str, Any]) -> None:
        """Print what is broken, what could not be decided, and errors of calls."""
        found = self.findings
        for line in (
            *found.lost,
            *found.doubled,
            *found.definite,
            *found.not_linearizable,
            *found.disordered,
        )[:50]:
            console.print(f"[red]broken[/red]: {line}")
        for line in found.undecided[:10]:
            console.print(f"not decided: {line}")
        for line in facts["errors"]:
            console.print(f"error: {line}")
