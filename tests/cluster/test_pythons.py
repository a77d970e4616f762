"""The unit tests, and a command that is refused, on other Pythons than the one that runs the tests.

Interpreters are those that HOLDFAST_PYTHONS names (paths, separated as in PATH). Without it they
are looked for as `python3.N` on PATH, among pyenv's versions, and at /usr/bin/python3. Each gets a
virtual environment below `.venv/pythons`, which stays.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WANTED = ((3, 11), (3, 13))
"""The oldest and the newest Python that are supported."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def version_of(python: str) -> tuple[int, ...] | None:
    try:
        done = subprocess.run(
            [python, "-c", "import sys; print(*sys.version_info[:3])"],
            capture_output=True,
            text=True,
            timeout=30,
        )
    except OSError:
        return None
    return tuple(int(part) for part in done.stdout.split()) if done.returncode == 0 else None


@cache
def others() -> dict[tuple[int, ...], str]:
    """An interpreter of each wanted version but the one that runs, and the system's own: Debian's
    3.11.2 has bugs of its own."""
    if given := os.environ.get("HOLDFAST_PYTHONS"):
        candidates = given.split(os.pathsep)
    else:
        on_path = [path for minor in range(11, 20) if (path := shutil.which(f"python3.{minor}"))]
        candidates = [
            *on_path,
            *map(str, sorted(Path.home().glob(".pyenv/versions/3.*/bin/python3"))),
            "/usr/bin/python3",
        ]
    found: dict[tuple[int, ...], str] = {}
    for python in candidates:
        version = version_of(python)
        if version is not None and version != sys.version_info[:3]:
            found.setdefault(version, python)
    wanted: dict[tuple[int, ...], str] = {}
    for version, python in sorted(found.items(), reverse=True):
        newest = (
            version[:2] in WANTED
            and version[:2] != sys.version_info[:2]
            and version[:2] not in {v[:2] for v in wanted}
        )
        systems = (
            python == "/usr/bin/python3"
            or Path(python).resolve() == Path("/usr/bin/python3").resolve()
        )
        if newest or (systems and version[:2] >= WANTED[0]) or os.environ.get("HOLDFAST_PYTHONS"):
            wanted[version] = python
    return wanted


def environment(version: tuple[int, ...], python: str) -> Path:
    """The virtual environment of an interpreter, with what the tests need."""
    folder = ROOT / ".venv" / "pythons" / ".".join(map(str, version))
    needs = hashlib.sha256(
        (ROOT / "pyproject.toml").read_bytes() + (ROOT / "constraints.txt").read_bytes()
    ).hexdigest()
    stamp = folder / "made-for"
    if not stamp.exists() or stamp.read_text() != needs:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
        pip = [
            str(folder / "bin" / "python"),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ]
        subprocess.run([*pip, "-c", "constraints.txt", "-e", ".[dev]"], check=True, cwd=ROOT)
        stamp.write_text(needs)
    return folder / "bin" / "python"


@pytest.mark.parametrize("which", range(2))
def test_other_pythons_pass_the_unit_tests_and_tell_what_is_refused(which: int) -> None:
    if which >= len(others()):
        pytest.skip(
            f"no {'second ' if which else ''}other Python of {WANTED} is there; name some in"
            " HOLDFAST_PYTHONS"
        )
    version, interpreter = list(others().items())[which]
    python = environment(version, interpreter)
    refused = ("tests/cluster/test_bad_input.py", "-k", "data_directory_in_use")
    for tests in (refused, ("tests/unit",)):
        command = [str(python), "-m", "pytest", *tests, "-q", "-p", "no:cacheprovider"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=500)
        assert done.returncode == 0, (version, done.stdout[-5000:])
