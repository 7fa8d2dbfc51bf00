"""Memory planning: buffers alive at the same time do not overlap, others share memory."""

from __future__ import annotations

import numpy as np
import pytest

from gpudarknet.plan.builder import Builder
from gpudarknet.plan.fuse import fuse
from gpudarknet.plan.memory import allocate, peak_live, plan_memory
from gpudarknet.plan.steps import ALIGNMENT, FeatureMap


def test_maps_that_are_never_alive_together_share_memory():
    offsets, size = allocate([100, 100, 100], [(0, 1), (1, 2), (2, 3)], 1)
    assert size == 200 and offsets[0] == offsets[2] != offsets[1]


def test_the_smallest_gap_that_fits_is_used():
    # 50 and 60 on either side of a long-lived 10; the last buffer fits both gaps and should get that of 50
    sizes, lifetimes = [60, 50, 10, 40], [(0, 1), (0, 1), (0, 9), (2, 3)]
    offsets, size = allocate(sizes, lifetimes, 1)
    assert size == 120 == peak_live(sizes, lifetimes, 1)


def test_offsets_and_sizes_are_aligned():
    offsets, size = allocate([3, 5, 70], [(0, 0)] * 3, 64)
    assert sorted(offsets) == [0, 128, 192] and size == 256


@pytest.mark.parametrize("seed", range(20))
def test_nothing_alive_overlaps(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 500, 40).tolist()
    lifetimes = [(a, a + int(rng.integers(0, 8))) for a in rng.integers(0, 40, 40).tolist()]
    offsets, size = allocate(sizes, lifetimes, 16)
    assert peak_live(sizes, lifetimes, 16) <= size <= 1.5 * peak_live(sizes, lifetimes, 16)
    for i in range(40):
        assert offsets[i] % 16 == 0 and offsets[i] + sizes[i] <= size
        for j in range(i):
            if lifetimes[i][0] <= lifetimes[j][1] and lifetimes[j][0] <= lifetimes[i][1]:
                assert offsets[i] + sizes[i] <= offsets[j] or offsets[j] + sizes[j] <= offsets[i]


def test_without_maps_the_arena_is_empty():
    assert allocate([], [], ALIGNMENT) == ([], 0) and peak_live([], [], ALIGNMENT) == 0


class Node:
    """The attributes of a node that a builder reads."""

    index, shape = 0, (4, 6, 10)


def make_builder():
    builder = Builder(FeatureMap((4, 6, 10)))
    builder.node, builder.w = Node(), {}
    return builder


def test_a_view_keeps_its_storage_alive():
    builder = make_builder()
    a = builder.upsample(builder.input, 1, 1.0)
    half = builder.channels(a, 2, 2)
    b = builder.upsample(builder.input, 1, 1.0)
    builder.node.shape = (2, 6, 10)
    last = builder.upsample(half, 1, 1.0)
    steps = fuse(builder.steps, [last])
    offsets, _, _ = plan_memory(steps, builder.input, [last], 1)
    assert half.storage is a and half.channel_offset == 2
    assert offsets[a] != offsets[b]


def test_nested_routes_share_one_storage():
    builder = make_builder()
    a, b, c = (builder.upsample(builder.input, 1, 1.0) for _ in range(3))
    inner = builder.concat([a, b])
    outer = builder.concat([c, inner])
    assert [m.storage is outer for m in (a, b, c, inner)] == [True] * 4
    assert [m.channel_offset for m in (a, b, c, inner)] == [4, 8, 0, 4] and len(builder.steps) == 3


def test_the_input_and_a_map_already_in_a_route_are_copied():
    builder = make_builder()
    a = builder.upsample(builder.input, 1, 1.0)
    builder.concat([a, builder.input])
    builder.concat([a, a])
    assert [s.name for s in builder.steps] == ["upsample", "copy", "copy", "copy"]
