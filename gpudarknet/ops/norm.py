"""Normalizations: batch norm, local response normalization, softmax."""

from __future__ import annotations

import numpy as np

from ..array import Array, ArrayBackend, KernelBackend
from .base import op

BLOCK = 256  # threads of a reduction
PART = 4096  # values that a block reduces, as in kernels/norm.cu
EPS = 1e-5  # inside the root, in every Darknet build at inference and in cuDNN


def _per_channel(v: Array) -> Array:
    return v.reshape(-1, 1, 1)


def _dot(be: ArrayBackend, a: Array, b: Array) -> Array:
    """Return (C,): the sum of a * b, both (N, C, H, W), over N, H and W, by BLAS."""
    N, C, H, W = a.shape
    return be.xp.matmul(a.reshape(N, C, 1, H * W), b.reshape(N, C, H * W, 1)).reshape(N, C).sum(axis=0)


@op
def batch_norm(be: ArrayBackend, x: Array, mean: Array, variance: Array, scale: Array, bias: Array) -> Array:
    """Normalize each channel: x (N, C, H, W), the others (C,) -> (x - mean) / sqrt(variance + 1e-5) * scale + bias."""
    gain = scale / be.xp.sqrt(variance + EPS)
    y = x * _per_channel(gain).astype(x.dtype)
    y += _per_channel(bias - mean * gain).astype(x.dtype)
    return y


@batch_norm.kernel
def batch_norm_cuda(be: KernelBackend, x: Array, mean: Array, variance: Array, scale: Array, bias: Array) -> Array:
    _, C, H, W = x.shape
    y = be.empty(x.shape, x.dtype)
    be.launch("norm.batch_norm", x.size, x, mean, variance, scale, bias, y, x.size, C, H * W)
    return y


