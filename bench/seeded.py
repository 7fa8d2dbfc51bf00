"""Random weights from a seed for untrained networks, with which activations keep their scale through the layers.

Darknet's initial weights are unsuitable: their batch norm divides by a variance of 0, so values overflow, and some processors
are far slower on infinities and denormals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpudarknet.network import Network


def draw(rng: np.random.Generator, name: str, shape: Sequence[int], gain: float) -> np.ndarray:
    """Draw weights by their name: batch norm and shortcuts near 1, biases near 0, kernels N(0, gain^2 / fan in)."""
    kind = name.rpartition(".")[2]
    if kind in ("bias", "mean"):
        return rng.normal(0, 0.1, shape)
    if kind == "scale":
        return rng.uniform(0.7, 1.2, shape)
    if kind == "variance":
        return rng.uniform(0.6, 1.4, shape)
    if kind == "weight":
        return rng.normal(1, 0.2, shape)
    return rng.normal(0, gain / math.sqrt(max(math.prod(shape[1:]), 1)), shape)


def fill(network: Network, seed: int = 1, gain: float = math.sqrt(2), residual_scale: float = 0.2) -> None:
    """Draw a network's weights in the order of its weights file.

    The residual branch of a shortcut is scaled down, as training does it: otherwise each shortcut would double the variance,
    and yolov3's activations would overflow float16.
    """
    residual = {node.index - 1 for node in network.nodes if node.layer.section.endswith("shortcut")}
    rng = np.random.default_rng(seed)
    for node in network.nodes:
        for name, shape, _ in node.layer.weights(*node.inputs):
            a = draw(rng, name, shape, gain)
            if node.index in residual and name in ("scale", "bias"):
                a *= residual_scale
            network.weights[node.index][name] = network.backend.asarray(a, np.float32)


def network_input(network: Network, batch: int = 1, seed: int = 2) -> np.ndarray:
    """Return network inputs (batch, C, H, W), uniform in [0, 1)."""
    shape = (batch, network.channels, network.height, network.width)
    return np.random.default_rng(seed).random(shape, np.float32)


def write_weights(network: Network, path: Path, seed: int = 1, **options: float) -> Path:
    """Fill a network and write its weights file, which all engines read. options: as for `fill`."""
    fill(network, seed, **options)
    network.save_weights(path)
    return path
