"""Weights from a seed, for networks that nobody has trained: maps keep their size through the layers, as trained ones do.

Darknet's own initial weights will not do here: their batch norm divides by a variance of 0, so that numbers overflow, and
some processors take far longer over infinities and denormals.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gpudarknet.network import Network

ADDED = 0.2  # the size of what a shortcut adds


def fill(network: Network, seed: int = 1) -> None:
    """Give every layer kernels N(0, 2 / fan in), batch norm near 1 and biases near 0.

    What a shortcut adds is made small, as training makes it: else every one of them would double a map's variance, and
    yolov3's numbers would be more than float16 can hold.
    """
    added = {node.index - 1 for node in network.nodes if node.layer.section.endswith("shortcut")}
    rng = np.random.default_rng(seed)
    draw = {
        "bias": lambda shape: rng.normal(0, 0.1, shape),
        "mean": lambda shape: rng.normal(0, 0.1, shape),
        "scale": lambda shape: rng.uniform(0.7, 1.2, shape),
        "variance": lambda shape: rng.uniform(0.6, 1.4, shape),
        "weight": lambda shape: rng.normal(1, 0.2, shape),
    }
    for node in network.nodes:
        for name, shape, _ in node.layer.weights(*node.inputs):
            kernel = np.sqrt(2 / max(int(np.prod(shape[1:])), 1))
            a = draw.get(
                name.rpartition(".")[2], lambda shape, k=kernel: np.float32(k) * rng.standard_normal(shape, np.float32)
            )(shape)
            if node.index in added and name in ("scale", "bias"):
                a = ADDED * a
            network.weights[node.index][name] = network.backend.asarray(a, np.float32)


def picture(network: Network, batch: int = 1, seed: int = 2) -> np.ndarray:
    """Return network inputs (batch, C, H, W), uniform in [0, 1)."""
    shape = (batch, network.channels, network.height, network.width)
    return np.random.default_rng(seed).random(shape, np.float32)


def write(network: Network, path: Path) -> Path:
    """Fill a network and write its weights file, which every engine reads."""
    fill(network)
    network.save_weights(path)
    return path