@op(sums=(0, 1))
def batch_statistics(be: ArrayBackend, x: Array) -> tuple[Array, Array]:
    """Return mean (C,) and biased variance (C,) of x (N, C, H, W) over N, H and W."""
    mean = x.mean(axis=(0, 2, 3))
    centered = x - _per_channel(mean)
    return mean, _dot(be, centered, centered) / (x.size // x.shape[1])


@batch_statistics.kernel
def batch_statistics_cuda(be: KernelBackend, x: Array) -> tuple[Array, Array]:
    N, C, H, W = x.shape
    m = N * H * W
    parts = -(-m // PART)
    means, squares = be.empty((C, parts)), be.empty((C, parts))
    mean, variance = be.empty((C,)), be.empty((C,))
    be.launch("norm.statistics_parts", C * parts * BLOCK, x, means, squares, m, C, H * W, parts, block=BLOCK)
    be.launch("norm.statistics", C * BLOCK, means, squares, mean, variance, m, parts, block=BLOCK)
    return mean, variance


@op(sums=(1, 2))
def batch_norm_backward(
    be: ArrayBackend, dy: Array, x: Array, mean: Array, variance: Array, scale: Array
) -> tuple[Array, Array, Array]:
    """Return dx (N, C, H, W), dscale (C,), dbias (C,) of a batch norm that used the statistics of x itself (cuDNN)."""
    m, invstd = x.size // x.shape[1], 1 / be.xp.sqrt(variance + EPS)
    centered = x - _per_channel(mean)
    dbias, dscale = dy.sum(axis=(0, 2, 3)), _dot(be, dy, centered) * invstd
    dx = centered  # dx = scale * invstd * (dy - mean(dy) - normalized * mean(dy * normalized)), in place
    dx *= _per_channel(-invstd * dscale / m)
    dx += dy
    dx -= _per_channel(dbias / m)
    dx *= _per_channel(scale * invstd)
    return dx, dscale, dbias


@batch_norm_backward.kernel
def batch_norm_backward_cuda(
    be: KernelBackend, dy: Array, x: Array, mean: Array, variance: Array, scale: Array
) -> tuple[Array, Array, Array]:
    N, C, H, W = x.shape
    m, P = N * H * W, H * W
    parts = -(-m // PART)
    dx, sums, totals = be.empty(x.shape, x.dtype), be.empty((2, C, parts)), be.empty((2, C))
    be.launch("norm.batch_norm_parts", C * parts * BLOCK, dy, x, mean, variance, sums, m, C, P, parts, block=BLOCK)
    be.launch("norm.sum_parts", 2 * C * BLOCK, sums, totals, parts, block=BLOCK)
    dbias, dscale = totals
    be.launch("norm.batch_norm_backward", x.size, dy, x, mean, variance, scale, dbias, dscale, dx, x.size, C, P, m)
    return dx, dscale, dbias


def lrn_windows(C: int, size: int) -> np.ndarray:
    """Return the (C, C) matrix whose row c has the weight of each channel's square in the sum for channel c.

    Darknet updates each window from the previous one. Its first window ends at channel size//2 - 1, so channel size//2 is
    never added, yet it is subtracted once the window has passed it: its column is -1 from there on. (normalization_layer.c)
    """
    windows = np.zeros((C, C), np.float32)
    windows[0, : size // 2] = 1
    for c in range(1, C):
        windows[c] = windows[c - 1]
        if c + size // 2 < C:
            windows[c, c + size // 2] += 1
        if c - (size - 1) // 2 - 1 >= 0:
            windows[c, c - (size - 1) // 2 - 1] -= 1
    return windows


@op
def lrn(be: ArrayBackend, x: Array, windows: Array, alpha: float, beta: float, kappa: float) -> Array:
    """Normalize over neighboring channels: x (N, C, H, W), windows (C, C) -> x * (kappa + alpha * windows x^2)^-beta."""
    N, C, H, W = x.shape
    total = kappa + alpha * be.xp.matmul(windows, (x * x).reshape(N, C, H * W)).reshape(x.shape)
    return x * total**-beta


@lrn.kernel
def lrn_cuda(be: KernelBackend, x: Array, windows: Array, alpha: float, beta: float, kappa: float) -> Array:
    _, C, H, W = x.shape
    y = be.empty(x.shape, x.dtype)
    be.launch("norm.lrn", x.size, x, windows, y, x.size, C, H * W, alpha, beta, kappa)
    return y


@op
def lrn_backward(
    be: ArrayBackend, dy: Array, x: Array, windows: Array, alpha: float, beta: float, kappa: float
) -> Array:
    """Return dx (N, C, H, W) of `lrn`: the exact derivative (Darknet keeps only its first term)."""
    N, C, H, W = x.shape
    xp = be.xp
    total = kappa + alpha * xp.matmul(windows, (x * x).reshape(N, C, H * W)).reshape(x.shape)
    inner = (dy * x * total ** (-beta - 1)).reshape(N, C, H * W)
    return dy * total**-beta - 2 * alpha * beta * x * xp.matmul(windows.T, inner).reshape(x.shape)


@lrn_backward.kernel
def lrn_backward_cuda(
    be: KernelBackend, dy: Array, x: Array, windows: Array, alpha: float, beta: float, kappa: float
) -> Array:
    _, C, H, W = x.shape
    n, P = x.size, H * W
    dx, power, inner = be.empty(x.shape, x.dtype), be.empty(x.shape), be.empty(x.shape)
    be.launch("norm.lrn_factors", n, dy, x, windows, power, inner, n, C, P, alpha, beta, kappa)
    be.launch("norm.lrn_backward", n, dy, x, windows, power, inner, dx, n, C, P, alpha, beta)
    return dx


@op
def softmax(be: ArrayBackend, x: Array, starts: tuple[int, ...], temperature: float) -> Array:
    """Softmax each group of every row: x (R, K) -> (R, K). Group g is columns starts[g] to starts[g+1], the last to K."""
    xp = be.xp
    y = be.empty(x.shape, x.dtype)
    for a, b in zip(starts, (*starts[1:], x.shape[1]), strict=True):
        z = x[:, a:b] / temperature
        e = xp.exp(z - z.max(axis=1, keepdims=True))
        y[:, a:b] = e / e.sum(axis=1, keepdims=True)
    return y


@softmax.kernel
def softmax_cuda(be: KernelBackend, x: Array, starts: tuple[int, ...], temperature: float) -> Array:
    R, K = x.shape
    G = len(starts)
    y, ends = be.empty(x.shape, x.dtype), be.asarray(np.array((*starts, K), np.int32))
    be.launch("norm.softmax", R * G * 32, x, ends, y, R * G, K, G, temperature)
    return y
