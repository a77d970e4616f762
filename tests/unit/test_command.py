"""With which status a node process ends."""

from __future__ import annotations

from typing import Any

import pytest
from holdfast_cluster.membership.member import NotAccepted
from holdfast_node.log.commit import EXIT_STORE_FAILED
from holdfast_node.process import command
from holdfast_node.store.disk_space import EXIT_DISK_FULL
from holdfast_node.store.rocks import DiskFull, StoreError


def nested(*errors: Exception) -> ExceptionGroup[Exception]:
    """As they come out of tasks of tasks."""
    return ExceptionGroup("tasks", [ExceptionGroup("more tasks", list(errors))])


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (nested(AssertionError()), EXIT_STORE_FAILED),
        (nested(NotAccepted("no"), KeyError()), EXIT_STORE_FAILED),
        (KeyError("a listener of the view"), EXIT_STORE_FAILED),
        (nested(OSError(28, "No space left on device")), EXIT_DISK_FULL),
        (DiskFull("cannot be opened"), EXIT_DISK_FULL),
    ],
)
def test_what_nobody_has_to_mend_ends_with_a_status_for_which_the_node_is_started_again(
    monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    async def serve(config: Any, stop: Any) -> None:
        raise error

    monkeypatch.setattr(command, "_serve", serve)
    with pytest.raises(SystemExit) as ended:
        command._until_it_ends(None)  # type: ignore[arg-type]
    assert ended.value.code == status != 1


@pytest.mark.parametrize(
    "error", [StoreError("it is corrupted"), NotAccepted("no"), nested(NotAccepted("no"))]
)
def test_what_somebody_has_to_mend_is_told_as_it_is(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def serve(config: Any, stop: Any) -> None:
        raise error

    monkeypatch.setattr(command, "_serve", serve)
    with pytest.raises(type(error)) as told:
        command._until_it_ends(None)  # type: ignore[arg-type]
    assert told.value is error
