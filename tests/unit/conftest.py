from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.engine_bench import Bench


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path / "store")
    yield bench
    await bench.close()
