"""What is installed with `pip install holdfast` is enough for clients, and no more is needed."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SERVERS_ONLY = """
import sys

MISSING = {
    "cronsim", "cryptography", "grpc_health", "grpc_reflection", "grpc_status", "jwt",
    "opentelemetry", "prometheus_client", "psutil", "rocksdict", "uvloop",
}


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in MISSING or name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Missing())
"""


def without_servers_packages(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SERVERS_ONLY + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_client_needs_none_of_the_servers_packages() -> None:
    done = without_servers_packages("""
import holdfast, holdfast.cli.calls, holdfast.cli.cluster, holdfast.cli.objects
import holdfast.cli.dead_letters, holdfast.cli.explain, holdfast.cli.top
from holdfast import App, BlockingClient, Client, DurableObject, connect, connect_blocking

app = App()

@app.kind("Counter")
class Counter(DurableObject):
    def add(self, n: int) -> int: ...

client = connect_blocking("127.0.0.1:1", timeout=0.1)
try:
    client.get(Counter, "a").add(1)
except holdfast.HoldfastError as error:
    print(error.code)
client.close()
""")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() in (["UNAVAILABLE"], ["DEADLINE_EXCEEDED"])


@pytest.mark.parametrize("command", ["node", "gateway", "dev", "verify", "bench"])
def test_a_command_that_runs_servers_says_what_is_not_installed(command: str) -> None:
    code = "from holdfast.cli.main import main\nmain()"
    done = without_servers_packages(code, command, "app.py", "--anything", "3")
    assert done.returncode == 1
    assert "install Holdfast with its extra `server`" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_the_help_of_the_other_commands_is_there() -> None:
    code = "from holdfast.cli.main import main\nmain()"
    done = without_servers_packages(code, "--help")
    assert done.returncode == 0, done.stderr
    assert "Call a method of an object." in done.stdout
    assert done.stdout.count("Not installed") == 5
    for command in ("call", "status", "top", "objects", "adopt-etcd"):
        assert without_servers_packages(code, command, "--help").returncode == 0


def test_the_packages_of_a_client_are_the_few_that_are_named() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {line.partition(">")[0].partition("=")[0] for line in project["dependencies"]}
    assert names == {"click", "googleapis-common-protos", "grpcio", "msgspec", "protobuf", "rich"}


def test_the_wheel_has_every_module_where_it_is_imported_from_and_nothing_else(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {
        str(path.relative_to(ROOT / folder))
        for folder in ("sdk", "cluster", "node", "gateway")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {name for name in names if name.endswith(".py")} == modules
    assert {name.partition("/")[0] for name in names} == {
        "holdfast",
        "holdfast_cluster",
        "holdfast_gateway",
        "holdfast_node",
    }
