"""Weights and inputs from a seed, as in the recordings of Darknet in tests/data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gpudarknet import Network
from gpudarknet.bench import seeded


def write_weights(net: Network, path: Path, seed: int, gain: float = 1.0) -> Path:
    """Write a .weights file for net, whose weights change: kernels N(0, gain^2 / fan in), shortcuts not scaled."""
    return seeded.write_weights(net, path, seed, gain=gain, residual_scale=1.0)


def network_input(net: Network, seed: int, batch: int = 1) -> np.ndarray:
    """Return x (batch, C, H, W), uniform in [0, 1)."""
    return seeded.network_input(net, batch, seed + 1)
