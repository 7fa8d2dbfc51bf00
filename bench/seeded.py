"""Random weights from a seed for untrained networks, with which activations keep their scale through the layers.

Darknet's initial weights are unsuitable: their batch norm divides by a variance of 0, so values overflow, and some processors
are far slower on infinities and denormals.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gpudarknet.network import Network

ADDED = 0.2  # scale of what a shortcut adds


def fill(network: Network, seed: int = 1) -> None:
    """Draw weights: kernels N(0, 2 / fan in), batch norm near 1 and biases near 0.

    The residual branch of a shortcut is scaled down, as training does it: otherwise each shortcut would double the variance,
    and yolov3's activations would overflow float16.
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


def network_input(network: Network, batch: int = 1, seed: int = 2) -> np.ndarray:
    """Return network inputs (batch, C, H, W), uniform in [0, 1)."""
    shape = (batch, network.channels, network.height, network.width)
    return np.random.default_rng(seed).random(shape, np.float32)


def write_weights(network: Network, path: Path) -> Path:
    """Fill a network and write its weights file, which all engines read."""
    fill(network)
    network.save_weights(path)
    return path
