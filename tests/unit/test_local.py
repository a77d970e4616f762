"""Where `holdfast dev` finds etcd."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from holdfast import local


def test_etcd_is_the_one_that_is_named_then_the_one_on_path_then_the_wheels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    on_path = tmp_path / "etcd"
    on_path.write_text("#!/bin/sh\n")
    on_path.chmod(0o755)
    monkeypatch.setenv("HOLDFAST_ETCD", "/opt/etcd")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert local.find_etcd() == "/opt/etcd"
    monkeypatch.delenv("HOLDFAST_ETCD")
    assert local.find_etcd() == str(on_path)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        local.ClusterFailed, match="no etcd found: install etcd, name its path in HOLDFAST_ETCD"
    ):
        local.find_etcd()
    monkeypatch.undo()
    beside = Path(sys.executable).parent / "etcd"
    if beside.exists():
        monkeypatch.delenv("HOLDFAST_ETCD", raising=False)
        monkeypatch.setenv("PATH", "")
        assert local.find_etcd() == str(beside)
