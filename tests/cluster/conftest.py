"""Fixtures of clusters of real processes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import holdfast
import pytest

from tests.cluster.processes import Processes


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    cluster = Processes(tmp_path)
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Processes]:
    """One whose shards have three copies. Nothing of it runs yet."""
    cluster = Processes(tmp_path, replication=3)
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """One cluster of three nodes and three copies for all tests that leave its processes alone;
    they use keys of their own."""
    cluster = Processes(tmp_path_factory.mktemp("shared"), replication=3)
    try:
        cluster.start_all(
            "--mailbox-max", "50", "--turn-timeout", "5", "--log-format", "json", nodes=3
        )
        cluster.wait_ready(cluster.gateway)
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
async def client(shared: Processes) -> AsyncIterator[holdfast.Client]:
    async with shared.connect() as connected:
        yield connected
