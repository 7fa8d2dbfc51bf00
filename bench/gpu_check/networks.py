"""Make the networks that cases run on: shipped ones with weights from a seed, thin ones where all is to be small."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from functools import lru_cache

import numpy as np

from gpudarknet import Network, cfg
from gpudarknet.backend import Backend
from gpudarknet.graph import build
from gpudarknet.io import resources
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
    path = resources.bundled_cfg(name)
    if not small:
        return cfg.read(path)

    def fewer(found: re.Match[str]) -> str:
        filters = int(found[1])
        return f"filters={filters // 8 if filters % 32 == 0 else filters}"

    thin = cfg.parse(re.sub(r"filters=(\d+)", fewer, path.read_text(encoding="utf-8")))
    return replace(thin, path=str(path))


def blank(config: cfg.Config, be: Backend, width: int = 0, height: int = 0) -> Network:
    """Return a network without weights: drawing Darknet's initial ones would take seconds."""
    net = replace(config.net, width=width or config.net.width, height=height or config.net.height)
    config = replace(config, net=net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # resnet50's three unequal shortcuts
        nodes = build(config)
    return Network(config, nodes, [{} for _ in nodes], be)


@lru_cache(maxsize=1)
def opened(name: str, context: Context, size: int) -> Network:
    """Return a shipped network with weights from a seed, at size x size; the one that was opened last is kept."""
    network = blank(config(name, context.small), context.be, size, size)
    seeded.fill(network)
    return network


def planned(network: Network, batch: int) -> Plan:
    """Compile a network."""
    return compile(network.nodes, network.weights, network.heads, network.net.input, batch)


def with_weights(network: Network, be: Backend) -> Network:
    """Return the same network with the same weights on another backend."""
    weights = [{name: network.backend.to_numpy(a) for name, a in own.items()} for own in network.weights]
    return Network(network.config, network.nodes, weights, be)


def pair(
    config: cfg.Config, context: Context, width: int = 0, height: int = 0, batch: int = 2
) -> tuple[Network, Network, np.ndarray]:
    """Return a network with weights from a seed on the backend, the same on NumPy, and an input for both."""
    numpy = blank(config, Backend("numpy", np, executor="cpu"), width, height)
    seeded.fill(numpy)
    return with_weights(numpy, context.be), numpy, seeded.picture(numpy, batch)


def distance(got: np.ndarray, want: np.ndarray) -> float:
    """Return the norm of the difference over that of what is wanted; NaN if a number is."""
    return float(np.linalg.norm(got.astype(np.float64) - want) / (np.linalg.norm(want) or 1))
