from __future__ import annotations

import numpy as np

from gpudarknet.ops import reorg

from . import check, normal


def make_space(rng, N, C, H, W, s):
    return normal(rng, N, C, H * s, W * s), s


@check(reorg.space_to_depth, make_space, (1,), (2,), (3,), exact=True, half="x")
def space_to_depth(x, s):
    N, C, H, W = x.shape
    y = np.empty((N, C * s * s, H // s, W // s))
    for c in range(C):
        for h in range(H):
            for w in range(W):
                y[:, (h % s * s + w % s) * C + c, h // s, w // s] = x[:, c, h, w]
    return y


def make_depth(rng, N, C, H, W, s):
    return normal(rng, N, C * s * s, H, W), s


@check(reorg.depth_to_space, make_depth, (1,), (2,), (3,), exact=True, half="x")
def depth_to_space(x, s):
    N, C, H, W = x.shape
    C //= s * s
    y = np.empty((N, C, H * s, W * s))
    for c in range(C):
        for h in range(H * s):
            for w in range(W * s):
                y[:, c, h, w] = x[:, (h % s * s + w % s) * C + c, h // s, w // s]
    return y
