"""Pooling. `padding` is the total over both sides; the first window starts at -(padding // 2)."""

from __future__ import annotations

import numpy as np

from ..array import Array, ArrayBackend, KernelBackend
from .base import op


def _windows(
    be: ArrayBackend, x: Array, fill: float, size: int, stride: tuple[int, int], padding: int, OH: int, OW: int
) -> tuple[Array, list[slice], list[slice]]:
    """Return x, padded with `fill` as far as any window reaches, and the slices of rows and columns of each tap."""
    N, C, H, W = x.shape
    before = padding // 2
    sy, sx = stride
    HP, WP = max(before + H, (OH - 1) * sy + size), max(before + W, (OW - 1) * sx + size)
    padded = be.xp.full((N, C, HP, WP), fill, x.dtype)
    padded[:, :, before : before + H, before : before + W] = x
    rows = [slice(p, p + (OH - 1) * sy + 1, sy) for p in range(size)]
    columns = [slice(q, q + (OW - 1) * sx + 1, sx) for q in range(size)]
    return padded, rows, columns


@op
def maxpool(be: ArrayBackend, x: Array, size: int, stride: tuple[int, int], padding: int, OH: int, OW: int) -> Array:
    """Return the maximum of each window: x (N, C, H, W) -> (N, C, OH, OW); padding is ignored."""
    padded, rows, columns = _windows(be, x, -be.xp.inf, size, stride, padding, OH, OW)
    row_maxima = padded[:, :, :, columns[0]].copy()  # first along rows, then along columns: 2*size passes, not size^2
    for q in columns[1:]:
        be.xp.maximum(row_maxima, padded[:, :, :, q], out=row_maxima)
    y = row_maxima[:, :, rows[0]].copy()
    for p in rows[1:]:
        be.xp.maximum(y, row_maxima[:, :, p], out=y)
    return y


