"""Nearest-neighbor upsampling, and its adjoint."""

from __future__ import annotations

from ..array import Array, ArrayBackend, KernelBackend
from .base import op


@op
def upsample(be: ArrayBackend, x: Array, s: int, scale: float) -> Array:
    """Repeat every pixel s x s times and multiply by scale: x (N, C, H, W) -> (N, C, H*s, W*s)."""
    y = x.repeat(s, axis=2).repeat(s, axis=3)
    return y if scale == 1 else y * y.dtype.type(scale)


@upsample.kernel
def upsample_cuda(be: KernelBackend, x: Array, s: int, scale: float) -> Array:
    N, C, H, W = x.shape
    y = be.empty((N, C, H * s, W * s), x.dtype)
    be.launch("upsample.upsample", y.size, x, y, y.size, H, W, s, scale)
    return y


@op
def downsample(be: ArrayBackend, x: Array, s: int, scale: float) -> Array:
    """Sum blocks of s x s pixels and multiply by scale: x (N, C, H, W) -> (N, C, H//s, W//s); adjoint of `upsample`."""
    N, C, H, W = x.shape
    blocks = x[:, :, : H // s * s, : W // s * s].reshape(N, C, H // s, s, W // s, s)
    y = blocks.sum(axis=(3, 5))
    return y if scale == 1 else y * y.dtype.type(scale)


@downsample.kernel
def downsample_cuda(be: KernelBackend, x: Array, s: int, scale: float) -> Array:
    N, C, H, W = x.shape
    y = be.empty((N, C, H // s, W // s), x.dtype)
    be.launch("upsample.downsample", y.size, x, y, y.size, H, W, s, scale)
    return y
