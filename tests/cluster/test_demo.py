"""`make demo`: the example runs by itself, prints what happened, and ends with exit status 0."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_the_demo_tells_what_happened_and_ends() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "examples.property.demo"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Portfolio/north: 2 properties, 750,000 euros" in done.stdout
    assert "Rejected: not a valid STATUS_CHANGE: 'haunted'" in done.stdout
    assert "history 3" not in done.stdout
    assert "PropertySession/s-1 is reminded of p-1" in done.stdout
    assert "PropertySession/s-1: {'user': 'ada', 'viewed': ['p-1']}" in done.stdout
