"""Gradients of depthwise convolutions: one filter per channel (kernels/depthwise_gradient.cu)."""

from __future__ import annotations

from ....array import Array, KernelArgument
from ..view import View
from .channel_sums import BLOCK, ChannelSums, pointwise_threads
from .convolution import Window
from .kernel_call import KernelCall


def partial_shape(dz: View, x: View, window: Window) -> tuple[int, int, int]:
    """Return the workspace of partial sums, float32, that `depthwise_weight_gradient` needs."""
    return ChannelSums.of(dz, x).parts, window.size**2, dz.shape[0]


def depthwise_weight_gradient(
    dz: View, x: View, dw: Array, window: Window, partial: Array, arrived: Array, accumulate: bool
) -> KernelCall:
    """Compute dw (C, 1, size, size) from dz (N, OH, OW, C) and x (N, H, W, C); accumulate: add it to what dw holds.

    arrived: counters, int32, as many as `ChannelSums.chunks`, zero before and after.
    """
    grid = ChannelSums.of(dz, x)
    sizes = (dz.pixels, grid.C, *x.shape[1:], *dz.shape[1:], *window.arguments, dz.ld, x.ld, grid.lanes)
    flags = (accumulate, grid.vectorized)
    args: tuple[KernelArgument | View, ...] = (dz, x, dw, partial, arrived, *sizes, *flags)
    return KernelCall("depthwise_gradient.depthwise_weight_gradient", grid.threads, args, BLOCK)


def depthwise_data_gradient(dz: View, weights: Array, dx: View, window: Window, accumulate: bool) -> KernelCall:
    """Compute dx (N, H, W, C) from dz (N, OH, OW, C) and weights (size, size, C), as `pack_depthwise` packs them."""
    n, vectorized = pointwise_threads(dx, dz)
    sizes = (n, *dx.shape, *dz.shape[1:], *window.arguments, dz.ld, dx.ld)
    args: tuple[KernelArgument | View, ...] = (dz, weights, dx, *sizes, accumulate, vectorized)
    return KernelCall("depthwise_gradient.depthwise_data_gradient", n, args)
