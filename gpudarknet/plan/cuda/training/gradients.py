"""Gradients of pooling, upsampling and sums of maps (kernels/nhwc_gradients.cu). accumulate: add to what dx holds."""

from __future__ import annotations

from ..view import View
from .channel_sums import pointwise_threads
from .kernel_call import KernelCall


def copy_gradient(dy: View, dx: View, accumulate: bool, factor: float = 1.0) -> KernelCall:
    """Compute dx = factor * dy, of a map that was copied or added."""
    n, vectorized = pointwise_threads(dy, dx)
    return KernelCall(
        "nhwc_gradients.copy_gradient", n, (dy, dx, n, dy.shape[0], factor, dy.ld, dx.ld, accumulate, vectorized)
    )


def maxpool_gradient(
    dy: View, x: View, y: View, dx: View, size: int, strides: tuple[int, int], padding: int, accumulate: bool
) -> KernelCall:
    """Compute dx of a max pool y (N, OH, OW, C) of x (N, H, W, C); padding: of both sides, as in ops/pool.py."""
    (C, H, W), (_, OH, OW) = x.shape, y.shape
    n, vectorized = pointwise_threads(x, dy, y, dx)
    lds = (dy.ld, x.ld, y.ld, dx.ld)
    args = (dy, x, y, dx, n, C, H, W, OH, OW, size, *strides, padding // 2, *lds, accumulate, vectorized)
    return KernelCall("nhwc_gradients.maxpool_gradient", n, args)


def upsample_gradient(dy: View, dx: View, s: int, scale: float, accumulate: bool) -> KernelCall:
    """Compute dx (N, H, W, C) of nearest-neighbor upsampling, from dy (N, H*s, W*s, C)."""
    n, vectorized = pointwise_threads(dx, dy)
    args = (dy, dx, n, *dx.shape, s, scale, dy.ld, dx.ld, accumulate, vectorized)
    return KernelCall("nhwc_gradients.upsample_gradient", n, args)


def avgpool_gradient(dy: View, dx: View, accumulate: bool) -> KernelCall:
    """Compute dx (N, H, W, C) of global average pooling, from dy (N, 1, 1, C)."""
    C, P = dx.sizes
    n = dx.pixels * C
    return KernelCall("nhwc_gradients.avgpool_gradient", n, (dy, dx, n, C, P, dy.ld, dx.ld, accumulate))


def sort_shortcut_gradient(
    dy: View, a: View, b: View, da: View, db: View, eps: float, slope: float, accumulate: tuple[bool, bool]
) -> KernelCall:
    """Compute da and db of the SORT-shortcut of maps a and b of one shape; da or db may be dy. accumulate: to da, to db."""
    n, vectorized = pointwise_threads(dy, a, b, da, db)
    lds = (dy.ld, a.ld, b.ld, da.ld, db.ld)
    args = (dy, a, b, da, db, n, dy.shape[0], eps, slope, *lds, *accumulate, vectorized)
    return KernelCall("nhwc_gradients.sort_shortcut_gradient", n, args)
