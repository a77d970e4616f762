"""Fixtures for pytest, which finds them by itself where Holdfast is installed.

The app is the value of the fixture `holdfast_app`, which a project may override. Else it is the
setting `holdfast_app` in pytest's configuration: a file or a module, as for `holdfast node`. The
report of a failed test names its seed; `--holdfast-seed` repeats the test with that seed.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from holdfast.app import App
    from holdfast.testing import Cluster

_SEED = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the settings and options."""
    parser.addini(
        "holdfast_app",
        "The app of Holdfast's fixtures: a file or a module, with :name behind it if it has"
        " several Apps.",
    )
    parser.getgroup("holdfast").addoption(
        "--holdfast-seed",
        type=int,
        default=None,
        help="Seed for the fixture holdfast_cluster. Default: a new seed for each test.",
    )


@pytest.fixture(scope="session")
def holdfast_app(pytestconfig: pytest.Config) -> App:
    """Return the app of the other fixtures."""
    from holdfast.loading import load_app

    target = pytestconfig.getini("holdfast_app")
    if not target:
        pytest.fail(
            "no app is set: define a fixture `holdfast_app` that returns it, or set `holdfast_app`"
            " in pytest's configuration"
        )
    return load_app(target)


@pytest.fixture
def holdfast_cluster(request: pytest.FixtureRequest, holdfast_app: App) -> Iterator[Cluster]:
    """Give each test its own cluster in the test's process, on virtual time; see
    `holdfast.testing.Cluster`.
    """
    from holdfast.testing import virtual_cluster

    with virtual_cluster(holdfast_app, seed=request.config.getoption("holdfast_seed")) as cluster:
        request.node.stash[_SEED] = cluster.seed
        yield cluster


@pytest.fixture(scope="session")
def holdfast_processes(pytestconfig: pytest.Config) -> Iterator[str]:
    """Give the address of a gateway of one cluster of real processes for all tests. Its app is set
    by `holdfast_app` in pytest's configuration.
    """
    from holdfast.testing import local_cluster

    target = pytestconfig.getini("holdfast_app")
    if not target:
        pytest.fail(
            "no app is set: set `holdfast_app` in pytest's configuration, where the cluster's"
            " processes find it"
        )
    with local_cluster(target) as gateway:
        yield gateway


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, Any, Any]:
    """Name the seed in the report of a failure."""
    report = yield
    if report.failed and (seed := item.stash.get(_SEED, None)) is not None:
        report.sections.append(("holdfast", f"seed of the cluster: --holdfast-seed {seed}"))
    return report
