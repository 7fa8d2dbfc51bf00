"""Weights and inputs from a seed, drawn as for the recordings of Darknet in tests/data."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from gpudarknet import Network


def write_weights(net: Network, path: Path, seed: int, gain: float = 1.0) -> Path:
    """Write a .weights file for net: kernels N(0, gain^2 / fan in), batch norm near 1, biases near 0."""
    rng = np.random.default_rng(seed)
    with open(path, "wb") as file:
        file.write(struct.pack("<iiiQ", 0, 2, 5, 64000))
        for node in net.nodes:
            for name, shape, _ in node.layer.weights(*node.inputs):
                kind, n = name.rpartition(".")[2], int(np.prod(shape))
                if kind in ("bias", "mean"):
                    a = rng.normal(0, 0.1, n)
                elif kind == "scale":
                    a = rng.uniform(0.7, 1.2, n)
                elif kind == "variance":
                    a = rng.uniform(0.6, 1.4, n)
                elif kind == "weight":
                    a = rng.normal(1, 0.2, n)
                else:
                    a = rng.normal(0, gain / np.sqrt(max(np.prod(shape[1:]), 1)), n)
                file.write(a.astype("<f4").tobytes())
    return path


def network_input(net: Network, seed: int, batch: int = 1) -> np.ndarray:
    """Return x (batch, C, H, W), uniform in [0, 1)."""
    C, H, W = net.net.input
    return np.random.default_rng(seed + 1).random(batch * C * H * W, dtype=np.float32).reshape(batch, C, H, W)
