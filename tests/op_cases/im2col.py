from __future__ import annotations

import numpy as np

from gpudarknet.ops import im2col as op

from . import check, normal

# variants: size, stride (vertical, horizontal), dilation, pad; a plain 1 x 1 is a reshape
VARIANTS = [
    (1, (1, 1), 1, 0),
    (1, (2, 1), 1, 1),
    (3, (1, 1), 1, 1),
    (3, (2, 2), 1, 1),
    (3, (1, 2), 2, 2),
    (2, (3, 1), 1, 1),
    (5, (1, 3), 1, 3),
]


def outputs(H, W, size, stride, dilation, pad):
    reach = (size - 1) * dilation + 1
    return (H + 2 * pad - reach) // stride[0] + 1, (W + 2 * pad - reach) // stride[1] + 1


def taps(size, stride, dilation, pad, OH, OW, H, W):
    """Every (p, q, i, j, h, w): tap (p, q) of patch (i, j) is pixel (h, w)."""
    for p, q, i, j in np.ndindex(size, size, OH, OW):
        h, w = i * stride[0] - pad + p * dilation, j * stride[1] - pad + q * dilation
        if 0 <= h < H and 0 <= w < W:
            yield p, q, i, j, h, w


def make_im2col(rng, N, C, H, W, size, stride, dilation, pad):
    H, W = H + 1, W + 2  # the largest kernel needs 3 rows, padded ones included
    return normal(rng, N, C, H, W), size, stride, dilation, pad, *outputs(H, W, size, stride, dilation, pad)


@check(op.im2col, make_im2col, *VARIANTS, exact=True, half="x")
def im2col(x, size, stride, dilation, pad, OH, OW):
    N, C, H, W = x.shape
    col = np.zeros((N, C, size, size, OH, OW))
    for p, q, i, j, h, w in taps(size, stride, dilation, pad, OH, OW, H, W):
        col[:, :, p, q, i, j] = x[:, :, h, w]
    return col


def make_col2im(rng, N, C, H, W, size, stride, dilation, pad):
    H, W = H + 1, W + 2
    OH, OW = outputs(H, W, size, stride, dilation, pad)
    return normal(rng, N, C, size, size, OH, OW), H, W, stride, dilation, pad


@check(op.col2im, make_col2im, *VARIANTS, half="col")
def col2im(col, H, W, stride, dilation, pad):
    N, C, size, _, OH, OW = col.shape
    x = np.zeros((N, C, H, W))
    for p, q, i, j, h, w in taps(size, stride, dilation, pad, OH, OW, H, W):
        x[:, :, h, w] += col[:, :, p, q, i, j]
    return x
