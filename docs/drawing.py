"""Draws SVG for docs/pictures.py: dashboards as Grafana shows them, terminals, and the ring."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from holdfast_cluster.placement.ring import Ring, hash64
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

SANS = "Inter, 'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', sans-serif"
MONO = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"
COLOURS = (
    "#73bf69",
    "#f2cc0c",
    "#5794f2",
    "#ff9830",
    "#f2495c",
    "#b877d9",
    "#8ab8ff",
    "#37872d",
    "#fade2a",
    "#ffa6b0",
    "#96d98d",
    "#ca95e5",
)
_INK, _DIM, _GRID = "#d8d9da", "#9fa7b3", "#2c3235"
_PAGE, _PANEL = "#111217", "#181b1f"
_COLUMN, _ROW, _GAP = 46, 28, 8
MANY = 6
"""Of more lines than this a panel leaves out those that are 0 all the time."""


@dataclass(frozen=True)
class Series:
    """One line of a panel: its name, and (seconds, value) in the order of time."""

    name: str
    points: Sequence[tuple[float, float]]


def text(x: float, y: float, what: str, size: int = 11, fill: str = _INK, more: str = "") -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}"'
    return f"<text {where} {more}>{escape(what)}</text>"


def wide(what: str, size: int = 11) -> float:
    """About how wide a text is."""
    capitals = sum(letter.isupper() for letter in what)
    return (len(what) * 0.56 + capitals * 0.14) * size


def told(value: float, unit: str) -> str:
    """A value with its unit, as short as Grafana writes it."""
    if unit == "s":
        if value and abs(value) < 1e-3:
            return f"{value * 1e6:.3g} µs"
        return f"{value * 1e3:.3g} ms" if abs(value) < 1 and value else f"{value:.3g} s"
    if unit in ("bytes", "Bps"):
        end = "/s" if unit == "Bps" else ""
        for name, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
            if abs(value) >= factor:
                return f"{value / factor:.3g} {name}{end}"
        return f"{value:.3g} B{end}"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    short = f"{value / 1000:.3g} k" if abs(value) >= 10_000 else f"{value:,.4g}"
    return short + " /s" * (unit == "ops")


def steps(top: float, unit: str) -> list[float]:
    """Round values from 0 to a little above `top`."""
    if top <= 0:
        return [0.0, 1.0]
    base = 1.0
    if unit in ("bytes", "Bps"):
        base = float(1024 ** max(0, int(math.log(top, 1024))))
    rough = top / base / 4
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * n for n in (1, 2, 5, 10) if size * n >= rough) * base
    if unit == "none":
        step = max(1.0, step)
    return [step * i for i in range(math.ceil(top / step - 1e-9) + 1)]


class Board:
    """A dashboard of Grafana's, drawn from its JSON and the series of each panel."""

    def __init__(self, dashboard: dict[str, Any], begin: float, end: float) -> None:
        self._dashboard = dashboard
        self._begin, self._end = begin, end
        self._out: list[str] = []

    def svg(self, ask: Callable[[dict[str, Any]], list[Series]], subtitle: str) -> str:
        """The picture. `ask` tells the series of a panel."""
        panels = self._dashboard["panels"]
        rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
        width, top = 24 * _COLUMN + _GAP, 44
        height = top + rows * _ROW + _GAP
        self._out = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
            f' width="{width}" height="{height}" font-family="{SANS}">',
            f'<rect width="{width}" height="{height}" fill="{_PAGE}"/>',
            text(14, 28, self._dashboard["title"], 17, more='font-weight="600"'),
            text(width - 14, 28, subtitle, 12, _DIM, 'text-anchor="end"'),
        ]
        for panel in panels:
            at = panel["gridPos"]
            x, y = _GAP + at["x"] * _COLUMN, top + at["y"] * _ROW
            w, h = at["w"] * _COLUMN - _GAP, at["h"] * _ROW - _GAP
            if panel["type"] == "row":
                title = re.sub(r" ?(of )?\$\w+", "", panel["title"])
                self._out.append(text(x + 6, y + 19, title, 14, more='font-weight="600"'))
                continue
            self._out.append(
                f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="3" fill="{_PANEL}"'
                f' stroke="{_GRID}"/>'
            )
            self._out.append(text(x + 9, y + 18, panel["title"], 12, more='font-weight="600"'))
            series = ask(panel)
            if panel["type"] == "stat":
                self._stat(panel, series, x, y, w, h)
            else:
                self._graph(panel, series, x, y, w, h)
        return "\n".join([*self._out, "</svg>", ""])

    def _stat(
        self, panel: dict[str, Any], series: list[Series], x: float, y: float, w: float, h: float
    ) -> None:
        defaults = panel["fieldConfig"]["defaults"]
        value = series[0].points[-1][1] if series and series[0].points else math.nan
        colour = "#5794f2"
        for step in defaults["thresholds"]["steps"]:
            if step["value"] is None or value >= step["value"]:
                colour = {"green": "#73bf69", "red": "#f2495c", "blue": "#5794f2"}[step["color"]]
        shown = "no data" if math.isnan(value) else told(value, defaults["unit"])
        more = 'text-anchor="middle" font-weight="600"'
        self._out.append(text(x + w / 2, y + h / 2 + 24, shown, 30, colour, more))

    def _graph(
        self, panel: dict[str, Any], series: list[Series], x: float, y: float, w: float, h: float
    ) -> None:
        unit = panel["fieldConfig"]["defaults"]["unit"]
        stacked = "stacking" in panel["fieldConfig"]["defaults"]["custom"]
        series = sorted(series, key=lambda one: one.name)
        if len(series) > MANY:
            series = [one for one in series if any(value > 0 for _, value in one.points)]
        legend, below = self._legend(series, x + 9, y + h - 9, w - 18)
        lines = self._stacked(series) if stacked else [one.points for one in series]
        top = max((value for points in lines for _, value in points), default=0.0)
        ticks = steps(top, unit)
        left = x + 14 + max(wide(told(tick, unit), 10) for tick in ticks)
        right, high, low = x + w - 12, y + 30, y + h - below - 24

        def place(at: float, value: float) -> tuple[float, float]:
            share = (at - self._begin) / (self._end - self._begin)
            return left + (right - left) * share, low - (low - high) * value / ticks[-1]

        for tick in ticks:
            _, line = place(self._begin, tick)
            self._out.append(f'<path d="M{left:.1f} {line:.1f}H{right:.1f}" stroke="{_GRID}"/>')
            self._out.append(
                text(left - 5, line + 3.5, told(tick, unit), 10, _DIM, 'text-anchor="end"')
            )
        for minute in range(int((self._end - self._begin) // 60) + 1):
            across, _ = place(self._begin + 60 * minute, 0)
            self._out.append(f'<path d="M{across:.1f} {high}V{low:.1f}" stroke="{_GRID}"/>')
            label = f"{minute} min"
            anchor = "start" if minute == 0 else "middle"
            if across + wide(label, 10) / 2 > right:
                anchor = "end"
            if w > 300 or minute % 2 == 0:
                more = f'text-anchor="{anchor}"'
                self._out.append(text(across, low + 14, label, 10, _DIM, more))
        if not series:
            more = 'text-anchor="middle"'
            self._out.append(text((left + right) / 2, (high + low) / 2, "nothing", 12, _DIM, more))
        for number in reversed(range(len(lines))):
            colour = COLOURS[number % len(COLOURS)]
            for run in self._runs(lines[number]):
                path = " ".join("{:.0f},{:.1f}".format(*place(*point)) for point in run)
                if stacked:
                    begin, end = place(run[0][0], 0)[0], place(run[-1][0], 0)[0]
                    self._out.append(
                        f'<polygon points="{begin:.0f},{low:.1f} {path} {end:.0f},{low:.1f}"'
                        f' fill="{colour}" fill-opacity="0.25"/>'
                    )
                self._out.append(
                    f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.3"/>'
                )
        self._out += legend

    @staticmethod
    def _runs(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
        """The points, parted where there is a hole."""
        runs: list[list[tuple[float, float]]] = []
        last = -math.inf
        for at, value in points:
            if at - last > 20:
                runs.append([])
            runs[-1].append((at, value))
            last = at
        return runs

    @staticmethod
    def _stacked(series: list[Series]) -> list[list[tuple[float, float]]]:
        below: dict[float, float] = {}
        lines = []
        times = sorted({at for one in series for at, _ in one.points})
        for one in series:
            values = dict(one.points)
            for at in times:
                below[at] = below.get(at, 0.0) + values.get(at, 0.0)
            lines.append([(at, below[at]) for at in times])
        return lines

    @staticmethod
    def _legend(
        series: list[Series], x: float, bottom: float, width: float
    ) -> tuple[list[str], float]:
        """The names of the lines, as many rows as they need up to three; and how high that is."""
        rows: list[list[tuple[int, str]]] = [[]]
        used = 0.0
        for number, one in enumerate(series):
            needs = wide(one.name, 10) + 26
            if used + needs > width and rows[-1]:
                if len(rows) == 3:
                    rows[-1].append((-1, f"+{len(series) - number}"))
                    break
                rows.append([])
                used = 0.0
            rows[-1].append((number, one.name))
            used += needs
        out = []
        for line, row in enumerate(rows):
            y, at = bottom - 14 * (len(rows) - 1 - line), x
            for number, name in row:
                if number >= 0:
                    colour = COLOURS[number % len(COLOURS)]
                    out.append(
                        f'<path d="M{at:.1f} {y - 3.5:.1f}h11" stroke="{colour}" stroke-width="3"/>'
                    )
                    at += 15
                out.append(text(at, y, name, 10))
                at += wide(name, 10) + 11
        return out, 14 * len(rows)


def terminal(command: str, output: str, columns: int) -> str:
    """A terminal in which a command was run; `output` may have the escapes of colours."""
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True)
    console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
    console.print(Text.from_ansi(output.rstrip()))
    svg = console.export_svg(title=command, theme=MONOKAI)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # which names a web server
    svg = re.sub(r"font-family: [^;]+;", f"font-family: {MONO};", svg)
    return re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)


_NODE_COLOURS = ("#00897b", "#e57c23", "#5b6abf", "#c2414b", "#8d6e63")


def apart(places: list[float], least: float) -> list[float]:
    """Places on a circle of length 1, in order, moved so that no two are nearer than `least`."""
    moved = list(places)
    for _ in range(500):
        shifts = [0.0] * len(moved)
        for i in range(len(moved)):
            lacks = least - (moved[i] - moved[i - 1] + (i == 0))
            if lacks > 0:
                shifts[i] += lacks / 3
                shifts[i - 1] -= lacks / 3
        moved = [place + shift for place, shift in zip(moved, shifts, strict=True)]
    return moved


def ring(of: Ring, points: int, copies: int) -> str:
    """The ring of nodes with its shards, and beside it which node has which copy."""
    ids = sorted(of.nodes)
    colour = dict(zip(ids, _NODE_COLOURS, strict=False))
    ink, dim = "#222222", "#666666"
    width, height, x, y, radius = 1080, 590, 290, 318, 200
    spots = sorted(
        (hash64(b"node", one.encode(), i.to_bytes(4, "big")), one)
        for one in ids
        for i in range(points)
    )

    def at(position: int, distance: float) -> tuple[float, float]:
        angle = 2 * math.pi * position / (1 << 64) - math.pi / 2
        return x + distance * math.cos(angle), y + distance * math.sin(angle)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        f' width="{width}" height="{height}" font-family="{SANS}">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        text(30, 34, "The ring", 18, ink, 'font-weight="600"'),
        text(
            30,
            56,
            f"{len(ids)} nodes with {points} points each (a cluster has 128), {of.shards} shards",
            13,
            dim,
        ),
        text(
            590, 34, f"Which node has which shard ({copies} copies)", 18, ink, 'font-weight="600"'
        ),
    ]
    for (begin, _), (end, owner) in zip([spots[-1], *spots[:-1]], spots, strict=True):
        begin_x, begin_y = at(begin, radius)
        end_x, end_y = at(end, radius)
        far = int((end - begin) % (1 << 64) > 1 << 63)
        out.append(
            f'<path d="M{begin_x:.1f} {begin_y:.1f}A{radius} {radius} 0 {far} 1 {end_x:.1f}'
            f' {end_y:.1f}" fill="none" stroke="{colour[owner]}" stroke-width="16"/>'
        )
    for position, _ in spots:
        inner, outer = at(position, radius - 8), at(position, radius + 8)
        out.append(
            f'<path d="M{inner[0]:.1f} {inner[1]:.1f}L{outer[0]:.1f} {outer[1]:.1f}"'
            ' stroke="white" stroke-width="2"/>'
        )
    ordered = sorted(range(of.shards), key=lambda shard: hash64(b"shard", shard.to_bytes(4, "big")))
    positions = [hash64(b"shard", shard.to_bytes(4, "big")) for shard in ordered]
    whole = 1 << 64
    labels = apart([position / whole for position in positions], 0.024)
    for shard, position, label_at in zip(ordered, positions, labels, strict=True):
        dot, label = at(position, radius - 22), at(int(label_at % 1 * whole), radius - 52)
        out.append(
            f'<path d="M{dot[0]:.1f} {dot[1]:.1f}L{label[0]:.1f} {label[1]:.1f}" stroke="#bbbbbb"/>'
            f'<circle cx="{label[0]:.1f}" cy="{label[1]:.1f}" r="9" fill="white"/>'
            f'<circle cx="{dot[0]:.1f}" cy="{dot[1]:.1f}" r="6" fill="{colour[of.owners[shard]]}"'
            ' stroke="white"/>'
        )
        out.append(text(label[0], label[1] + 4, str(shard), 12, ink, 'text-anchor="middle"'))
    for number, one in enumerate(ids):
        out.append(
            f'<circle cx="{x - 62}" cy="{y - 30 + 24 * number}" r="7" fill="{colour[one]}"/>'
        )
        share = sum(owner == one for owner in of.owners)
        out.append(text(x - 46, y - 25 + 24 * number, f"{one}: owns {share}", 14, ink))
    half = (of.shards + 1) // 2
    for left in (590, 830):
        for number, one in enumerate(ids):
            more = 'text-anchor="middle" font-weight="600"'
            out.append(text(left + 52 + 46 * number, 66, one, 10, colour[one], more))
    for shard in range(of.shards):
        left = 590 + 240 * (shard // half)
        line = 90 + (shard % half) * 29
        out.append(text(left + 22, line + 5, f"{shard}", 12, ink, 'text-anchor="end"'))
        preferred = of.preference_list(shard, copies)
        for number, one in enumerate(ids):
            middle = left + 52 + 46 * number
            if one not in preferred:
                out.append(f'<circle cx="{middle}" cy="{line}" r="2" fill="#cccccc"/>')
                continue
            fill = colour[one] if preferred[0] == one else "white"
            out.append(
                f'<circle cx="{middle}" cy="{line}" r="9" fill="{fill}" stroke="{colour[one]}"'
                ' stroke-width="2.5"/>'
            )
    bottom = 90 + half * 29 + 8
    out += [
        f'<circle cx="608" cy="{bottom}" r="8" fill="{dim}"/>',
        text(622, bottom + 5, "owner", 13, ink),
        f'<circle cx="692" cy="{bottom}" r="8" fill="white" stroke="{dim}" stroke-width="2.5"/>',
        text(706, bottom + 5, "replica", 13, ink),
    ]
    return "\n".join([*out, "</svg>", ""])
