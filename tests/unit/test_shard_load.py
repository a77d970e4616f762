"""How busy shards are: what an owner measures and tells."""

from __future__ import annotations

import pytest
from holdfast_node.log.shards import Shard, Shards
from holdfast_node.observe.shard_load import SHARDS_MAX, LoadMeter

from tests.unit.no_log import NO_LOG


def test_turns_a_second_are_measured_from_one_reading_to_the_next() -> None:
    shards = Shards(8)
    now = 100.0
    busy, quiet, idle = Shard(1, 1, NO_LOG), Shard(2, 1, NO_LOG), Shard(3, 1, NO_LOG)
    for shard in (busy, quiet, idle):
        shards.take(shard)
    meter = LoadMeter(shards, lambda: now)
    busy.turns += 1234
    quiet.turns += 5
    now += 10
    assert meter.read().turns_per_s == {1: 120.0, 2: 0.5}
    now += 10
    assert meter.read().turns_per_s == {}


def test_a_shard_that_came_back_under_another_epoch_begins_at_nothing() -> None:
    shards = Shards(8)
    now = 0.0
    before = Shard(1, 1, NO_LOG)
    shards.take(before)
    before.turns = 1000
    meter = LoadMeter(shards, lambda: now)
    shards.drop({before})
    again = Shard(1, 3, NO_LOG)
    shards.take(again)
    again.turns = 20
    now += 10
    assert meter.read().turns_per_s == {1: pytest.approx(2.0)}


def test_only_the_busiest_are_told() -> None:
    shards = Shards(8)
    now = 0.0
    meter = LoadMeter(shards, lambda: now)
    for number in range(SHARDS_MAX + 50):
        shard = Shard(number, 1, NO_LOG)
        shard.turns = 10 * (number + 1)
        shards.take(shard)
    now += 10
    told = meter.read().turns_per_s
    assert len(told) == SHARDS_MAX
    assert min(told) == 50
