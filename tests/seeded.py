"""Weights and inputs from a seed, drawn as for the recordings of Darknet in tests/data."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from gpudarknet import Network
from gpudarknet.bench import seeded


def write_weights(net: Network, path: Path, seed: int, gain: float = 1.0) -> Path:
    """Write a .weights file for net: kernels N(0, gain^2 / fan in), batch norm near 1, biases near 0."""
    rng = np.random.default_rng(seed)
    with open(path, "wb") as file:
        file.write(struct.pack("<iiiQ", 0, 2, 5, 64000))
        for node in net.nodes:
            for name, shape, _ in node.layer.weights(*node.inputs):
                a = seeded.draw(rng, name, shape)
                if a is None:
                    a = rng.normal(0, gain / np.sqrt(seeded.fan_in(shape)), shape)
                file.write(a.astype("<f4").tobytes())
    return path


def network_input(net: Network, seed: int, batch: int = 1) -> np.ndarray:
    """Return x (batch, C, H, W), uniform in [0, 1)."""
    return seeded.network_input(net, batch, seed + 1)
