"""Networks for plans on a GPU, their programs, and how far results may be from the reference engine's."""

from __future__ import annotations

import re

import numpy as np
from seeded import write_weights

from gpudarknet import cfg, load_network
from gpudarknet.io import resources
from gpudarknet.plan import cuda
from gpudarknet.plan.compile import compile

NETWORKS = {  # name -> (width, height)
    "yolov2-tiny": (96, 64), "yolov3-tiny": (96, 64), "yolov4-tiny": (64, 96), "yolov7-tiny": (96, 64),
    "yolov2": (64, 96), "yolov3": (64, 96), "yolov4": (96, 64), "yolov4-csp": (64, 128),
    "darknet19": (96, 64), "resnet50-sort": (64, 96),
}  # fmt: skip
# Parts of the largest number: fp32 rounds in another order, over up to 160 layers; 11 bits are left of tf32 and fp16.
TOLERANCE = {"fp32": 2e-5, "tf32": 1e-2, "fp16": 1e-2}


def pair(config, device, folder, seed=1, **size):
    """Return a network on NumPy, for the reference engine, and the same with the same weights on a device."""
    weights = write_weights(load_network(config, backend="numpy", **size), folder / "seeded.weights", seed)
    return tuple(load_network(config, weights, backend=be, **size) for be in ("numpy", device))


def distance(got, want):
    """Return the largest difference, as a part of the largest number."""
    assert [g.shape for g in got] == [w.shape for w in want]
    assert {g.dtype for g in got} == {np.dtype(np.float32)}
    return max(float(np.abs(g - w).max() / np.abs(w).max()) for g, w in zip(got, want, strict=True))


def program(net, batch, precision="fp32", be=None, **options):
    """Return a network's program for a batch."""
    plan = compile(net.nodes, net.weights, net.heads, net.net.input, batch)
    return cuda.Program(plan, be or net.backend, precision, **options)


def thin_text(name):
    """A shipped cfg with a quarter of its filters, so that its weights are a sixteenth; heads keep theirs."""
    text = resources.bundled_cfg(name).read_text()
    return re.sub(r"filters=(\d+)", lambda m: f"filters={int(m[1]) // (4 if int(m[1]) % 32 == 0 else 1)}", text)


def thin(name):
    return cfg.parse(thin_text(name))


ALL_KINDS = """[net]
width=36
height=24
channels=3

[convolutional]
filters=12
size=3
pad=1
activation=mish
batch_normalize=1

[convolutional]
filters=12
groups=12
size=3
pad=1
stride_x=2
stride_y=1
activation=swish
batch_normalize=1

[convolutional]
filters=24
groups=3
size=3
pad=1
dilation=2
activation=relu6

[convolutional]
filters=24
groups=4
size=1
activation=leaky

[shortcut]
from=-2
activation=leaky

[avgpool]

[convolutional]
filters=24
size=1
activation=logistic

[scale_channels]
from=-3

[convolutional]
filters=24
size=1
activation=logistic

[sam]
from=-2

[sort_shortcut]
from=-6
activation=relu

[shortcut]
from=-2,-4
activation=linear

[maxpool]
size=5
stride=1

[upsample]
stride=2

[dropout]
probability=.5

[route]
layers=-1
groups=2
group_id=1

[convolutional]
filters=7
size=2
stride=2
activation=elu

[route]
layers=-1,-5,-6

[activation]
activation=tanh

[convolutional]
filters=21
size=1
activation=linear

[yolo]
mask=0,1,2
anchors=10,12,14,16,18,20
classes=2
num=3
scale_x_y=1.1
"""
NEIGHBOURS = """[net]
width=12
height=8
channels=5
[convolutional]
filters=5
size=3
pad=1
activation=leaky
[convolutional]
filters=3
size=1
activation=relu
[route]
layers=-2,-1
"""
SMALL = "[net]\nwidth=12\nheight=8\nchannels=5\n[convolutional]\nfilters=4\nsize=3\npad=1\nactivation=leaky\n"
# A [region] that a layer reads is row-major, not a map with channels.
FALLBACK = "[convolutional]\nfilters=8\n[region]\nclasses=3\n[convolutional]\nfilters=8\n[region]\nclasses=3\n"
