"""Layers that have no step of their own in a plan: their kernels on a GPU, without one, against the reference engine."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from backends import NUMPY
from cuda_plans import TOLERANCE, distance, pair, program
from nhwc_maps import PLACES, Maps, close
from seeded import network_input

from gpudarknet import cfg
from gpudarknet.ops import norm, yolo

# name -> (channels of its input, its section). Its input is a part of a map of twice these channels, its output of another.
LAYERS = {
    "antialiasing 3 x 3": (5, "[convolutional]\nfilters=6\nsize=3\nstride=2\npad=1\nantialiasing=1\nactivation=leaky"),
    "antialiasing 2 x 2": (
        5,
        "[convolutional]\nfilters=8\nstride=2\nantialiasing=2\nbatch_normalize=1\nactivation=mish",
    ),
    "antialiasing of one channel": (2, "[convolutional]\nfilters=1\nsize=3\npad=1\nstride=2\nantialiasing=1"),
    "antialiasing of a pool": (6, "[maxpool]\nsize=3\nstride=2\nantialiasing=1"),
    "avgpool": (5, "[avgpool]"),
    "batchnorm": (6, "[batchnorm]"),
    "batchnorm of one channel": (1, "[batchnorm]"),
    "connected": (5, "[connected]\noutput=11\nactivation=leaky"),
    "connected, normalized": (8, "[connected]\noutput=16\nactivation=tanh\nbatch_normalize=1"),
    "connected to few channels": (2, "[connected]\noutput=3\nactivation=linear"),
    "crop": (5, "[crop]\ncrop_width=5\ncrop_height=6"),
    "crop, noadjust": (5, "[crop]\ncrop_width=8\ncrop_height=3\nnoadjust=1"),
    "downsample": (6, "[upsample]\nstride=-2\nscale=.5"),
    "downsample, 3": (1, "[upsample]\nstride=-3"),
    "empty": (5, "[empty]"),
    "history": (5, "[history]\nhistory_size=3"),
    "history of one": (5, "[history]\nhistory_size=1"),
    "implicit": (5, "[implicit]\nfilters=7\natoms=2"),
    "local": (5, "[local]\nfilters=7\nsize=3\nstride=2\npad=1\nactivation=leaky"),
    "local without border": (4, "[local]\nfilters=8\nsize=2\nactivation=logistic"),
    "local_avgpool": (5, "[local_avgpool]\nsize=3\nstride_x=2\nstride_y=1"),
    "lrn": (9, "[normalization]\nsize=4\nalpha=.01\nkappa=2"),
    "maxpool_depth": (7, "[maxpool]\nmaxpool_depth=1\nout_channels=3"),
    "maxpool_zero_nonmax": (5, "[maxpool]\nsize=3\nstride=1\nmaxpool_zero_nonmax=1"),
    "normalize_channels": (5, "[activation]\nactivation=normalize_channels"),
    "normalize_channels_softmax": (40, "[activation]\nactivation=normalize_channels_softmax"),
    "normalize_channels_softmax_maxval": (5, "[activation]\nactivation=normalize_channels_softmax_maxval"),
    "normalized convolution": (
        5,
        "[convolutional]\nfilters=6\nsize=3\npad=1\nactivation=normalize_channels_softmax_maxval",
    ),
    "normalized shortcut": (5, "[shortcut]\nfrom=-2\nactivation=normalize_channels"),
    "normalized connected": (5, "[connected]\noutput=6\nactivation=normalize_channels_softmax"),
    "binary": (5, "[convolutional]\nfilters=6\nsize=3\npad=1\nbinary=1\nactivation=leaky"),
    "xnor": (5, "[convolutional]\nfilters=6\nsize=3\npad=1\nxnor=1\nbatch_normalize=1\nactivation=leaky"),
    "xnor, grouped and blurred": (
        4,
        "[convolutional]\nfilters=8\nsize=3\npad=1\nxnor=1\ngroups=2\nstride=2\nantialiasing=1",
    ),
    "reorg": (8, "[reorg]\nstride=2"),
    "reorg, reverse": (12, "[reorg]\nstride=2\nreverse=1"),
    "reorg3d": (5, "[reorg3d]\nstride=2"),
    "reorg3d, reverse": (16, "[reorg3d]\nstride=2\nreverse=1"),
    "softmax": (5, "[softmax]\ntemperature=2"),
    "softmax, groups": (6, "[softmax]\ngroups=4"),
    "shortcut, one weight": (5, "[shortcut]\nfrom=-2,-1\nweights_type=per_feature\nweights_normalization=relu"),
    "shortcut, weights": (
        5,
        "[shortcut]\nfrom=-2\nweights_type=per_channel\nweights_normalization=softmax\nactivation=leaky",
    ),
}
PLACED = """[net]
width=8
height=6
channels=3
[convolutional]
filters={twice}
size=3
pad=1
activation=tanh
[route]
layers=-1
groups=2
group_id=1
{section}
[convolutional]
filters=3
activation=linear
[route]
layers=-1,-2
"""


def check(text, device, tmp_path, precision, batch, seed=3):
    reference, net = pair(cfg.parse(text), device, tmp_path, seed)
    run = program(net, batch, precision, poison=device.name == "host-cuda")
    assert run.fallbacks == []
    for scale in (1, 0.5):
        x = network_input(net, seed, batch) * np.float32(scale)
        got = [device.to_numpy(y) for y in run.run(device.asarray(x))]
        assert distance(got, reference.predict(x, engine="reference")) < TOLERANCE[precision]
    assert (run.graph is None) == (device.name == "host-cuda")


@pytest.mark.filterwarnings("ignore::gpudarknet.errors.CfgWarning")  # maps of unequal channels are added
@pytest.mark.parametrize(("precision", "batch"), [("fp32", 3), ("fp16", 1)])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_in_parts_of_maps(device, tmp_path, name, precision, batch):
    channels, section = LAYERS[name]
    check(PLACED.format(twice=2 * channels, section=section), device, tmp_path, precision, batch)


TREE = "a -1\nb -1\nc 0\nd 0\ne 0\nf 1\n"  # groups of 2, 3 and 1
HEAD = "[net]\nwidth=8\nheight=6\nchannels=3\n[convolutional]\nfilters={filters}\nsize=3\npad=1\nactivation=linear\n{section}\n"
HEADS = {
    "Gaussian_yolo": (22, "[Gaussian_yolo]\nmask=0,2\nanchors=1,2,3,4,5,6\nnum=3\nclasses=2\nscale_x_y=1.1"),
    "region": (22, "[region]\nanchors=1,2,3,4\nnum=2\ncoords=4\nclasses=6\nsoftmax=1"),
    "region, tree": (22, "[region]\nanchors=1,2,3,4\nnum=2\ncoords=4\nclasses=6\nsoftmax=1\ntree={tree}"),
    "softmax, map": (1, "[softmax]"),
    "softmax, tree": (6, "[avgpool]\n[softmax]\ntree={tree}"),
    "softmax, trees": (3, "[avgpool]\n[connected]\noutput=12\nactivation=linear\n[softmax]\ntree={tree}\ngroups=2"),
    "detection": (5, "[connected]\noutput=52\nactivation=linear\n[detection]\nside=2\nnum=2\nclasses=3\ncoords=4"),
    "detection, softmax": (
        13, "[crop]\ncrop_width=2\ncrop_height=2\n[detection]\nside=2\nnum=2\nclasses=3\ncoords=4\nsoftmax=1",
    ),
    "cost": (4, "[cost]\n[route]\nlayers=-1,-2"),
}  # fmt: skip


@pytest.mark.parametrize(("precision", "batch"), [("fp32", 3), ("fp16", 1)])
@pytest.mark.parametrize("name", HEADS)
def test_a_head(device, tmp_path, name, precision, batch):
    filters, section = HEADS[name]
    (tmp_path / "a.tree").write_text(TREE)
    text = HEAD.format(filters=filters, section=section.format(tree=tmp_path / "a.tree"))
    check(text, device, tmp_path, precision, batch)


# --- kernels on maps of many sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 5, 7, 3), (1, 2, 3, 33), (3, 13, 6, 8)], ids=str)
def test_avgpool_and_softmax(kernels, dtype, place, shape):
    N, H, W, C = shape
    x = Maps(kernels, N * H * W, C, place, dtype, np.random.default_rng(shape))
    y, z, s = (
        Maps(kernels, N, C, place, dtype),
        Maps(kernels, N, C, place, dtype),
        Maps(kernels, N * H * W, C, place, dtype),
    )
    kernels.launch("nhwc_layers.avgpool", N * C, x.a, y.a, N * C, C, H * W, x.ld, y.ld)
    close(y.result(), x.values.reshape(N, H * W, C).mean(axis=1), dtype)
    for given, P, out in ((y, 1, z), (x, H * W, s)):
        K = C * P
        edges = sorted({0, K // 3, K // 3 + 1, K}) if K > 2 else [0, K]
        groups = kernels.asarray(np.array(list(pairwise(edges)), np.int32))
        n = N * (len(edges) - 1)
        kernels.launch(
            "nhwc_layers.softmax", 32 * n, given.a, groups, out.a, n, len(edges) - 1, P, 0.7, given.ld, out.ld
        )
        values = given.result() if given is y else given.values
        want = norm.softmax.reference(NUMPY, nchw_rows(values, N, C), tuple(edges[:-1]), 0.7)
        close(nchw_rows(out.result(), N, C), want, dtype)


def nchw_rows(values, N, C):
    """(pixels, C) -> (N, C * P): an image's elements in NCHW order."""
    return values.reshape(N, -1, C).transpose(0, 2, 1).reshape(N, -1)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("classes", [1, 20, 80])
@pytest.mark.parametrize("softmax", [0, 1])
def test_region(kernels, dtype, place, classes, softmax):
    N, H, W, A, coords = 2, 3, 5, 5, 4
    E = coords + 1 + classes
    x = Maps(kernels, N * H * W, A * E, place, dtype, np.random.default_rng(2))
    y, n = Maps(kernels, N * H * W, A * E, place, dtype), N * H * W * A
    kernels.launch("nhwc_layers.region", 32 * n, x.a, y.a, n, A, E, coords, softmax, x.ld, y.ld)
    want = yolo.region_activate(NUMPY, x.nchw(N, H, W), A, coords).reshape(-1, E)
    if softmax:
        want[:, coords + 1 :] = norm.softmax.reference(NUMPY, want[:, coords + 1 :], (0,), 1.0)
    close(y.result().reshape(-1, E), want, dtype)
