"""The benchmark runs: its figures say nothing here."""

from __future__ import annotations

import json

from tests.cluster.processes import run


def test_every_kind_of_row_is_measured() -> None:
    wanted = "echo/grpc,increment/session,read/call,notify/spread"
    options = ("--copies", "1", "--in-flight", "2", "--seconds", "0.3", "--objects", "10", "--json")
    done = run("bench", "--only", wanted, *options, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert {f"{row['workload']}/{row['transport']}" for row in rows} == set(wanted.split(","))
    assert all(row["calls_per_s"] > 0 for row in rows), rows
