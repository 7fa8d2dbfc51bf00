"""Placing maps in one arena: nothing that is alive together overlaps, and the rest shares memory."""

from __future__ import annotations

import numpy as np
import pytest

from gpudarknet.plan.fuse import Builder, fuse, layout
from gpudarknet.plan.memory import allocate, peak_live
from gpudarknet.plan.steps import ALIGNMENT, FeatureMap


def test_maps_that_are_never_alive_together_share_memory():
    offsets, size = allocate([100, 100, 100], [(0, 1), (1, 2), (2, 3)], 1)
    assert size == 200 and offsets[0] == offsets[2] != offsets[1]


def test_the_tightest_gap_is_taken():
    # 50 and 60 at the ends of a long-lived 10; what comes later fits into the gap of 60, and should take that of 50
    sizes, lives = [60, 50, 10, 40], [(0, 1), (0, 1), (0, 9), (2, 3)]
    offsets, size = allocate(sizes, lives, 1)
    assert size == 120 == peak_live(sizes, lives, 1)


def test_offsets_and_sizes_are_aligned():
    offsets, size = allocate([3, 5, 70], [(0, 0)] * 3, 64)
    assert sorted(offsets) == [0, 128, 192] and size == 256


@pytest.mark.parametrize("seed", range(20))
def test_nothing_alive_overlaps(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 500, 40).tolist()
    lives = [(a, a + int(rng.integers(0, 8))) for a in rng.integers(0, 40, 40).tolist()]
    offsets, size = allocate(sizes, lives, 16)
    assert peak_live(sizes, lives, 16) <= size <= 1.5 * peak_live(sizes, lives, 16)
    for i in range(40):
        assert offsets[i] % 16 == 0 and offsets[i] + sizes[i] <= size
        for j in range(i):
            if lives[i][0] <= lives[j][1] and lives[j][0] <= lives[i][1]:
                assert offsets[i] + sizes[i] <= offsets[j] or offsets[j] + sizes[j] <= offsets[i]


def test_no_map_is_no_arena():
    assert allocate([], [], ALIGNMENT) == ([], 0) and peak_live([], [], ALIGNMENT) == 0


class Node:
    """As much of a node as a builder reads."""

    index, shape = 0, (4, 6, 10)


def builder():
    build = Builder(FeatureMap((4, 6, 10)))
    build.node, build.w = Node(), {}
    return build


def test_a_part_of_a_map_keeps_the_whole_alive():
    build = builder()
    a = build.upsample(build.input, 1, 1.0)
    half = build.channels(a, 2, 2)
    b = build.upsample(build.input, 1, 1.0)
    build.node.shape = (2, 6, 10)
    last = build.upsample(half, 1, 1.0)
    steps = fuse(build.steps, [last])
    offsets, _, _ = layout(steps, build.input, [last], 1)
    assert half.storage is a and half.channel_offset == 2
    assert offsets[a] != offsets[b]


def test_a_route_inside_a_route_is_one_map():
    build = builder()
    a, b, c = (build.upsample(build.input, 1, 1.0) for _ in range(3))
    inner = build.concat([a, b])
    outer = build.concat([c, inner])
    assert [m.storage is outer for m in (a, b, c, inner)] == [True] * 4
    assert [m.channel_offset for m in (a, b, c, inner)] == [4, 8, 0, 4] and len(build.steps) == 3


def test_a_map_in_two_routes_and_the_input_are_copied():
    build = builder()
    a = build.upsample(build.input, 1, 1.0)
    build.concat([a, build.input])
    build.concat([a, a])
    assert [s.name for s in build.steps] == ["upsample", "copy", "copy", "copy"]
