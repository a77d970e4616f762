from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from holdfast import App

from tests.cluster import cluster_app
from tests.unit.engine_bench import Bench


@pytest.fixture
def bench_app() -> App:
    """The kinds of `bench`; a module with kinds of its own overrides this."""
    return cluster_app.app


@pytest.fixture
async def bench(tmp_path: Path, bench_app: App) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path / "store", bench_app)
    yield bench
    await bench.close()
