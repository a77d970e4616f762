"""The ring: balance, movement, weights, hosts and zones."""

from __future__ import annotations

from collections import Counter

import pytest
from holdfast_cluster.placement.ring import Ring, RingNode, shard_of

SHARDS = 256


def ring(n: int) -> Ring:
    return Ring([RingNode(f"n{i}", f"h{i}") for i in range(n)], SHARDS)


@pytest.mark.parametrize("n", range(3, 21))
def test_no_node_has_more_than_a_quarter_above_its_share(n: int) -> None:
    counts = Counter(ring(n).owners)
    assert max(counts.values()) <= 1.25 * SHARDS / n


@pytest.mark.parametrize("n", [3, 5, 10, 19])
def test_a_join_moves_about_its_share_and_hardly_anything_else(n: int) -> None:
    before, after = ring(n).owners, ring(n + 1).owners
    moved = [s for s in range(SHARDS) if before[s] != after[s]]
    elsewhere = [s for s in moved if after[s] != f"n{n}"]
    assert 0.4 * SHARDS / (n + 1) <= len(moved) <= 1.25 * SHARDS / (n + 1) + len(elsewhere)
    assert len(elsewhere) <= 0.04 * SHARDS


def test_weight_is_a_share() -> None:
    nodes = [RingNode("big", "h0", weight=2), RingNode("a", "h1"), RingNode("b", "h2")]
    counts = Counter(Ring(nodes, 1024).owners)
    assert 0.4 * 1024 <= counts["big"] <= 0.625 * 1024


def test_copies_are_on_different_hosts_and_zones_while_there_are_enough() -> None:
    nodes = [RingNode(f"n{i}", host=f"h{i // 2}", zone=f"z{i // 4}") for i in range(12)]
    circle = Ring(nodes, SHARDS)
    for shard in range(SHARDS):
        chosen = [circle.nodes[n] for n in circle.preference_list(shard, 3)]
        assert len({n.host for n in chosen}) == 3
        assert len({n.zone for n in chosen}) == 3
        assert chosen[0].id == circle.owners[shard]


def test_one_host_still_gets_copies() -> None:
    circle = Ring([RingNode(f"n{i}", "same") for i in range(3)], SHARDS)
    assert len(set(circle.preference_list(0, 3))) == 3


def test_the_hash_is_what_etcd_fixed() -> None:
    # These numbers are in every cluster's data: if they change, HASH_VERSION has to.
    assert [shard_of("Counter", key, 256) for key in ("a", "b", "c")] == SHARDS_OF_ABC


SHARDS_OF_ABC = [193, 14, 236]
