"""Layer by layer: the reference's layers and the plan's steps are the whole network, on NumPy and through the kernels."""

from __future__ import annotations

import conftest
import numpy as np
import pytest
from fake_cublas import FakeCublas
from gpudarknet.bench.engines import finisher

from gpudarknet import load_network
from gpudarknet.bench import layers, seeded
from gpudarknet.io import resources


@pytest.fixture
def network(be):
    if be.name == "host-cuda":
        be = conftest.Poisoned("host-cuda", np, be.launch, FakeCublas().open, "cuda")
    found = load_network(resources.bundled_cfg("yolov4-tiny"), backend=be, width=64, height=32)
    seeded.fill(found)
    return found


def test_the_steps_of_a_plan_are_the_whole_network(network):
    x = network.input(seeded.picture(network))
    finish = finisher(network)
    for parts, once in (layers.reference(network, x, finish), layers.plan(network, x, "fp32", finish)):
        times = once()
        assert len(times) == len(parts) + 1
        assert np.all(np.diff(times) >= 0)
        assert sum(p.flops for p in parts) == pytest.approx(sum(n.layer.flops(*n.inputs) for n in network.nodes))
        assert all(p.bytes > 0 for p in parts)


def test_running_step_by_step_computes_what_predict_does(network):
    x = network.input(seeded.picture(network))
    want = [network.backend.to_numpy(y) for y in network.predict(x)]
    _, once = layers.plan(network, x, "fp32", finisher(network))
    once()
    got = [network.backend.to_numpy(y) for y in network.predict(x)]
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)
