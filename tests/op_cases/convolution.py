from __future__ import annotations

import numpy as np

from gpudarknet.ops import convolution

from . import check, normal
from .im2col import outputs, taps

# variants: groups, size, stride (vertical, horizontal), dilation, pad
VARIANTS = [
    (1, 1, (1, 1), 1, 0),
    (1, 1, (2, 1), 1, 1),
    (1, 1, (2, 3), 1, 0),
    (1, 3, (1, 1), 1, 1),
    (3, 3, (2, 2), 1, 1),
    (1, 3, (1, 2), 2, 2),
    (2, 2, (3, 1), 1, 1),
    (1, 5, (1, 3), 1, 3),
]


def make(rng, N, C, H, W, groups, size, stride, dilation, pad):
    H, W, each = H + 1, W + 2, min(C, 11)
    x, kernel = normal(rng, N, groups * each, H, W), normal(rng, groups * 5, each, size, size) / (5 * size)
    return x, kernel, groups, stride, dilation, pad, *outputs(H, W, size, stride, dilation, pad)


@check(convolution.convolve, make, *VARIANTS, half="x kernel")
def convolve(x, kernel, groups, stride, dilation, pad, OH, OW):
    (N, _, H, W), (F, each, size, _) = x.shape, kernel.shape
    z = np.zeros((N, F, OH, OW))
    for p, q, i, j, h, w in taps(size, stride, dilation, pad, OH, OW, H, W):
        for f in range(F):
            first = f // (F // groups) * each
            z[:, f, i, j] += x[:, first : first + each, h, w] @ kernel[f, :, p, q]
    return z


def make_backward(rng, *sizes):
    x, kernel, groups, stride, dilation, pad, OH, OW = make(rng, *sizes)
    return normal(rng, len(x), len(kernel), OH, OW) / 4, x, kernel, groups, stride, dilation, pad, 0


@check(convolution.convolve_backward, make_backward, *VARIANTS, half="dz x kernel", atol=1e-5)
def convolve_backward(dz, x, kernel, groups, stride, dilation, pad, skip_input_grad):
    (_, _, H, W), (F, each, size, _) = x.shape, kernel.shape
    dx, dkernel = np.zeros(x.shape), np.zeros(kernel.shape)
    for p, q, i, j, h, w in taps(size, stride, dilation, pad, *dz.shape[2:], H, W):
        for f in range(F):
            first = f // (F // groups) * each
            part = slice(first, first + each)
            dx[:, part, h, w] += np.outer(dz[:, f, i, j], kernel[f, :, p, q])
            dkernel[f, :, p, q] += dz[:, f, i, j] @ x[:, part, h, w]
    return dx, dkernel
