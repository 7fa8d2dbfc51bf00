"""Batch norm, bias and activation in training, and their gradients (kernels/batch_norm.cu; cuDNN's BatchNormalization, SPATIAL).

Maps are (N, H, W, C). `saved` (6, C), float32, goes from the forward to the backward pass. `partial` is a workspace of
`ChannelSums.partial_shape`; `arrived` are counters, int32, as many as `ChannelSums.chunks`, zero before and after each launch.
Arrays of a vectorized launch begin at multiples of 16 bytes.
"""

from __future__ import annotations

from ....array import Array
from ..view import View
from .channel_sums import BLOCK, ChannelSums, activation_code, pointwise_threads
from .kernel_call import KernelCall

MEAN, INVSTD, GAIN, SHIFT, MEAN_DX, MEAN_PRODUCT = range(6)  # the rows of `saved`, as in the kernels


def batch_statistics(
    z: View, scale: Array, bias: Array, mean: Array, variance: Array, saved: Array, partial: Array, arrived: Array
) -> KernelCall:
    """Compute the statistics of z (M, C) for `saved`, and update the rolling mean and variance (C,) as layers/blocks.py does."""
    grid = ChannelSums.of(z)
    args = (z, scale, bias, mean, variance, saved, partial, arrived, z.pixels, grid.C, z.ld, grid.lanes)
    return KernelCall("batch_norm.batch_statistics", grid.threads, (*args, grid.vectorized), BLOCK)


def affine_activation(z: View, gain: Array | None, shift: Array | None, y: View, kind: str) -> KernelCall:
    """Compute y = activation(gain * z + shift); gain None is 1: shift is then a bias, or None. y may be z."""
    n, vectorized = pointwise_threads(z, y, kind=kind)
    sizes = (n, z.shape[0], z.ld, y.ld, activation_code(kind), vectorized)
    return KernelCall("batch_norm.affine_activation", n, (z, gain, shift, y, *sizes))


def batch_norm_gradient(
    dy: View, z: View, dz: View, saved: Array, dscale: Array, dbias: Array, partial: Array, arrived: Array, kind: str,
    accumulate: bool,
) -> list[KernelCall]:  # fmt: skip
    """Compute dz (which may be dy) from dy, the gradient of y = activation(batch norm of z), in two passes.

    accumulate: add the gradients of scale and bias to what dscale and dbias (C,) hold.
    """
    grid = ChannelSums.of(dy, z, dz, kind=kind)
    sizes = (dy.pixels, grid.C, dy.ld, z.ld, dz.ld, grid.lanes, activation_code(kind), accumulate, grid.vectorized)
    args = (dy, z, dz, saved, dscale, dbias, partial, arrived, *sizes)
    n, vectorized = pointwise_threads(z, dz)
    return [
        KernelCall("batch_norm.batch_norm_gradient_sums", grid.threads, args, BLOCK),
        KernelCall("batch_norm.batch_norm_gradient", n, (z, saved, dz, n, grid.C, z.ld, dz.ld, vectorized)),
    ]


def bias_gradient(
    dy: View, z: View | None, y: View | None, bias: Array | None, dz: View, dbias: Array, partial: Array, arrived: Array,
    kind: str, accumulate: bool,
) -> KernelCall:  # fmt: skip
    """Compute dz (which may be dy) and dbias (C,) from dy, the gradient of y = activation(z + bias).

    Activations outside ops.activation.NEEDS_INPUT need y or z, linear none. accumulate: add to what dbias holds.
    """
    grid = ChannelSums.of(*(m for m in (dy, z, y, dz) if m is not None), kind=kind)
    lds = (dy.ld, z.ld if z else 0, y.ld if y else 0, dz.ld)
    sizes = (dy.pixels, grid.C, *lds, grid.lanes, activation_code(kind), accumulate, grid.vectorized)
    args = (dy, z, y, bias, dz, dbias, partial, arrived, *sizes)
    return KernelCall("batch_norm.bias_gradient", grid.threads, args, BLOCK)


def activation_gradient(dy: View, z: View | None, y: View | None, dz: View, kind: str) -> KernelCall:
    """Compute dz (which may be dy) from dy, the gradient of y = activation(z), of which one or both are given."""
    n, vectorized = pointwise_threads(*(m for m in (dy, z, y, dz) if m is not None), kind=kind)
    lds = (dy.ld, z.ld if z else 0, y.ld if y else 0, dz.ld)
    args = (dy, z, y, dz, n, dy.shape[0], *lds, activation_code(kind), vectorized)
    return KernelCall("batch_norm.activation_gradient", n, args)
