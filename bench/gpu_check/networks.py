"""Make the networks that cases run: bundled ones with seeded weights, with fewer filters for small runs."""

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
batch_normalize=1
activation=leaky
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
size=3
pad=1
groups=4
activation=elu
[convolutional]
filters=24
size=3
pad=1
groups=24
activation=linear
[convolutional]
filters=48
size=3
pad=1
groups=3
dilation=2
activation=leaky
[convolutional]
filters=21
size=3
pad=1
stride=2
activation=leaky
[convolutional]
filters=120
size=3
pad=1
activation=leaky
[convolutional]
filters=120
size=3
pad=1
activation=linear
[sort_shortcut]
from=-2
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
"""  # every kind of convolution and epilogue, parallel branches, a K that can be split in 8


def config(name: str, small: bool = False) -> cfg.Config:
    """Return a bundled cfg; small: with 1/8 of the filters, except for heads, and so about 1/64 of the weights."""
    path = resources.bundled_cfg(name)
    if not small:
        return cfg.read(path)

    def reduce(match: re.Match[str]) -> str:
        filters = int(match[1])
        return f"filters={filters // 8 if filters % 32 == 0 else filters}"

    thin = cfg.parse(re.sub(r"filters=(\d+)", reduce, path.read_text(encoding="utf-8")))
    return replace(thin, path=str(path))


def without_weights(config: cfg.Config, be: Backend, width: int = 0, height: int = 0) -> Network:
    """Return a network without weights: drawing Darknet's initial ones takes seconds."""
    net = replace(config.net, width=width or config.net.width, height=height or config.net.height)
    config = replace(config, net=net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # resnet50's three unequal shortcuts
        nodes = build(config)
    return Network(config, nodes, [{} for _ in nodes], be)


@lru_cache(maxsize=1)
def seeded_network(name: str, context: Context, size: int) -> Network:
    """Return a bundled network with seeded weights at size x size; the latest one is cached."""
    network = without_weights(config(name, context.small), context.be, size, size)
    seeded.fill(network)
    return network


def compile_plan(network: Network, batch: int) -> Plan:
    """Compile a network's plan."""
    return compile(network.nodes, network.weights, network.heads, network.net.input, batch)


def with_weights(network: Network, be: Backend) -> Network:
    """Return a copy of a network and its weights on another backend."""
    weights = [{name: network.backend.to_numpy(a) for name, a in own.items()} for own in network.weights]
    return Network(network.config, network.nodes, weights, be)


def pair(
    config: cfg.Config, context: Context, width: int = 0, height: int = 0, batch: int = 2
) -> tuple[Network, Network, np.ndarray]:
    """Return a network with seeded weights on the backend, the same on NumPy, and an input for both."""
    numpy = without_weights(config, Backend("numpy", np, executor="cpu"), width, height)
    seeded.fill(numpy)
    return with_weights(numpy, context.be), numpy, seeded.network_input(numpy, batch)


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """Return the norm of the difference over the norm of `want`; NaN if any element is."""
    return float(np.linalg.norm(got.astype(np.float64) - want) / (np.linalg.norm(want) or 1))