@maxpool.kernel
def maxpool_cuda(
    be: KernelBackend, x: Array, size: int, stride: tuple[int, int], padding: int, OH: int, OW: int
) -> Array:
    N, C, H, W = x.shape
    y = be.empty((N, C, OH, OW), x.dtype)
    be.launch("pool.maxpool", y.size, x, y, y.size, H, W, OH, OW, size, *stride, padding // 2)
    return y


@op
def maxpool_argmax(
    be: ArrayBackend, x: Array, size: int, stride: tuple[int, int], padding: int, OH: int, OW: int
) -> Array:
    """Return each window's (first) argmax, row * W + column: x (N, C, H, W) -> int32 (N, C, OH, OW)."""
    xp, W = be.xp, x.shape[3]
    padded, rows, columns = _windows(be, x, -xp.inf, size, stride, padding, OH, OW)
    best = xp.full((*x.shape[:2], OH, OW), -xp.inf, x.dtype)
    index = xp.zeros(best.shape, xp.int32)
    i = xp.arange(OH, dtype=xp.int32).reshape(-1, 1) * stride[0] - padding // 2
    j = xp.arange(OW, dtype=xp.int32) * stride[1] - padding // 2
    for p, r in enumerate(rows):
        for q, c in enumerate(columns):
            tap = padded[:, :, r, c]
            better = tap > best
            index = xp.where(better, ((i + p) * W + j + q).astype(xp.int32), index)
            best = xp.where(better, tap, best)
    return index


@maxpool_argmax.kernel
def maxpool_argmax_cuda(
    be: KernelBackend, x: Array, size: int, stride: tuple[int, int], padding: int, OH: int, OW: int
) -> Array:
    N, C, H, W = x.shape
    index = be.empty((N, C, OH, OW), np.int32)
    be.launch("pool.maxpool_argmax", index.size, x, index, index.size, H, W, OH, OW, size, *stride, padding // 2)
    return index


@op
def maxpool_backward(
    be: ArrayBackend, dy: Array, index: Array, H: int, W: int, size: int, stride: tuple[int, int], padding: int
) -> Array:
    """Add each dy (N, C, OH, OW) to the pixel its maximum came from -> dx (N, C, H, W)."""
    xp = be.xp
    N, C, OH, OW = dy.shape
    dx = be.zeros((N * C, H * W), dy.dtype)
    plane = xp.arange(N * C).reshape(-1, 1)
    xp.add.at(dx, (plane, index.reshape(N * C, OH * OW)), dy.reshape(N * C, OH * OW))
    return dx.reshape(N, C, H, W)


@maxpool_backward.kernel
def maxpool_backward_cuda(
    be: KernelBackend, dy: Array, index: Array, H: int, W: int, size: int, stride: tuple[int, int], padding: int
) -> Array:
    N, C, OH, OW = dy.shape
    dx = be.empty((N, C, H, W), dy.dtype)
    be.launch("pool.maxpool_backward", dx.size, dy, index, dx, dx.size, H, W, OH, OW, size, *stride, padding // 2)
    return dx


@op
def maxpool_depth(be: ArrayBackend, x: Array, F: int) -> Array:
    """Return maxima over channels: x (N, C, H, W) -> (N, F, H, W), output g over inputs g, g+F, g+2F, ..."""
    y = x[:, :F].copy()
    for c in range(F, x.shape[1], F):
        part = x[:, c : c + F]
        be.xp.maximum(y[:, : part.shape[1]], part, out=y[:, : part.shape[1]])
    return y


@maxpool_depth.kernel
def maxpool_depth_cuda(be: KernelBackend, x: Array, F: int) -> Array:
    N, C, H, W = x.shape
    y = be.empty((N, F, H, W), x.dtype)
    be.launch("pool.maxpool_depth", y.size, x, y, y.size, C, F, H * W)
    return y


@op
def maxpool_depth_backward(be: ArrayBackend, dy: Array, x: Array, y: Array) -> Array:
    """Add each dy (N, F, H, W) to the first channel of x (N, C, H, W) that equals its maximum y."""
    F = y.shape[1]
    dx = be.zeros(x.shape, dy.dtype)
    pending = be.xp.ones(y.shape, bool)
    for c in range(0, x.shape[1], F):
        part = x[:, c : c + F]
        n = part.shape[1]
        hit = (part == y[:, :n]) & pending[:, :n]
        dx[:, c : c + F] = dy[:, :n] * hit
        pending[:, :n] &= ~hit
    return dx


@maxpool_depth_backward.kernel
def maxpool_depth_backward_cuda(be: KernelBackend, dy: Array, x: Array, y: Array) -> Array:
    _, C, H, W = x.shape
    dx = be.empty(x.shape, dy.dtype)
    be.launch("pool.maxpool_depth_backward", x.size, dy, x, y, dx, x.size, C, y.shape[1], H * W)
    return dx


@op
def local_avgpool(
    be: ArrayBackend, x: Array, size: int, stride: tuple[int, int], padding: int, OH: int, OW: int
) -> Array:
    """Average each window, without padding: (N, C, H, W) -> (N, C, OH, OW)."""
    padded, rows, columns = _windows(be, x, 0, size, stride, padding, OH, OW)
    y = sum(padded[:, :, r, c] for r in rows for c in columns)
    return y / window_counts(be, x.shape[2], x.shape[3], size, stride, padding, OH, OW).astype(x.dtype)


@local_avgpool.kernel
def local_avgpool_cuda(
    be: KernelBackend, x: Array, size: int, stride: tuple[int, int], padding: int, OH: int, OW: int
) -> Array:
    N, C, H, W = x.shape
    y = be.empty((N, C, OH, OW), x.dtype)
    be.launch("pool.local_avgpool", y.size, x, y, y.size, H, W, OH, OW, size, *stride, padding // 2)
    return y


@op
def local_avgpool_backward(
    be: ArrayBackend, dy: Array, H: int, W: int, size: int, stride: tuple[int, int], padding: int
) -> Array:
    """Distribute each dy (N, C, OH, OW) over the pixels of its window -> dx (N, C, H, W): the exact adjoint."""
    N, C, OH, OW = dy.shape
    quotient = dy / window_counts(be, H, W, size, stride, padding, OH, OW).astype(dy.dtype)
    padded, rows, columns = _windows(be, be.zeros((N, C, H, W), dy.dtype), 0, size, stride, padding, OH, OW)
    for r in rows:
        for c in columns:
            padded[:, :, r, c] += quotient
    before = padding // 2
    return be.xp.ascontiguousarray(padded[:, :, before : before + H, before : before + W])


@local_avgpool_backward.kernel
def local_avgpool_backward_cuda(
    be: KernelBackend, dy: Array, H: int, W: int, size: int, stride: tuple[int, int], padding: int
) -> Array:
    N, C, OH, OW = dy.shape
    dx = be.empty((N, C, H, W), dy.dtype)
    be.launch("pool.local_avgpool_backward", dx.size, dy, dx, dx.size, H, W, OH, OW, size, *stride, padding // 2)
    return dx


def window_counts(
    be: ArrayBackend, H: int, W: int, size: int, stride: tuple[int, int], padding: int, OH: int, OW: int
) -> Array:
    """Return (OH, OW): how many pixels of an H x W image each window has."""
    xp = be.xp

    def along(length: int, step: int, count: int) -> Array:
        first = xp.arange(count) * step - padding // 2
        return xp.minimum(first + size, length) - xp.maximum(first, 0)

    return along(H, stride[0], OH).reshape(-1, 1) * along(W, stride[1], OW)


@op
def avgpool(be: ArrayBackend, x: Array) -> Array:
    """Average each channel: x (N, C, H, W) -> (N, C, 1, 1)."""
    return x.mean(axis=(2, 3), keepdims=True)


@avgpool.kernel
def avgpool_cuda(be: KernelBackend, x: Array) -> Array:
    N, C, H, W = x.shape
    y = be.empty((N, C, 1, 1), x.dtype)
    be.launch("pool.avgpool", y.size * 32, x, y, y.size, H * W)
    return y


@op
def avgpool_backward(be: ArrayBackend, dy: Array, H: int, W: int) -> Array:
    """Distribute dy (N, C, 1, 1) over all pixels of its channel -> dx (N, C, H, W)."""
    return be.xp.ascontiguousarray(be.xp.broadcast_to(dy / (H * W), (*dy.shape[:2], H, W)))


@avgpool_backward.kernel
def avgpool_backward_cuda(be: KernelBackend, dy: Array, H: int, W: int) -> Array:
    dx = be.empty((*dy.shape[:2], H, W), dy.dtype)
    be.launch("pool.avgpool_backward", dx.size, dy, dx, dx.size, H * W)
    return dx
