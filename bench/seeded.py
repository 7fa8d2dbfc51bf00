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

RESIDUAL_SCALE = 0.2  # of what a shortcut adds


def draw(rng: np.random.Generator, name: str, shape: Sequence[int]) -> np.ndarray | None:
    """Draw weights of batch norm (near 1), biases (near 0) or shortcuts (near 1) by their name; None for kernels."""
    kind = name.rpartition(".")[2]
    if kind in ("bias", "mean"):
        return rng.normal(0, 0.1, shape)
    if kind == "scale":
        return rng.uniform(0.7, 1.2, shape)
    if kind == "variance":
        return rng.uniform(0.6, 1.4, shape)
    return rng.normal(1, 0.2, shape) if kind == "weight" else None


def fan_in(shape: Sequence[int]) -> int:
    """Return the number of inputs of each output of a kernel."""
    return max(math.prod(shape[1:]), 1)


def fill(network: Network, seed: int = 1) -> None:
    """Draw weights: kernels N(0, 2 / fan in), batch norm near 1 and biases near 0.

    The residual branch of a shortcut is scaled down, as training does it: otherwise each shortcut would double the variance,
    and yolov3's activations would overflow float16.
    """
    residual = {node.index - 1 for node in network.nodes if node.layer.section.endswith("shortcut")}
    rng = np.random.default_rng(seed)
    for node in network.nodes:
        for name, shape, _ in node.layer.weights(*node.inputs):
            a = draw(rng, name, shape)
            if a is None:
                a = np.float32(np.sqrt(2 / fan_in(shape))) * rng.standard_normal(shape, np.float32)
            if node.index in residual and name in ("scale", "bias"):
                a = RESIDUAL_SCALE * a
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
