"""The manifests, rendered by kubectl: accepted by Kubernetes' own schemas, and held against the
program."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import jsonschema
import kubernetes_validate
import pytest
import yaml
from holdfast.cli.main import main

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = ("dev", "production")
CUSTOM = {
    "ServiceMonitor": "servicemonitor.json",
    "ScaledObject": "scaledobject.json",
    "PrometheusRule": "prometheusrule.json",
}
needs_kubectl = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl is not installed"
)


@cache
def command_named(name: str) -> click.Command:
    found = main.get_command(click.Context(main), name)
    assert found is not None
    return found


def rendered(folder: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        ["kubectl", "kustomize", str(KUBERNETES / folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def resources(overlay: str, *kinds: str) -> list[dict[str, Any]]:
    return [one for one in rendered(f"overlays/{overlay}") if one["kind"] in kinds]


def component(overlay: str, kind: str, name: str) -> dict[str, Any]:
    [one] = [
        one
        for one in resources(overlay, kind)
        if one["metadata"]["labels"].get("app.kubernetes.io/component") == name
    ]
    return one


def pods(overlay: str) -> dict[str, dict[str, Any]]:
    """The pod specs of nodes and gateways, by the command that they run."""
    return {
        "node": component(overlay, "StatefulSet", "node")["spec"]["template"]["spec"],
        "gateway": component(overlay, "Deployment", "gateway")["spec"]["template"]["spec"],
    }


def options(command: str) -> dict[str, click.Option]:
    """The options of a command, by flag."""
    found = command_named(command)
    return {
        flag: one
        for one in found.params
        if isinstance(one, click.Option)
        for flag in (*one.opts, *one.secondary_opts)
    }


def environment(overlay: str, command: str) -> dict[str, str]:
    """What the container's environment says, Secrets' values left out."""
    container = pods(overlay)[command]["containers"][0]
    values: dict[str, str] = {}
    for source in container["envFrom"]:
        [config] = [
            c
            for c in resources(overlay, "ConfigMap")
            if c["metadata"]["name"] == source["configMapRef"]["name"]
        ]
        values |= config["data"]
    return values | {one["name"]: one.get("value", "") for one in container.get("env", [])}


def arguments(overlay: str, command: str) -> dict[str, str]:
    """Flags and their values."""
    container = pods(overlay)[command]["containers"][0]
    assert container["args"][0] == command
    return dict(arg.split("=", 1) for arg in container["args"][1:] if arg.startswith("--"))


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_resource_is_accepted(overlay: str) -> None:
    checked = 0
    for one in rendered(f"overlays/{overlay}"):
        if one["kind"] in CUSTOM:
            jsonschema.validate(
                one, json.loads((KUBERNETES / "schemas" / CUSTOM[one["kind"]]).read_text())
            )
        else:
            kubernetes_validate.validate(one, "1.32", strict=True)
        checked += 1
    assert checked >= 14


def custom_resources() -> Iterator[dict[str, Any]]:
    for file in (KUBERNETES / "components").rglob("*.yaml"):
        for one in yaml.safe_load_all(file.read_text()):
            if one["kind"] in CUSTOM:
                yield one


def test_custom_resources_are_what_their_operators_read() -> None:
    kinds = set()
    for one in custom_resources():
        jsonschema.validate(
            one, json.loads((KUBERNETES / "schemas" / CUSTOM[one["kind"]]).read_text())
        )
        kinds.add(one["kind"])
    assert kinds == set(CUSTOM)


def test_the_schemas_refuse_what_is_misspelt() -> None:
    for one in custom_resources():
        schema = json.loads((KUBERNETES / "schemas" / CUSTOM[one["kind"]]).read_text())
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**one, "spec": {**one["spec"], "endpoint": []}}, schema)


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("command", ["node", "gateway"])
def test_every_flag_and_variable_is_an_option_and_its_value_is_taken(
    overlay: str, command: str
) -> None:
    known = options(command)
    by_variable = {str(one.envvar): one for one in known.values()}
    given = arguments(overlay, command)
    assert set(given) <= set(known)
    variables = {
        name: value
        for name, value in environment(overlay, command).items()
        if name.startswith("HOLDFAST_")
    }
    assert set(variables) <= set(by_variable)
    assert "HOLDFAST_ETCD_ENDPOINTS" in variables
    for one, value in [(known[flag], value) for flag, value in given.items()] + [
        (by_variable[n], v) for n, v in variables.items()
    ]:
        if value and not value.startswith("$(") and not value.startswith("/etc/holdfast/"):
            one.type_cast_value(click.Context(command_named(command)), value)
        assert f"--{one.name}" not in given or one.envvar not in variables, (
            f"{one.name} is said twice"
        )


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("command", ["node", "gateway"])
def test_every_port_is_one_that_the_program_is_told_to_listen_at(
    overlay: str, command: str
) -> None:
    container = pods(overlay)[command]["containers"][0]
    given, variables = arguments(overlay, command), environment(overlay, command)
    listens = {
        int(given[flag].rpartition(":")[2])
        for flag in ("--listen", "--stream-listen")
        if flag in given
    }
    listens |= {int(variables["HOLDFAST_METRICS_PORT"]), int(variables["HOLDFAST_HEALTH_PORT"])}
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert set(ports.values()) == listens
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"]["port"] == ports["health"]
    service = component(overlay, "Service", command)
    for port in service["spec"]["ports"]:
        assert ports[port["targetPort"]] == port["port"]
    [policy] = [
        p
        for p in resources(overlay, "NetworkPolicy")
        if p["metadata"]["name"] == f"holdfast-{command}"
    ]
    let_in = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
    assert let_in == listens - {ports["health"]}, "the kubelet reaches it in any case"
    for rule in policy["spec"]["egress"]:
        assert rule["to"], "egress to anywhere"
    if command == "node":
        assert given["--advertise"] == f"$(POD_IP):{ports['grpc']}"
        # the host of --advertise, the port of --stream-listen
        assert "--stream-advertise" not in given
    dockerfile = (DEPLOY / "docker" / "Dockerfile").read_text()
    exposed = re.search(r"^EXPOSE (.*)$", dockerfile, re.MULTILINE)
    assert exposed is not None
    assert listens <= {int(port) for port in exposed.group(1).split()}


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("command", ["node", "gateway"])
def test_probes_ask_for_services_that_exist_and_liveness_does_not_depend_on_etcd(
    overlay: str, command: str
) -> None:
    from holdfast.health import LIVE

    container = pods(overlay)[command]["containers"][0]
    assert (
        container["livenessProbe"]["grpc"]["service"]
        == container["startupProbe"]["grpc"]["service"]
        == LIVE
    )
    assert "service" not in container["readinessProbe"]["grpc"]


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("command", ["node", "gateway"])
def test_the_grace_period_is_longer_than_a_drain(overlay: str, command: str) -> None:
    pod = pods(overlay)[command]
    assert (
        pod["terminationGracePeriodSeconds"]
        >= float(arguments(overlay, command)["--drain-timeout"]) + 10
    )


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_restricted(overlay: str) -> None:
    for workload in resources(overlay, "StatefulSet", "Deployment"):
        pod = workload["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]
    [namespace] = resources(overlay, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_find_the_pods_that_they_are_for(overlay: str) -> None:
    labels = {
        "node": component(overlay, "StatefulSet", "node")["spec"]["template"]["metadata"]["labels"],
        "gateway": component(overlay, "Deployment", "gateway")["spec"]["template"]["metadata"][
            "labels"
        ],
    }
    for command, own in labels.items():
        other = labels["gateway" if command == "node" else "node"]
        for kind in ("Service", "PodDisruptionBudget"):
            selector = component(overlay, kind, command)["spec"]["selector"]
            selector = selector.get("matchLabels", selector)
            assert selector.items() <= own.items()
            assert not selector.items() <= other.items()
        workload = component(overlay, "StatefulSet" if command == "node" else "Deployment", command)
        assert workload["spec"]["selector"]["matchLabels"].items() <= own.items()
        for constraint in pods(overlay)[command]["topologySpreadConstraints"]:
            assert constraint["labelSelector"]["matchLabels"].items() <= own.items()
        keys = {
            constraint["topologyKey"]
            for constraint in pods(overlay)[command]["topologySpreadConstraints"]
        }
        assert keys == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
    assert (
        component(overlay, "StatefulSet", "node")["spec"]["serviceName"]
        == component(overlay, "Service", "node")["metadata"]["name"]
    )


@needs_kubectl
def test_production_encrypts_everything_and_dev_says_that_it_does_not() -> None:
    for command in ("node", "gateway"):
        variables = environment("production", command)
        assert {
            f"HOLDFAST_{name}"
            for name in ("TLS_CERT", "TLS_KEY", "TLS_CA", "ETCD_CA", "ETCD_CERT", "ETCD_KEY")
        } <= set(variables)
        assert "HOLDFAST_INSECURE" not in variables
        pod = pods("production")[command]
        mounts = {
            mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]
        }
        secrets = {
            volume["name"]: volume["secret"]["secretName"]
            for volume in pod["volumes"]
            if "secret" in volume
        }
        for value in variables.values():
            if value.startswith("/etc/holdfast/"):
                assert secrets[mounts[str(Path(value).parent)]].startswith("holdfast-")
        assert environment("dev", command)["HOLDFAST_INSECURE"] == "true"
    assert "HOLDFAST_ACCESS" in environment("production", "gateway")


@needs_kubectl
def test_the_monitor_the_autoscaler_and_the_rules_name_what_exists() -> None:
    jobs = set()
    for monitor in resources("production", "ServiceMonitor"):
        command = monitor["metadata"]["labels"]["app.kubernetes.io/component"]
        service = component("production", "Service", command)
        assert (
            monitor["spec"]["selector"]["matchLabels"].items()
            <= service["metadata"]["labels"].items()
        )
        assert monitor["spec"]["endpoints"][0]["port"] in {
            port["name"] for port in service["spec"]["ports"]
        }
        jobs |= {
            one["replacement"]
            for one in monitor["spec"]["endpoints"][0]["relabelings"]
            if one["targetLabel"] == "job"
        }
    assert jobs == {"holdfast-node", "holdfast-gateway"}
    recorded = set(re.findall(r"record: (\S+)", (DEPLOY / "prometheus" / "rules.yml").read_text()))
    metrics = set(
        re.findall(
            r"^\| `(holdfast\w*)`",
            (ROOT / "docs" / "reference" / "metrics.md").read_text(),
            re.MULTILINE,
        )
    )
    [scaled] = [one for one in custom_resources() if one["kind"] == "ScaledObject"]
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    named = set(re.findall(r"[a-z_:]*holdfast[a-z0-9_:]*", query))
    assert named
    assert named <= recorded | metrics
    workload = component("production", "StatefulSet", "node")
    assert scaled["spec"]["scaleTargetRef"]["name"] == workload["metadata"]["name"]
    down = scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    assert down["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 1800}]
    dashboards = next(
        c
        for c in resources("production", "ConfigMap")
        if c["metadata"]["name"] == "holdfast-dashboards"
    )
    for name in ("overview.json", "drilldown.json"):
        assert dashboards["data"][name] == (DEPLOY / "grafana" / name).read_text()


@needs_kubectl
def test_the_components_fit_on_production(tmp_path: Path) -> None:
    def path(what: str) -> str:
        return os.path.relpath(KUBERNETES / what, tmp_path)

    (tmp_path / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {
                "resources": [path("overlays/production")],
                "components": [path("components/keda"), path("components/tracing")],
            }
        )
    )
    done = subprocess.run(["kubectl", "kustomize", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {
        (one["kind"], one["metadata"]["name"].split("-h")[0]): one
        for one in yaml.safe_load_all(done.stdout)
    }
    nodes = next(one for (kind, _), one in found.items() if kind == "StatefulSet")
    assert "replicas" not in nodes["spec"]
    assert ("ScaledObject", "holdfast-node") in found
    configs = [
        one["data"]
        for (kind, _), one in found.items()
        if kind == "ConfigMap" and "HOLDFAST_TRACE" in one["data"]
    ]
    [config] = configs
    port = int(config["OTEL_EXPORTER_OTLP_ENDPOINT"].rpartition(":")[2])
    policy = found["NetworkPolicy", "holdfast-tracing"]
    assert {
        one["metadata"].get("namespace") for (kind, _), one in found.items() if kind != "Namespace"
    } == {"holdfast"}
    kubernetes_validate.validate(policy, "1.32", strict=True)
    assert policy["spec"]["egress"][0]["ports"] == [{"port": port}]
    options("node")["--trace"].type_cast_value(
        click.Context(command_named("node")), config["HOLDFAST_TRACE"]
    )


@needs_kubectl
def test_the_operator_gets_every_rule_and_nodes_have_a_bound_of_memory() -> None:
    [rule] = resources("production", "PrometheusRule")
    groups = [
        group
        for name in ("rules.yml", "alerts.yml")
        for group in yaml.safe_load((DEPLOY / "prometheus" / name).read_text())["groups"]
    ]
    assert rule["spec"]["groups"] == groups
    limit = pods("production")["node"]["containers"][0]["resources"]["limits"]["memory"]
    assert limit == "2Gi"
    assert 0 < int(arguments("production", "node")["--memory-max-mb"]) < 2048


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_processes_reach_etcd_their_own_nodes_and_names_and_nothing_else(overlay: str) -> None:
    policies = [
        p["spec"]
        for p in resources(overlay, "NetworkPolicy")
        if "Egress" in p["spec"]["policyTypes"]
    ]
    rules = [rule for spec in policies for rule in spec.get("egress", [])]
    assert {port["port"] for rule in rules for port in rule["ports"]} == {2379, 53, 7401, 7402}
    [to_etcd] = [rule for rule in rules if rule["ports"] == [{"port": 2379}]]
    [where] = to_etcd["to"]
    assert where["podSelector"] == {
        "matchExpressions": [
            {"key": "app.kubernetes.io/name", "operator": "In", "values": ["etcd"]}
        ]
    }, "a label of ours would be added to matchLabels"
    assert ("namespaceSelector" in where) == (overlay == "production")


@needs_kubectl
def test_production_s_nodes_are_scheduled_where_machines_have_no_zones() -> None:
    how = {
        one["topologyKey"]: one["whenUnsatisfiable"]
        for one in pods("production")["node"]["topologySpreadConstraints"]
    }
    assert how == {
        "topology.kubernetes.io/zone": "ScheduleAnyway",
        "kubernetes.io/hostname": "DoNotSchedule",
    }
    assert len(pods("production")["node"]["topologySpreadConstraints"]) == 2


def test_the_dockerfile_copies_what_the_wheel_is_made_of_and_is_not_root() -> None:
    text = (DEPLOY / "docker" / "Dockerfile").read_text()
    copied = set(re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE))
    names = {name for line in copied for name in line.split()}
    assert names == {
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "proto",
        "sdk",
        "cluster",
        "node",
        "gateway",
    }
    assert all((ROOT / name).exists() for name in names)
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    assert allowed[1] == "*"
    assert {line[1:] for line in allowed if line.startswith("!")} == names
    assert re.search(r"^ARG BASE=python:3\.\d+\.\d+-slim-\w+$", text, re.MULTILINE)
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines.index("USER 10001:10001") < lines.index('ENTRYPOINT ["holdfast"]')
    user = (KUBERNETES / "base" / "nodes.yaml").read_text()
    assert "runAsUser: 10001" in user
