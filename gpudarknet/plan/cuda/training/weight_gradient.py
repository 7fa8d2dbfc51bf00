"""Gradients of convolutions' kernels (kernels/weight_gradient.cu, weight_gradient_fma.cu; cuDNN's ConvolutionBackwardFilter).

The result is float32 in the layout of the network's weights, (F, C/groups, size, size). Tensor cores multiply float16, or float32
rounded to TF32, which both need maps aligned to 16 bytes. Else, and for fp32, the sums of products are float32 throughout (FMA).
"""

from __future__ import annotations

from typing import NamedTuple

from ....array import Array
from ..tiles import DeviceProperties, Tile
from ..time_model import Gemm
from ..view import View
from .convolution import Window
from .fma_tile import FmaTile
from .kernel_call import KernelCall

TENSOR_TILES = {  # by kernel
    "weight_gradient.weight_gradient_128x128": Tile(128, 128, 64, 32, 3),
    "weight_gradient.weight_gradient_64x128": Tile(64, 128, 32, 64, 4),
    "weight_gradient.weight_gradient_64x64": Tile(64, 64, 32, 32, 5),
}
MIN_STEPS = 8  # buffers of pixels that a split multiplies, at least
MAX_SPLITS = 64
BLOCKS = 2  # of a multiprocessor at a time


FMA_TILES = {
    "weight_gradient_fma.weight_gradient_fma_128x128": FmaTile(128, 128, 8),
    "weight_gradient_fma.weight_gradient_fma_64x64": FmaTile(64, 64, 4),
    "weight_gradient_fma.weight_gradient_fma_32x32": FmaTile(32, 32, 4),
}
TILES: dict[str, Tile | FmaTile] = {**TENSOR_TILES, **FMA_TILES}
FMA_PIXELS, BUFFER_BYTES = 8, 64  # of a buffer: pixels without tensor cores, bytes of one channel with them


class WeightGradient(NamedTuple):
    """A kernel for the gradient of a convolution's kernel, and how many splits of the pixels share each tile.

    tiles: of the product of all groups. partial: float32 elements of the workspace for sums of splits. counters: int32 elements,
    zero before and after a launch; launches in a row may share both.
    """

    kernel: str
    splits: int
    tiles: int

    @property
    def partial(self) -> int:
        """Elements of the workspace."""
        tile = TILES[self.kernel]
        return self.splits * self.tiles * tile.M * tile.N if self.splits > 1 else 0

    @property
    def counters(self) -> int:
        """Counters."""
        return self.splits * self.tiles if self.splits > 1 else 0


def columns(kernel: str, x: View, size: int, groups: int) -> int:
    """Return the columns of the product: taps and channels of a group, which tensor cores need in whole chunks of 16 bytes."""
    C, width = x.shape[0] // groups, 16 // x.a.itemsize if kernel in TENSOR_TILES else 1
    return size**2 * -(-C // width) * width


def supports_tensor_cores(dz: View, x: View, groups: int, device: DeviceProperties, precision: str) -> bool:
    """Return whether the kernels on tensor cores can compute it in a precision."""
    width = 16 // x.a.itemsize
    aligned = all(m.is_aligned(width) and (groups == 1 or m.shape[0] // groups % width == 0) for m in (dz, x))
    return aligned and (precision == "fp16" or (precision == "tf32" and device.compute_capability >= 80))


def choose(dz: View, x: View, size: int, groups: int, device: DeviceProperties, precision: str) -> WeightGradient:
    """Choose a kernel, and as many splits as fill the device once: the largest tile that filters and columns fill by half."""
    tensor = supports_tensor_cores(dz, x, groups, device, precision)
    F = dz.shape[0] // groups
    for kernel, tile in (TENSOR_TILES if tensor else FMA_TILES).items():
        N = columns(kernel, x, size, groups)
        if F > tile.M // 2 and N > tile.N // 2 and tile.shared_bytes <= device.shared_memory:
            break
    tiles, pixels = tile.count(F, N) * groups, BUFFER_BYTES // x.a.itemsize if tensor else FMA_PIXELS
    most = -(-dz.pixels // (pixels * MIN_STEPS))
    splits = max(1, min(BLOCKS * device.multiprocessors // tiles, most, MAX_SPLITS))
    return WeightGradient(kernel, splits, tiles)


def weight_gradient(
    chosen: WeightGradient, dz: View, x: View, dw: Array, window: Window, groups: int, partial: Array | None,
    counters: Array | None, accumulate: bool,
) -> KernelCall:  # fmt: skip
    """Compute dw (F, C/groups, size, size) from dz (N, OH, OW, F) and x (N, H, W, C); accumulate: add it to what dw holds.

    partial and counters are needed if there are splits.
    """
    tile, F, C = TILES[chosen.kernel], dz.shape[0] // groups, x.shape[0] // groups
    geometry = (*x.shape[1:], *dz.shape[1:], *window.arguments, dz.ld, x.ld, groups, chosen.splits, accumulate)
    args = (dz, x, dw, partial, counters, dz.pixels, F, C, *geometry)
    gemm = Gemm(F, columns(chosen.kernel, x, window.size, groups), dz.pixels, groups)
    threads = tile.threads * chosen.tiles * chosen.splits
    return KernelCall(chosen.kernel, threads, args, tile.threads, tile.shared_bytes, gemm=gemm)
