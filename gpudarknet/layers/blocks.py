"""Operations that several layers share: activation, bias, batch norm, blur. Each returns its output and its backward."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..array import Array, ArrayBackend, Arrays
from ..ops import activation, im2col, norm
from ..ops.matmul import matmul
from .base import ForwardContext, accumulate, conv_output_length, reduce_sum

BlockBackward = Callable[[Array, Arrays], Array]  # backward(dy, grad) -> dx


def activate(be: ArrayBackend, x: Array, kind: str) -> tuple[Array, Callable[[Array], Array]]:
    """Activate x (N, C, ...); backward(dy) multiplies dy by the derivative."""
    y = activation.apply(be, x, kind)
    saved = x if kind in activation.NEEDS_INPUT else None
    return y, lambda dy: activation.apply_backward(be, dy, saved, y, kind)


def add_bias(be: ArrayBackend, w: Arrays, z: Array) -> tuple[Array, BlockBackward]:
    """Add the bias to z (N, F, OH, OW), in place."""
    z += w["bias"].reshape(-1, 1, 1)

    def backward(dz: Array, grad: Arrays) -> Array:
        accumulate(grad, "bias", reduce_sum(dz, axis=(0, 2, 3)))
        return dz

    return z, backward


def batch_norm(be: ArrayBackend, w: Arrays, x: Array, ctx: ForwardContext) -> tuple[Array, BlockBackward]:
    """Normalize x (N, C, H, W) by batch statistics in training, by the running ones at inference.

    Training matches cuDNN, with which Darknet's published weights were trained: it normalizes by the biased
    variance and updates the running variance with the unbiased one, at rate 0.01.
    backward(dz, grad) adds to grad["scale"] and grad["bias"].
    """
    xp = be.xp
    if not ctx.train:
        y = norm.batch_norm(be, x, w["mean"], w["variance"], w["scale"], w["bias"])

        def backward(dy: Array, grad: Arrays) -> Array:  # the statistics are constants here
            gain = w["scale"] / xp.sqrt(w["variance"] + norm.EPS)
            invstd = (1 / xp.sqrt(w["variance"] + norm.EPS)).reshape(-1, 1, 1)
            accumulate(grad, "scale", (dy * (x - w["mean"].reshape(-1, 1, 1)) * invstd).sum(axis=(0, 2, 3)))
            accumulate(grad, "bias", reduce_sum(dy, axis=(0, 2, 3)))
            return (dy * gain.reshape(-1, 1, 1)).astype(dy.dtype, copy=False)

        return y, backward

    mean, variance = norm.batch_statistics(be, x)
    update_running_statistics(w, mean, variance, x.size // x.shape[1])
    y = norm.batch_norm(be, x, mean, variance, w["scale"], w["bias"])

    def backward_train(dy: Array, grad: Arrays) -> Array:
        dx, dscale, dbias = norm.batch_norm_backward(be, dy, x, mean, variance, w["scale"])
        accumulate(grad, "scale", dscale)
        accumulate(grad, "bias", dbias)
        return dx

    return y, backward_train


def update_running_statistics(w: Arrays, mean: Array, variance: Array, count: int) -> None:
    """Update running mean and variance (C,) with those of a batch; count: values per channel."""
    w["mean"][...] = 0.99 * w["mean"] + 0.01 * mean
    w["variance"][...] = 0.99 * w["variance"] + 0.01 * variance * (count / max(count - 1, 1))


BLUR_KERNELS = (np.outer([1, 2, 1], [1, 2, 1]) / 16, np.full((2, 2), 0.25))  # antialiasing=1, antialiasing=2


def blur_pool_shape(size: tuple[int, int], kind: int, stride: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) of `blur_pool` of a map of this size."""
    taps, pad_total = (2, 0) if kind == 2 else (3, 2)
    OH, OW = (conv_output_length(n, taps, s, pad_total) for n, s in zip(size, stride, strict=True))
    return OH, OW


def blur_pool(be: ArrayBackend, x: Array, kind: int, stride: tuple[int, int]) -> tuple[Array, Callable[[Array], Array]]:
    """Blur every channel of x (N, C, H, W) with a fixed kernel, with strides. kind is antialiasing: 1 is 3 x 3, 2 is 2 x 2.

    Zhang 2019, arXiv 1904.11486.
    """
    xp = be.xp
    taps = xp.asarray(BLUR_KERNELS[kind == 2].reshape(-1), x.dtype)
    size, pad = (2, 0) if kind == 2 else (3, 1)
    N, C, H, W = x.shape
    OH, OW = blur_pool_shape((H, W), kind, stride)
    col = im2col.im2col(be, x, size, stride, 1, pad, OH, OW).reshape(N, C, size * size, OH * OW)
    y = matmul(be, taps, col).reshape(N, C, OH, OW)

    def backward(dy: Array) -> Array:
        dcol = dy.reshape(N, C, 1, OH * OW) * taps.reshape(-1, 1)
        return im2col.col2im(be, dcol.reshape(N, C, size, size, OH, OW), H, W, stride, 1, pad)

    return y, backward
