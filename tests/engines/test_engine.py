"""The parts of shards, and the engine of this process."""

from __future__ import annotations

import random

import pytest

from dcdctl.core.engines.engine import Task, whole_shards


def task(shard: int, part: int = 0, num_parts: int = 1) -> Task[str]:
    name = f"{shard}.{part}"
    return Task(shard, name, inputs=lambda: name, packed=lambda: name, part=part, num_parts=num_parts)


@pytest.mark.parametrize("seed", range(5))
def test_a_shard_has_its_parts_in_order_in_whatever_order_they_arrive(seed):
    sizes = [1, 2, 5, 3]
    arriving = [task(shard, part, size) for shard, size in enumerate(sizes) for part in range(size)]
    random.Random(seed).shuffle(arriving)
    seen: list[str] = []

    def results():
        for each in arriving:
            seen.append(each.name)
            yield each, each.name

    for shard, parts in whole_shards(results()):
        assert parts == [f"{shard}.{part}" for part in range(sizes[shard])]
        # As soon as the last of them is there.
        assert seen[-1] in parts
        sizes[shard] = -1
    assert set(sizes) == {-1}
