"""What a gateway makes of nodes' answers while shards move."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from holdfast.v1 import admin_pb2
from holdfast_cluster.placement.model import (
    Assignment,
    ClusterSettings,
    Hosting,
    Member,
    Versioned,
    View,
)
from holdfast_cluster.placement.ring import shard_of
from holdfast_gateway.admin import objects
from holdfast_gateway.admin.objects import ObjectAdmin
from holdfast_gateway.admin.part import merged
from holdfast_gateway.admin.problems import what_lacks


class Cluster:
    """Two shards, of the nodes a and b; `owners` says who serves them. Stands in for watcher and
    nodes."""

    def __init__(self) -> None:
        self.owners: list[str | None] = ["a", "b"]
        self.objects: list[set[str]] = [set(), set()]
        for i in range(600):
            self.objects[shard_of("K", f"{i:04}", 2)].add(f"{i:04}")
        self.deaf = 0

    @property
    def view(self) -> Any:
        def owner_of(shard: int) -> Any:
            owner = self.owners[shard]
            return None if owner is None else SimpleNamespace(id=owner)

        return SimpleNamespace(settings=SimpleNamespace(shards=2), owner_of=owner_of)

    async def ask_all(
        self,
        view: Any,
        method: str,
        request: Any,
        answer: Any,
        only: str | None = None,
        asked_by: str = "",
    ) -> dict[str, Any]:
        answers: dict[str, Any] = {}
        for shard, node in enumerate("ab"):
            if only in (None, node):
                serves = self.owners[shard] == node
                if method == "ListObjects":
                    keys = (
                        sorted(key for key in self.objects[shard] if key > request.after)
                        if serves
                        else []
                    )
                    answers[node] = answer(
                        keys=keys[: request.limit],
                        more=len(keys) > request.limit,
                        served=[shard] if serves else [],
                    )
                else:
                    gone = self.objects[shard] & set(request.keys)
                    self.objects[shard] -= gone
                    self.deaf -= 1
                    answers[node] = None if self.deaf >= 0 else answer(deleted=len(gone))
        return answers


class Admin(ObjectAdmin):
    def __init__(self, cluster: Any) -> None:
        super().__init__(cluster, cluster)

    def asked_by(self, context: Any) -> str:
        return "ops"


async def delete_all(
    cluster: Cluster, after_the_first: Any = None
) -> list[admin_pb2.DeleteObjectsProgress]:
    told = []
    async for progress in Admin(cluster).DeleteObjects(
        admin_pb2.DeleteObjectsRequest(kind="K", all=True), None
    ):
        kept = admin_pb2.DeleteObjectsProgress()
        kept.CopyFrom(progress)
        told.append(kept)
        if after_the_first is not None:
            after_the_first()
            after_the_first = None
    return told


def test_merged_pages_end_where_a_node_has_more_rows() -> None:
    def same(row: int) -> int:
        return row

    assert merged([([1, 4], False), ([2, 3], False)], 0, same) == ([1, 2, 3, 4], False)
    assert merged([([1, 4], False), ([2, 3], True)], 0, same) == ([1, 2, 3], True)
    assert merged([([1, 2], False), ([2, 3], False)], 0, same) == ([1, 2, 3], False)
    assert merged([([1, 2], False), ([2, 3], False)], 2, same) == ([1, 2], True)
    assert merged([([1, 2], False), ([1, 2], False)], 2, same) == ([1, 2], False)
    assert merged([([*range(2000)], False)], 5000, same) == ([*range(1000)], True)
    assert merged([], 0, same) == ([], False)


async def test_everything_is_deleted_page_by_page() -> None:
    cluster = Cluster()
    told = await delete_all(cluster)
    assert (told[-1].deleted, told[-1].matched, told[-1].done, list(told[-1].unserved)) == (
        600,
        600,
        True,
        [],
    )
    assert len(told) > 1
    assert cluster.objects == [set(), set()]


async def test_what_a_shard_that_was_away_for_a_page_has_kept_is_said_at_the_end() -> None:
    cluster = Cluster()
    cluster.owners[1] = None

    def back() -> None:
        cluster.owners[1] = "b"

    last = (await delete_all(cluster, back))[-1]
    assert cluster.objects[1]  # those that come before where it was by then
    assert (last.done, list(last.unserved)) == (True, [1])


async def test_what_was_deleted_and_not_answered_in_time_is_counted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(objects, "WHOLE_RETRY_S", 0.0)
    cluster = Cluster()
    cluster.deaf = 3
    last = (await delete_all(cluster))[-1]
    assert (last.deleted, last.failures) == (600, 0)


def test_status_says_what_a_node_lacks_and_how_many_of_its_shards_wait_for_that() -> None:
    a = Member("a", "", 4, "h", version=2, kinds=("X",))
    assigned = {
        shard: Versioned(Assignment(1, owner, 4, ("a", "b")), 1)
        for shard, owner in enumerate("aab")
    }
    view = View(1, ClusterSettings(shards=3), {"a": a}, assigned)
    said, waiting = what_lacks(view, a, {"X", "Y", "Z"})
    assert waiting == 0
    assert (
        said
        == "it lacks kind Y, Z: calls to it are held, and their shards handed to nodes that have it"
    )
    # it does not own shard 2 any more
    told = {"a": Hosting(4, asks={0: ("Y",), 1: ("Z",), 2: ("Z",)})}
    view = View(1, ClusterSettings(shards=3), {"a": a}, assigned, hosting=told)
    assert what_lacks(view, a, {"X", "Y", "Z"}) == (f"{said}; 2 of its shards wait for that", 2)
