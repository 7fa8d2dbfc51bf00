from __future__ import annotations

import numpy as np

from gpudarknet.ops import upsample as op

from . import check, normal


def make(rng, N, C, H, W, s, scale):
    return normal(rng, N, C, H, W), s, scale


@check(op.upsample, make, (2, 1.0), (3, 0.5), exact=True, half="x")  # times a power of two is exact
def upsample(x, s, scale):
    N, C, H, W = x.shape
    y = np.empty((N, C, H * s, W * s))
    for h in range(H * s):
        for w in range(W * s):
            y[:, :, h, w] = scale * x[:, :, h // s, w // s]
    return y


def make_blocks(rng, N, C, H, W, s, scale):
    return normal(rng, N, C, H * s + s - 1, W * s), s, scale  # rows that fill no block are left out


@check(op.downsample, make_blocks, (2, 1.0), (3, 0.25), half="x")
def downsample(x, s, scale):
    N, C, H, W = x.shape
    y = np.zeros((N, C, H // s, W // s))
    for h in range(H // s * s):
        for w in range(W // s * s):
            y[:, :, h // s, w // s] += scale * x[:, :, h, w]
    return y
