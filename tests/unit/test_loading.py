"""Finding an app: whatever its file is called, and from wherever it is looked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

APP = (
    "from holdfast import App, DurableObject\n\napp = App()\n\n\n@app.kind\nclass"
    " {kind}(DurableObject):\n    pass\n"
)
LOADS = """
import sys
from holdfast.loading import load_app, source_folder
app = load_app(sys.argv[1])
import queue, json, site
assert queue.Queue and json.dumps, "Python's own modules are what they were"
print(sorted(app.kinds), source_folder(sys.argv[1]))
"""


def load(target: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", LOADS, target]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )


def write(path: Path, kind: str = "Cart", more: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(more + APP.format(kind=kind))


@pytest.mark.parametrize(
    "name", ["app.py", "queue.py", "json.py", "click.py", "holdfast.py", "__main__.py", "pytest.py"]
)
def test_an_app_file_may_be_called_like_any_module(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    done = load(name, tmp_path)
    assert done.stdout == f"['Cart'] {tmp_path}\n", done.stderr
    assert load(str(tmp_path / name), Path("/")).stdout == done.stdout


def test_a_module_is_found_in_the_working_folder_and_finds_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "prices.py").write_text("TEA = 3\n")
    write(
        tmp_path / "shop" / "app.py",
        more="import prices\nfrom shop import helpers\n\nassert prices.TEA + helpers.X\n",
    )
    write(tmp_path / "shop" / "__init__.py")
    (tmp_path / "shop" / "__init__.py").write_text("")
    (tmp_path / "shop" / "helpers.py").write_text("X = 1\n")
    for target in ("shop.app", "shop.app:app", "shop/app.py", "shop/app.py:app"):
        done = load(target, tmp_path)
        assert done.stdout == f"['Cart'] {tmp_path}\n", done.stderr


def test_two_files_of_one_name_are_two_apps(tmp_path: Path) -> None:
    for folder, kind in (("one", "First"), ("two", "Second")):
        write(tmp_path / folder / "queue.py", kind)
        assert load(f"{folder}/queue.py", tmp_path).stdout.startswith(f"['{kind}']")


def test_a_package_that_is_called_like_an_installed_one_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "json" / "app.py")
    (tmp_path / "json" / "__init__.py").write_text("")
    assert (
        "its package 'json' has the name of an installed package"
        in load("json/app.py", tmp_path).stderr
    )


def test_it_is_told_whether_an_app_can_be_loaded(tmp_path: Path) -> None:
    write(tmp_path / "good.py")
    (tmp_path / "bad.py").write_text("1 / 0\n")
    for name, code, said in (
        ("good.py", 0, ""),
        ("bad.py", 1, "ZeroDivisionError"),
        ("none.py", 1, "no such file"),
    ):
        command = [sys.executable, "-P", "-m", "holdfast.loading", name]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == code
        assert said in done.stdout
