"""What the clients of `holdfast verify` called, and what they were answered."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from holdfast.verify.linearizability import Call

TOKENS = 5
EVERY_MS = 400


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
class History:
    """All that a run has to remember, so that the stored data can be compared with it.

    `refused`: values that registers certainly must never have; `posts`: accepted posts, in order.
    """

    stations: list[str]
    accounts: list[str]
    clocks: list[str]
    registers: dict[str, list[Call]] = field(default_factory=lambda: defaultdict(list))
    refused: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    increments: dict[str, list[tuple[bool | None, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    appends: dict[str, dict[str, bool | None]] = field(default_factory=lambda: defaultdict(dict))
    posts: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    transfers: int = 0
