"""Gradients of convolutions' inputs (cuDNN's ConvolutionBackwardData).

Without strides it is a convolution of dz with the rotated kernel, which kernels/implicit_gemm.cu computes on tensor cores. With
strides, data_gradient.cu computes each phase of dx from the taps that reach it. For fp32, and maps that are not aligned,
data_gradient_fma.cu does so for any strides, with float32 sums of products. pack_weights.py packs the kernel for all of them.
"""

from __future__ import annotations

from ....array import Array
from ..algorithms import align_channels
from ..tiles import DeviceProperties, Tile
from ..view import View
from .convolution import Window, convolution
from .fma_tile import FmaTile
from .kernel_call import KernelCall

PHASE_TILES = {
    "data_gradient.data_gradient_128x128": Tile(128, 128, 64, 64, 3),
    "data_gradient.data_gradient_128x64": Tile(128, 64, 64, 32, 4),
    "data_gradient.data_gradient_64x64": Tile(64, 64, 32, 32, 5),
}
FMA_TILES = {
    "data_gradient_fma.data_gradient_fma_128x128": FmaTile(128, 128, 8),
    "data_gradient_fma.data_gradient_fma_64x64": FmaTile(64, 64, 4),
}
TILES: dict[str, Tile | FmaTile] = {**PHASE_TILES, **FMA_TILES}


def supports_tensor_cores(dz: View, dx: View, groups: int, accumulate: bool) -> bool:
    """Return whether the maps are aligned as the kernels need it: dz to 16 bytes, and dx if it is added to."""
    width = 16 // dz.a.itemsize
    return dz.is_aligned(width) and (groups == 1 or dz.shape[0] // groups % 8 == 0) and (
        not accumulate or (dx.is_aligned(width) and (groups == 1 or dx.shape[0] // groups % width == 0))
    )  # fmt: skip


def rotated(window: Window) -> Window:
    """Return the window of the convolution that computes the gradient of one without strides."""
    return Window(window.size, (1, 1), window.dilation, (window.size - 1) * window.dilation - window.pad)


def data_gradient(
    dz: View, weights: Array, dx: View, window: Window, groups: int, tile: Tile, splits: int, partial: Array | None,
    counters: Array | None, accumulate: bool,
) -> KernelCall:  # fmt: skip
    """Compute dx (N, H, W, C) from dz (N, OH, OW, F) without strides, as `convolution` does with rotated weights."""
    return convolution(dz, weights, dx, rotated(window), groups, tile, splits, partial, counters, accumulate=accumulate)


def choose_by_phases(dx: View, groups: int, device: DeviceProperties, tensor_cores: bool) -> str:
    """Choose a kernel that computes phases: the largest tile whose columns channels fill by half, and that occupies all SMs."""
    N, kernels = dx.shape[0] // groups, PHASE_TILES if tensor_cores else FMA_TILES
    for kernel, tile in kernels.items():
        fits = tile.shared_bytes <= device.shared_memory
        if fits and tile.N // 2 < N and tile.count(dx.pixels, N) * groups >= device.multiprocessors:
            return kernel
    return next(reversed(kernels))


def phase_pixels(length: int, stride: int, phase: int, pad: int) -> int:
    """Return how many positions h in [0, length) have (h + pad) % stride == phase."""
    return max(length - (phase - pad) % stride + stride - 1, 0) // stride


def data_gradient_by_phases(
    kernel: str, dz: View, weights: Array, dx: View, window: Window, groups: int, accumulate: bool
) -> KernelCall:
    """Compute dx (N, H, W, C) from dz (N, OH, OW, F) with any strides; accumulate: add it to what dx holds."""
    tile, (F, OH, OW), (C, H, W) = TILES[kernel], dz.shape, dx.shape
    (sy, sx), N, filters, images = window.strides, C // groups, F // groups, dx.pixels // (H * W)
    tiles = sum(
        tile.count(images * phase_pixels(H, sy, a, window.pad) * phase_pixels(W, sx, b, window.pad), N) * groups
        for a in range(sy) for b in range(sx)
    )  # fmt: skip
    padded = align_channels(filters)
    geometry = (images, N, filters, padded, H, W, OH, OW, *window.arguments, dz.ld, window.size**2 * padded, dx.ld)
    vectorized = (dx.is_aligned(16 // dx.a.itemsize),) if kernel in PHASE_TILES else ()
    args = (dz, weights, dx, *geometry, groups, accumulate, *vectorized)
    flops = 2 * dz.pixels * F * window.size**2 * N
    return KernelCall(kernel, tile.threads * tiles, args, tile.threads, tile.shared_bytes, flops)
