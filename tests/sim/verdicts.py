"""What callers were told of their calls, against what is there in the end. An observer of its own:
it knows nothing of the world."""

from __future__ import annotations

from collections.abc import Mapping


class Broken(AssertionError):
    """Something happened twice, or never, or although it certainly had not."""


def check_verdicts(where: str, told: Mapping[str, bool | None], there: Mapping[str, int]) -> None:
    """`told`: by element True acknowledged, False certainly without effect, None unknown. `there`:
    how often each is there."""
    for element, times in there.items():
        if times > 1:
            raise Broken(f"once: {where} has {element} {times} times")
        if told.get(element, None) is False:
            raise Broken(
                f"definite: {where} has {element}, whose call certainly had no effect, as its"
                " caller was told"
            )
    for element, verdict in told.items():
        if verdict and not there.get(element, 0):
            raise Broken(f"acknowledged: {where} has not {element}")
