"""Convolutions on tensor cores with weights that change every step (kernels/implicit_gemm.cu, pack_weights.py)."""

from __future__ import annotations

from typing import NamedTuple

from ....array import Array
from ...steps import Add
from ..algorithms import align_channels
from ..epilogue import BINARY_OPS
from ..implicit_gemm import kernel_name
from ..tiles import Product, Tile
from ..view import View
from .kernel_call import KernelCall


class Window(NamedTuple):
    """The window of a convolution: size x size taps, steps (vertical, horizontal), the distance of taps, padding before."""

    size: int
    strides: tuple[int, int] = (1, 1)
    dilation: int = 1
    pad: int = 0

    @property
    def arguments(self) -> tuple[int, ...]:
        """The arguments of kernels."""
        return self.size, *self.strides, self.dilation, self.pad


def product(x: View, y: View, window: Window, groups: int) -> Product:
    """Return the product that is a convolution of x (N, H, W, C) to y (N, OH, OW, F)."""
    C = x.shape[0] // groups
    K = window.size**2 * align_channels(C)
    return Product(y.pixels, y.shape[0] // groups, K, groups, x.a.itemsize, bool(C % 8))


def convolution(
    x: View, weights: Array, y: View, window: Window, groups: int, tile: Tile, splits: int, partial: Array | None,
    counters: Array | None, bias: Array | None = None, accumulate: bool = False,
) -> KernelCall:  # fmt: skip
    """Compute y (N, OH, OW, F) from x (N, H, W, C), weights (F, size*size, C/groups rounded up to 8), and a bias (F,) or none.

    Pixels and groups of x begin at multiples of 16 bytes, and those of y if `accumulate`: add to what y holds. partial: float32,
    splits * tiles * M * N of the tile; counters: int32, one per tile, zero before and after. Both are needed if there are splits.
    """
    one, C, (F, OH, OW) = product(x, y, window, groups), x.shape[0] // groups, y.shape
    padded, vectorized = align_channels(C), y.is_aligned(16 // y.a.itemsize)
    geometry = (C, padded, *x.shape[1:], OH, OW, *window.arguments, x.ld, window.size**2 * padded)
    other = (F, OH * OW, y.ld, 0, BINARY_OPS[Add], 0.0, 0.0, 0) if accumulate else (0, 0, 0, 0, 0, 0.0, 0.0, 0)
    epilogue = (bias, y if accumulate else None, y, *other, 0, 1.0, 0, 0, y.ld, vectorized)
    args = (x, weights, partial, counters, one.M, one.N, *geometry, groups, splits, *epilogue)
    threads = tile.threads * one.tiles(tile) * splits
    return KernelCall(
        kernel_name(tile, one.ragged), threads, args, tile.threads, tile.shared_bytes, gemm=one.gemm(tile, splits)
    )
