"""What `holdfast dev` shows of its processes' logs, and which files it watches."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from holdfast.cli.dev_changes import Changes
from holdfast.cli.dev_terminal import Terminal


class Cluster:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes = {"etcd": None, "n1": None}

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def log_from(self, name: str) -> int:
        return 0

    def says(self, name: str, *lines: str | dict[str, Any]) -> None:
        with self.log(name).open("a") as log:
            log.writelines(
                (line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines
            )


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def terminal(cluster: Cluster, verbose: bool = False) -> tuple[Terminal, list[str]]:
    shown: list[str] = []
    made = Terminal(cluster, verbose, shown.append)  # type: ignore[arg-type]
    made.starting = False
    return made, shown


def line(message: str, level: str = "info", logger: str = "shop", **more: Any) -> dict[str, Any]:
    return {
        "time": "2026-01-02T03:04:05.678+00:00",
        "level": level,
        "logger": logger,
        "message": message,
        **more,
    }


def plain(shown: list[str]) -> str:
    import click

    return click.unstyle("\n".join(shown))


def test_prints_and_the_users_own_lines_are_shown_and_ours_only_when_something_is_wrong(
    cluster: Cluster,
) -> None:
    told, shown = terminal(cluster)
    cluster.says(
        "n1",
        "printed",
        line("mine"),
        line("calm", logger="holdfast_node.process.server"),
        line("odd", "warning", "holdfast_node.x"),
    )
    cluster.says(
        "n1", line("of an object", logger="holdfast.objects", kind="Cart", key="c", request_id="ab")
    )
    cluster.says(
        "etcd", {"level": "warn", "ts": "2026-01-02T03:04:05.678Z", "msg": "slow"}, "not JSON"
    )
    told.look()
    text = plain(shown)
    assert "n1       | printed" in text
    assert "mine" in text
    assert "WARNING odd" in text
    assert "Cart/c: of an object (request ab)" in text
    assert "calm" not in text
    assert "slow" not in text
    assert "not JSON" not in text
    told, shown = terminal(cluster, verbose=True)
    told.look()
    assert all(word in plain(shown) for word in ("calm", "slow", "not JSON"))


def test_a_traceback_stays_one(cluster: Cluster) -> None:
    told, shown = terminal(cluster)
    failed = line(
        "Cart/c.add failed: no",
        "error",
        "holdfast_node.objects.engine",
        kind="Cart",
        key="c",
        method="add",
        traceback="a\n  b\nc",
    )
    cluster.says("n1", failed)
    told.look()
    assert plain(shown).splitlines()[1:] == ["n1       | a", "n1       |   b", "n1       | c"]
    assert plain(shown).splitlines()[0].endswith("ERROR Cart/c.add failed: no")


def test_half_a_line_waits_for_its_end_and_nothing_is_shown_twice(cluster: Cluster) -> None:
    told, shown = terminal(cluster)
    cluster.log("n1").write_text("one\ntw")
    told.look()
    told.look()
    with cluster.log("n1").open("a") as log:
        log.write("o\n")
    told.look()
    assert plain(shown) == "n1       | one\nn1       | two"


def test_while_it_starts_only_errors_are_shown(cluster: Cluster) -> None:
    told, shown = terminal(cluster)
    told.starting = True
    cluster.says(
        "n1", line("waiting", "warning", "holdfast_node"), line("broken", "error", "holdfast_node")
    )
    told.look()
    assert len(shown) == 1


@pytest.mark.parametrize(
    "odd",
    [
        "[]",
        "5",
        '{"level": 5, "message": null}',
        '{"level": "info"}',
        '{"time": 5, "level": "error"}',
        "{",
        '{"level":"info","message":"m","logger":null,"traceback":["x"]}',
    ],
)
def test_lines_of_any_form_are_shown(cluster: Cluster, odd: str) -> None:
    told, shown = terminal(cluster)
    cluster.says("n1", odd)
    told.look()
    assert len(shown) == 1


def test_a_change_is_told_once_it_has_settled(tmp_path: Path) -> None:
    app, other = tmp_path / "app.py", tmp_path / "shop" / "prices.py"
    other.parent.mkdir()
    for path in (app, other, tmp_path / "notes.txt"):
        path.write_text("1\n")
    for name in (".hidden", "node_modules", "__pycache__", "data", "venv"):
        (tmp_path / name).mkdir()
    (tmp_path / "venv" / "pyvenv.cfg").write_text("")
    changes = Changes(tmp_path, tmp_path / "data")
    assert changes.settled() == []
    app.write_text("2 + 2\n")
    assert changes.settled() == [], "it may be written still"
    assert changes.settled() == [app]
    assert changes.settled() == []
    other.unlink()
    (tmp_path / "new.py").write_text("")
    changes.settled()
    assert changes.settled() == [tmp_path / "new.py", other]
    for name in (".hidden", "node_modules", "__pycache__", "data", "venv"):
        (tmp_path / name / "x.py").write_text("")
    (tmp_path / "notes.txt").write_text("2\n")
    changes.settled()
    assert changes.settled() == []
    os.utime(app, (1, 1))
    changes.settled()
    assert changes.settled() == [app]
