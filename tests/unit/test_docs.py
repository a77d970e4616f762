"""The scripts that hold the documents against the code: docs/check.py and docs/way_back.py."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from docs import check, way_back

SEEDS = 'SEEDS = int(os.environ.get("SEEDS", "{}"))\n'


def repository(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_line_has_one_sentence() -> None:
    assert check.reflowed(["One fact. Another `a. B` fact.", "", "- An item. Its end."]) == [
        "One fact.",
        "Another `a. B` fact.",
        "",
        "- An item.",
        "  Its end.",
    ]


def test_every_module_is_in_the_row_of_its_folder(tmp_path: Path) -> None:
    root = repository(
        tmp_path,
        {
            "docs/architecture.md": (
                "| `node/holdfast_node` | what is there |\n|---|---|\n"
                "| `log` | `commit`, `core`: `chain` |\n| `store` | `rocks` (`keys`) |\n"
                "| (top) | `app` |\n\n| `other` | |\n|---|---|\n| `log` | `lost` |\n"
            ),
            "node/holdfast_node/__init__.py": "",
            "node/holdfast_node/app.py": "",
            "node/holdfast_node/log/commit.py": "",
            "node/holdfast_node/log/core/chain.py": "",
            "node/holdfast_node/log/peer_pb2_grpc.py": "",
            "node/holdfast_node/store/rocks.py": "",
            "node/holdfast_node/store/keys.py": "",
        },
    )
    assert check.unnamed(root) == []
    for name in ("log/lost", "store/commit", "new/part", "top"):
        repository(root, {f"node/holdfast_node/{name}.py": ""})
    row = "docs/architecture.md: the row {} of node/holdfast_node does not name `{}`"
    assert sorted(check.unnamed(root)) == sorted(
        row.format(folder, name)
        for folder, name in (
            ("log", "lost"),
            ("store", "commit"),
            ("new", "part"),
            ("(top)", "top"),
        )
    )


def test_the_numbers_of_worlds_are_those_of_the_tests(tmp_path: Path) -> None:
    page = "".join(f"- `tests/sim/{name}`: 1,500 worlds.\n" for name in check.WORLDS)
    tests = {f"tests/sim/{name}.py": SEEDS.format(1500) for name in check.WORLDS}
    root = repository(tmp_path, {"docs/guarantees.md": page, **tests})
    assert check.wrong_worlds(root) == []
    repository(root, {"tests/sim/test_effects.py": SEEDS.format(150)})
    (wrong,) = check.wrong_worlds(root)
    assert "`tests/sim/test_effects`: 150 " in wrong
    repository(root, {"tests/sim/test_effects.py": "SEEDS = 150\n"})
    with pytest.raises(AssertionError, match="no default of SEEDS"):
        check.wrong_worlds(root)


WAYS = pytest.mark.parametrize(
    "steps", [way_back.ONE_COPY, way_back.THREE_COPIES], ids=["one copy", "replicas"]
)


@WAYS
def test_no_step_of_the_way_back_can_be_left_out(steps: tuple[way_back.Step, ...]) -> None:
    way_back.check(steps)
    for left_out in range(1, len(steps)):
        shorter = (*steps[:left_out], *steps[left_out + 1 :])
        if left_out + 1 < len(steps) and steps[left_out + 1].by:
            continue  # another step calls the next one
        with pytest.raises(AssertionError, match="does not call"):
            way_back.check(shorter)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("log/commit.py", "call_soon_threadsafe(self._synced", "call_soon_threadsafe(self._soon"),
        ("log/commit.py", "                done()\n", "                pass\n"),
        ("replication/host.py", "lambda: self._persisted(numbers)", "lambda: None"),
        ("replication/host.py", "self._do_often(copy, Persisted(number))", "pass"),
        ("replication/host.py", "self._apply(copy, effect)", "self._persist(copy, effect)"),
        ("replication/host.py", "            entry.settle()\n", "            pass\n"),
        ("replication/core/replica.py", "            self._apply(reached)", "            pass"),
        ("log/shards.py", "            waiter.settled(self)\n", "            pass\n"),
        ("objects/requests.py", "append(_Answer(self, turn))", "append(turn)"),
        ("objects/requests.py", "turn.port.reply(", "turn.port.answer("),
    ],
)
def test_a_step_that_the_code_lost_is_found(tmp_path: Path, file: str, old: str, new: str) -> None:
    for step in way_back.THREE_COPIES:
        (tmp_path / step.file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(way_back.ROOT / step.file, tmp_path / step.file)
    way_back.check(way_back.THREE_COPIES, tmp_path)
    text = (tmp_path / file).read_text()
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new))
    with pytest.raises(AssertionError, match=r"does not (call|give)"):
        way_back.check(way_back.THREE_COPIES, tmp_path)


def test_the_way_back_names_functions_that_exist() -> None:
    renamed = replace(way_back.ONE_COPY[-1], function="Requests.ended")
    with pytest.raises(AssertionError, match=r"there is no Requests\.ended"):
        way_back.check((*way_back.ONE_COPY[:-1], renamed))
