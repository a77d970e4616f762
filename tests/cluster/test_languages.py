"""The examples in other languages, against the property example on real processes; and what generic
gRPC tools ask for."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2
from holdfast import testing
from holdfast.v1 import objects_pb2 as pb
from holdfast.v1 import objects_pb2_grpc

from tests.cluster.processes import run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def gateway() -> Iterator[str]:
    with testing.local_cluster(str(ROOT / "examples" / "property" / "app.py")) as gateway:
        yield gateway


def test_node_js(gateway: str, tmp_path: Path) -> None:
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("Node.js is not installed")
    folder = tmp_path / "examples" / "node"
    shutil.copytree(
        ROOT / "examples" / "node", folder, ignore=shutil.ignore_patterns("node_modules")
    )
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    installed = subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert installed.returncode == 0, installed.stderr
    done = subprocess.run(
        ["node", "client.js", gateway], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "Property/from-node costs 350000",
        "refused: FAILED_PRECONDITION: not a valid PRICE_UPDATE: -1",
        done.stdout.splitlines()[2],
    ]
    assert done.stdout.splitlines()[2].startswith(
        "wrong: INVALID_ARGUMENT: update() was called with a wrong argument"
    )
    code, out, _ = command(
        "call", "Property", "from-node", "history", "--gateway", gateway, "--json"
    )
    assert code == 0
    assert [int(price) for price in re.findall(r'"value":(\d+)', out)] == [
        350_000,
        360_000,
        370_000,
    ], "each effect is there once"


def command(*arguments: str) -> tuple[int, str, str]:
    done = run(*arguments)
    return done.returncode, done.stdout, done.stderr


def test_go(gateway: str, tmp_path: Path) -> None:
    go = shutil.which("go")
    version = (
        "" if go is None else subprocess.run([go, "version"], capture_output=True, text=True).stdout
    )
    found = re.search(r"go1\.(\d+)", version)
    if found is None or int(found[1]) < 22:
        pytest.skip(f"Go 1.22 or newer is not installed; there is {version.strip() or 'none'}")
    if missing := [
        tool
        for tool in ("protoc", "protoc-gen-go", "protoc-gen-go-grpc")
        if shutil.which(tool) is None
    ]:
        pytest.skip(f"{', '.join(missing)} is not installed")
    folder = tmp_path / "examples" / "go"
    shutil.copytree(ROOT / "examples" / "go", folder)
    (folder / "gen").mkdir()
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    for step in (["go", "mod", "tidy"], ["make", "run", f"GATEWAY={gateway}"]):
        done = subprocess.run(step, cwd=folder, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
    assert "Property/from-go costs 350000" in done.stdout
    assert "refused: FailedPrecondition" in done.stdout


def test_integers_are_text_on_request_and_calls_can_be_sent(gateway: str) -> None:
    with grpc.insecure_channel(gateway) as channel:
        objects = objects_pb2_grpc.ObjectsStub(channel)
        wide = 9_007_199_254_740_993
        change = f'{{"change": {{"type": "PRICE_UPDATE", "value": {wide}}}}}'
        request = pb.CallRequest(
            kind="Property", key="wide", method="update", json=change, wide_integers_as_text=True
        )
        assert f'"price":"{wide}"' in objects.Call(request).json
        request.wide_integers_as_text = False
        assert f'"price":{wide},' in objects.Call(request).json


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_is_there_under_both_of_its_names(gateway: str, version: str) -> None:
    with grpc.insecure_channel(gateway) as channel:
        reflect = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="holdfast.v1.Objects"),
        ]
        services, file = reflect(iter(asked), timeout=10)
        names = {service.name for service in services.list_services_response.service}
        assert {
            "holdfast.v1.Objects",
            "holdfast.v1.Admin",
            "grpc.reflection.v1.ServerReflection",
        } <= names
        assert file.file_descriptor_response.file_descriptor_proto


def test_the_wheel_has_the_proto_files() -> None:
    """As hatchling is told; the editable install of the tests has them elsewhere."""
    import tomllib

    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"][
        "targets"
    ]["wheel"]["force-include"]
    for path, inside in told.items():
        assert (ROOT / path).read_text().startswith("//")
        assert inside.startswith("holdfast/v1/")
    assert {Path(path).name for path in told} == {
        path.name for path in (ROOT / "proto" / "holdfast" / "v1").glob("*.proto")
    }
    assert resources.files("holdfast.v1").is_dir()
