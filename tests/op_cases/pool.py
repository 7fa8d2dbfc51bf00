from __future__ import annotations

import numpy as np

from gpudarknet.ops import pool

from . import check, normal

# variants: size, stride (vertical, horizontal), total padding; as in yolov3-tiny, its last pool, SPP, ResNet, and odd ones
VARIANTS = [(2, (2, 2), 1), (2, (1, 1), 1), (5, (1, 1), 4), (3, (2, 2), 2), (3, (2, 1), 2), (4, (1, 3), 3)]


def outputs(H, W, size, stride, padding):
    return (H + padding - size) // stride[0] + 1, (W + padding - size) // stride[1] + 1


def window(i, j, H, W, size, stride, padding):
    """The pixels of window (i, j) inside the image, row by row."""
    top, left = i * stride[0] - padding // 2, j * stride[1] - padding // 2
    pixels = [(h, w) for h in range(top, top + size) for w in range(left, left + size)]
    return [(h, w) for h, w in pixels if 0 <= h < H and 0 <= w < W]


def make(rng, N, C, H, W, size, stride, padding):
    H, W = H + 1, W + 1
    x = np.round(normal(rng, N, C, H, W), 1)  # rounded: equal values are common
    return x, size, stride, padding, *outputs(H, W, size, stride, padding)


@check(pool.maxpool, make, *VARIANTS, exact=True, half="x")
def maxpool(x, size, stride, padding, OH, OW):
    y = np.empty((*x.shape[:2], OH, OW))
    for i, j in np.ndindex(OH, OW):
        y[:, :, i, j] = np.max([x[:, :, h, w] for h, w in window(i, j, *x.shape[2:], size, stride, padding)], axis=0)
    return y


@check(pool.maxpool_argmax, make, *VARIANTS, exact=True, half="x")
def maxpool_argmax(x, size, stride, padding, OH, OW):
    N, C, H, W = x.shape
    index = np.empty((N, C, OH, OW))
    for i, j in np.ndindex(OH, OW):
        pixels = window(i, j, H, W, size, stride, padding)
        first = np.argmax([x[:, :, h, w] for h, w in pixels], axis=0)
        index[:, :, i, j] = np.array([h * W + w for h, w in pixels])[first]
    return index


def make_backward(rng, N, C, H, W, size, stride, padding):
    x, _, _, _, OH, OW = make(rng, N, C, H, W, size, stride, padding)
    index = maxpool_argmax(x.astype(np.float32), size, stride, padding, OH, OW).astype(np.int32)
    return normal(rng, N, C, OH, OW), index, *x.shape[2:], size, stride, padding


@check(pool.maxpool_backward, make_backward, *VARIANTS, half="dy")
def maxpool_backward(dy, index, H, W, size, stride, padding):
    N, C, OH, OW = dy.shape
    dx = np.zeros((N, C, H * W))
    for n, c, i, j in np.ndindex(N, C, OH, OW):
        dx[n, c, index[n, c, i, j]] += dy[n, c, i, j]
    return dx.reshape(N, C, H, W)


def make_depth(rng, N, C, H, W, F):
    return np.round(normal(rng, N, C + F, H, W), 1), F


@check(pool.maxpool_depth, make_depth, (1,), (2,), (4,), exact=True, half="x")
def maxpool_depth(x, F):
    return np.stack([x[:, g::F].max(axis=1) for g in range(F)], axis=1)


def make_depth_backward(rng, N, C, H, W, F):
    x, _ = make_depth(rng, N, C, H, W, F)
    return normal(rng, N, F, H, W), x, maxpool_depth(x, F)


@check(pool.maxpool_depth_backward, make_depth_backward, (1,), (2,), (4,), exact=True, half="dy x y")
def maxpool_depth_backward(dy, x, y):
    (N, F, H, W), dx = dy.shape, np.zeros(x.shape)
    for n, g, h, w in np.ndindex(N, F, H, W):
        dx[n, g + F * np.argmax(x[n, g::F, h, w]), h, w] = dy[n, g, h, w]
    return dx


@check(pool.local_avgpool, make, *VARIANTS, half="x")
def local_avgpool(x, size, stride, padding, OH, OW):
    y = np.empty((*x.shape[:2], OH, OW))
    for i, j in np.ndindex(OH, OW):
        y[:, :, i, j] = np.mean([x[:, :, h, w] for h, w in window(i, j, *x.shape[2:], size, stride, padding)], axis=0)
    return y


def make_local_backward(rng, N, C, H, W, size, stride, padding):
    H, W = H + 1, W + 1
    return normal(rng, N, C, *outputs(H, W, size, stride, padding)), H, W, size, stride, padding


@check(pool.local_avgpool_backward, make_local_backward, *VARIANTS, half="dy")
def local_avgpool_backward(dy, H, W, size, stride, padding):
    N, C, OH, OW = dy.shape
    dx = np.zeros((N, C, H, W))
    for i, j in np.ndindex(OH, OW):
        pixels = window(i, j, H, W, size, stride, padding)
        for h, w in pixels:
            dx[:, :, h, w] += dy[:, :, i, j] / len(pixels)
    return dx


@check(pool.avgpool, lambda rng, *shape: (normal(rng, *shape),), half="x")
def avgpool(x):
    N, C, H, W = x.shape
    return (x.reshape(N, C, H * W).sum(axis=2) / (H * W)).reshape(N, C, 1, 1)


@check(pool.avgpool_backward, lambda rng, N, C, H, W: (normal(rng, N, C, 1, 1), H, W), half="dy")
def avgpool_backward(dy, H, W):
    return np.ones((*dy.shape[:2], H, W)) * dy / (H * W)
