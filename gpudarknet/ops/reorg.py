"""The block permutations of [reorg] and [reorg3d] (reorg_cpu in src/blas.c). Each is the inverse and adjoint of the other."""

from __future__ import annotations

from ..array import Array, ArrayBackend, KernelBackend
from .base import op


@op
def space_to_depth(be: ArrayBackend, x: Array, s: int) -> Array:
    """Move s x s blocks of pixels into channels: x (N, C, H*s, W*s) -> y (N, C*s*s, H, W).

    y[n, (p*s + q)*C + c, i, j] = x[n, c, i*s + p, j*s + q]: the position in the block varies slower than c.
    """
    N, C, HS, WS = x.shape
    H, W = HS // s, WS // s
    return x.reshape(N, C, H, s, W, s).transpose(0, 3, 5, 1, 2, 4).reshape(N, C * s * s, H, W)


@space_to_depth.kernel
def space_to_depth_cuda(be: KernelBackend, x: Array, s: int) -> Array:
    N, C, HS, WS = x.shape
    H, W = HS // s, WS // s
    y = be.empty((N, C * s * s, H, W), x.dtype)
    be.launch("reorg.space_to_depth", y.size, x, y, y.size, C, H, W, s)
    return y


@op
def depth_to_space(be: ArrayBackend, x: Array, s: int) -> Array:
    """Move channels into s x s blocks of pixels: x (N, C*s*s, H, W) -> y (N, C, H*s, W*s)."""
    N, CSS, H, W = x.shape
    C = CSS // (s * s)
    return x.reshape(N, s, s, C, H, W).transpose(0, 3, 4, 1, 5, 2).reshape(N, C, H * s, W * s)


@depth_to_space.kernel
def depth_to_space_cuda(be: KernelBackend, x: Array, s: int) -> Array:
    N, CSS, H, W = x.shape
    C = CSS // (s * s)
    y = be.empty((N, C, H * s, W * s), x.dtype)
    be.launch("reorg.depth_to_space", x.size, x, y, x.size, C, H, W, s)
    return y
