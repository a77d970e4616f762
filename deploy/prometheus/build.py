"""Writes the rules as a resource of the Prometheus Operator, which does not read rule files.

`python deploy/prometheus/build.py [--check]`
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
RESULT = HERE.parent / "kubernetes" / "components" / "monitoring" / "prometheusrule.yaml"
HEAD = "# Made by deploy/prometheus/build.py from rules.yml and alerts.yml: change those files.\n"


def resource() -> dict[str, Any]:
    groups = [
        group
        for name in ("rules.yml", "alerts.yml")
        for group in yaml.safe_load((HERE / name).read_text())["groups"]
    ]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "holdfast", "labels": {"app.kubernetes.io/component": "rules"}},
        "spec": {"groups": groups},
    }


if __name__ == "__main__":
    text = HEAD + yaml.safe_dump(resource(), sort_keys=False, width=160)
    if "--check" in sys.argv:
        if RESULT.read_text() != text:
            sys.exit(f"{RESULT} does not match the rules: run deploy/prometheus/build.py")
    else:
        RESULT.write_text(text)
