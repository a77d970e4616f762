"""The timeline of a run as SVG: calls a second and p99 over time, with the faults as bands."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

from holdfast.verify.history import Made

_WIDTH, _LEFT, _RIGHT = 1100, 70, 20
_PANEL, _TOP, _GAP = 150, 56, 46
_PLOT = _WIDTH - _LEFT - _RIGHT
_RATE_Y = float(_TOP + 18)
_P99_Y = _RATE_Y + _PANEL + _GAP
KEPT = "every promise was kept"
_COLOURS = {
    "kill": "#d1495b",
    "pause": "#edae49",
    "restart": "#66a182",
    "partition": "#8d6a9f",
    "etcd": "#00798c",
    "drain": "#5c80bc",
    "join": "#9a8c98",
    "disk": "#7f4f24",
}


@dataclass(slots=True)
class Band:
    """A fault, from its begin until the cluster was whole again. Times are seconds of the
    workload's clock.
    """

    fault: str
    what: str
    began: float
    mended: float
    ended: float


@dataclass(frozen=True)
class _Scales:
    """Where times and values are on the picture."""

    total: int
    top_rate: int
    top_ms: float

    def x(self, at: float) -> float:
        return _LEFT + _PLOT * min(at, self.total) / self.total

    def rate(self, rate: float) -> float:
        return _RATE_Y + _PANEL * (1 - rate / self.top_rate)

    def p99(self, ms: float) -> float:
        return _P99_Y + _PANEL * (1 - math.log10(max(ms, 1.0)) / math.log10(self.top_ms))


def draw(
    made: list[Made],
    bands: list[Band],
    seconds: float,
    title: str,
    verdict: str = "",
    facts: str = "",
) -> str:
    """Return the timeline as an SVG document. `verdict`: the outcome of the run; `facts`: the time
    and the cluster of the run.
    """
    buckets: dict[int, list[float]] = {}
    for one in made:
        if one.ok:
            buckets.setdefault(int(one.ended), []).append((one.ended - one.began) * 1e3)
    # leave out the last second: it was measured only in part, and would look like a drop
    total = max(1, int(seconds))
    rates = [len(buckets.get(i, ())) for i in range(total)]
    p99s = [
        (lambda b: b[min(len(b) - 1, int(len(b) * 0.99))] if b else None)(
            sorted(buckets.get(i, ()))
        )
        for i in range(total)
    ]
    scales = _Scales(
        total,
        top_rate=max([*rates, 1]),
        top_ms=10 ** math.ceil(math.log10(max([p for p in p99s if p is not None] + [10.0]))),
    )
    height = _P99_Y + _PANEL + 70
    out = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}"'
            ' font-family="sans-serif" font-size="12">'
        ),
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{_LEFT}" y="24" font-size="16" font-weight="bold">{escape(title)}</text>',
        (
            f'<text x="{_WIDTH - _RIGHT}" y="24" font-size="16" font-weight="bold"'
            ' text-anchor="end"'
            f' fill="{"#2a7f3f" if verdict == KEPT else "#c1121f"}">{escape(verdict)}</text>'
        ),
        (
            f'<text x="{_WIDTH - _RIGHT}" y="{height - 16}" text-anchor="end"'
            f' fill="#444444">{escape(facts)}</text>'
        ),
    ]
    out += _bands(scales, bands)
    out += _axes(scales)
    out += _curves(scales, rates, p99s)
    failed = [one for one in made if not one.ok]
    out += [
        f'<circle cx="{scales.x(one.ended):.1f}" cy="{_P99_Y + 6}" r="3" fill="#c1121f"/>'
        for one in failed
    ]
    out.append(
        f'<text x="{_LEFT}" y="{height - 16}" fill="#444444">'
        "Bands: dark while the fault lasts, light until the cluster is whole again. "
        f"{f'Red: the {len(failed)} calls that failed.' if failed else 'No call failed.'}</text>"
    )
    out.append("</svg>")
    return "\n".join(out)


def _bands(scales: _Scales, bands: list[Band]) -> list[str]:
    out = []
    for number, band in enumerate(bands):
        colour = _COLOURS.get(band.fault, "#888888")
        for began, ended, opacity in (
            (band.began, band.mended, 0.30),
            (band.mended, band.ended, 0.10),
        ):
            left, width = scales.x(began), max(1.0, scales.x(ended) - scales.x(began))
            for y in (_RATE_Y, _P99_Y):
                out.append(
                    f'<rect x="{left:.1f}" y="{y}" width="{width:.1f}"'
                    f' height="{_PANEL}" fill="{colour}" fill-opacity="{opacity}"/>'
                )
        # alternate the height, so that the names of two close bands do not overlap
        label_y = _RATE_Y - 6 - 13 * (number % 2)
        out.append(
            f'<text x="{scales.x(band.began) + 3:.1f}" y="{label_y}" fill="{colour}"'
            f' font-weight="bold">{escape(band.fault)}<title>{escape(band.what)}</title></text>'
        )
    return out


def _axes(scales: _Scales) -> list[str]:
    out = []
    for y, name in ((_RATE_Y, "calls a second"), (_P99_Y, "p99 in ms, calls that ended then")):
        out.append(
            f'<rect x="{_LEFT}" y="{y}" width="{_PLOT}" height="{_PANEL}" fill="none"'
            ' stroke="#444444"/>'
        )
        out.append(f'<text x="{_LEFT + 4}" y="{y + _PANEL - 6}" fill="#444444">{name}</text>')
    for share in (0.0, 0.5, 1.0):
        y = _RATE_Y + _PANEL * (1 - share)
        out.append(
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}"'
            f' text-anchor="end">{scales.top_rate * share:,.0f}</text>'
        )
    ms = 1
    while ms <= scales.top_ms:
        y = scales.p99(ms)
        out.append(
            f'<line x1="{_LEFT}" x2="{_LEFT + _PLOT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>'
        )
        out.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{ms:,}</text>')
        ms *= 10
    step = next(s for s in (5, 10, 30, 60, 300, 600, 3600, 36000) if scales.total / s <= 20)
    for at in range(0, scales.total + 1, step):
        out.append(
            f'<text x="{scales.x(at):.1f}" y="{_P99_Y + _PANEL + 18}"'
            f' text-anchor="middle">{at} s</text>'
        )
    return out


def _curves(scales: _Scales, rates: list[int], p99s: list[float | None]) -> list[str]:
    points = " ".join(
        f"{scales.x(i + 0.5):.1f},{scales.rate(rate):.1f}" for i, rate in enumerate(rates)
    )
    out = [f'<polyline points="{points}" fill="none" stroke="#1b4965" stroke-width="1.6"/>']
    for i, p99 in enumerate(p99s):
        if p99 is not None:
            out.append(
                f'<circle cx="{scales.x(i + 0.5):.1f}" cy="{scales.p99(p99):.1f}" r="2.6"'
                ' fill="#1b4965"/>'
            )
    return out
