"""Make the networks that cases run on: shipped ones with weights from a seed, thin ones where all is to be small."""

from __future__ import annotations

import re
import tempfile
import warnings
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from gpudarknet import Network, cfg, load_network, shelf
from gpudarknet.plan import Plan, compile

from .. import seeded
from .case import Context

CONVOLUTIONS = """[net]
width=40
height=24
channels=3
[convolutional]
filters=32
size=3
pad=1
activation=leaky
batch_normalize=1
[convolutional]
filters=40
size=3
pad=1
activation=leaky
[maxpool]
size=2
stride=2
[convolutional]
filters=32
size=1
activation=mish
[route]
layers=-2
[convolutional]
filters=32
size=1
activation=leaky
[convolutional]
filters=32
size=3
pad=1
activation=swish
[shortcut]
from=-2
activation=relu
[convolutional]
filters=24
groups=4
size=3
pad=1
activation=elu
[convolutional]
filters=24
groups=24
size=3
pad=1
[convolutional]
filters=40
size=3
stride=2
pad=1
activation=leaky
[upsample]
stride=2
[route]
layers=-1,3
[convolutional]
filters=21
size=1
activation=linear
[yolo]
mask=0,1,2
anchors=10,12,14,16,18,20
classes=2
num=3
"""  # every kind of convolution, a pool, siblings, a residual


def config(name: str, small: bool = False) -> cfg.Config:
    """Return a shipped cfg; small: with an eighth of its filters, so that its weights are a sixty-fourth. Heads keep theirs."""
    path = shelf.shipped_cfg(name)
    if not small:
        return cfg.read(path)

    def fewer(found: re.Match[str]) -> str:
        filters = int(found[1])
        return f"filters={filters // 8 if filters % 32 == 0 else filters}"

    thin = cfg.parse(re.sub(r"filters=(\d+)", fewer, path.read_text(encoding="utf-8")))
    return replace(thin, path=str(path))


@lru_cache(maxsize=1)
def opened(name: str, context: Context, size: int, batch: int = 1) -> Network:
    """Return a shipped network with weights from a seed, at size x size; the one that was opened last is kept."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = load_network(config(name, context.small), None, context.backend, batch, size, size)
    seeded.fill(network)
    return network


def planned(network: Network, batch: int) -> Plan:
    """Compile a network."""
    return compile(network.nodes, network.weights, network.heads, network.net.input, batch)


def on_numpy(network: Network) -> Network:
    """Return a network with the same weights on NumPy."""
    host = load_network(network.config, backend="numpy")
    host.weights = [{k: network.backend.to_numpy(a) for k, a in own.items()} for own in network.weights]
    return host


def pair(config: cfg.Config, context: Context, width: int = 0, height: int = 0, batch: int = 2) -> Any:
    """Return a network with seeded weights on the backend, the same on NumPy, and an input for both."""
    size: dict[str, Any] = {"width": width or None, "height": height or None}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # resnet50's three unequal shortcuts
        blank = load_network(config, backend="numpy", **size)
        weights = seeded.write(blank, Path(folder) / "seeded.weights")
        here, numpy = (load_network(config, weights, backend=b, **size) for b in (context.backend, "numpy"))
    return here, numpy, seeded.picture(blank, batch)


def distance(got: np.ndarray, want: np.ndarray) -> float:
    """Return the norm of the difference over that of what is wanted; NaN if a number is."""
    return float(np.linalg.norm(got.astype(np.float64) - want) / (np.linalg.norm(want) or 1))
