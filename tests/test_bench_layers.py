"""Profiling: the reference's layers and the plan's steps cover the whole network, on NumPy and with kernels."""

from __future__ import annotations

import numpy as np
import pytest
from backends import Poisoned
from fake_cublas import FakeCublas
from gpudarknet.bench.engines import synchronizer

from gpudarknet import load_network
from gpudarknet.bench import layers, seeded
from gpudarknet.io import resources


@pytest.fixture
def network(be):
    if be.name == "host-cuda":
        be = Poisoned("host-cuda", np, be.launch, FakeCublas().open, "cuda")
    network = load_network(resources.bundled_cfg("yolov4-tiny"), backend=be, width=64, height=32)
    seeded.fill(network)
    return network


def test_layers_and_steps_cover_the_whole_network(network):
    x = network.input(seeded.network_input(network))
    synchronize = synchronizer(network)
    for costs, run_once in (layers.reference(network, x, synchronize), layers.plan(network, x, "fp32", synchronize)):
        times = run_once()
        assert len(times) == len(costs) + 1
        assert np.all(np.diff(times) >= 0)
        assert sum(p.flops for p in costs) == pytest.approx(sum(n.layer.flops(*n.inputs) for n in network.nodes))
        assert all(p.bytes > 0 for p in costs)


def test_running_step_by_step_computes_the_same_as_predict(network):
    x = network.input(seeded.network_input(network))
    want = [network.backend.to_numpy(y) for y in network.predict(x)]
    _, run_once = layers.plan(network, x, "fp32", synchronizer(network))
    run_once()
    got = [network.backend.to_numpy(y) for y in network.predict(x)]
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)
