"""Weights of convolutions in the layouts that the algorithms read, on the device.

hwio        (size*size*C, F), float32
depthwise   (size*size, C)
ohwi        (F, size*size*C/groups), both rounded up to 8
winograd    (16, F, C), transformed, both rounded up to 8
implicit_gemm  (F, size*size, C/groups), C/groups rounded up to 8; image_gemm: as ohwi; both rounded to TF32 if float32
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from ...array import Array
from ...backend import Backend
from ...layers.convolutional import fold_batch_norm
from ..steps import Convolve
from .algorithms import ALGORITHMS, align_channels
from .schedule import Schedule

# G of Lavin and Gray: transforms a 3 x 3 kernel's rows and columns.
WINOGRAD_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])


def weight_shape(step: Convolve, layout: str) -> tuple[int, ...]:
    """Return the shape of a kernel in a layout."""
    F, C, taps, g = step.y.shape[0], step.xs[0].shape[0] // step.groups, step.size**2, step.groups
    rows = align_channels(F) if g == 1 else F
    return {
        "hwio": (taps * C, F),
        "depthwise": (taps, F),
        "ohwi": (rows, align_channels(C * taps)),
        "winograd": (16, rows, align_channels(C)),
        "implicit_gemm": (F, taps * align_channels(C)),
        "image_gemm": (F, align_channels(C * taps)),
    }[layout]


def weight_bytes(step: Convolve, layout: str, itemsize: int) -> int:
    """Return the bytes of a convolution's kernel and bias on the device."""
    return prod(weight_shape(step, layout)) * (4 if layout == "hwio" else itemsize) + 4 * step.y.shape[0]


def pack_weights(step: Convolve, layout: str, kernel: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Convert a kernel (F, C/groups, size, size) to a layout, padded with zeros."""
    shape, F = weight_shape(step, layout), len(kernel)
    with np.errstate(over="ignore"):  # what float16 cannot hold becomes inf
        if layout == "winograd":
            packed = np.zeros(shape, dtype)
            positions = np.matmul(np.kron(WINOGRAD_G, WINOGRAD_G), kernel.reshape(-1, 9).T.astype(np.float64))
            packed[:, :F, : kernel.shape[1]] = positions.reshape(16, *kernel.shape[:2])
            return packed
        rows = kernel.transpose(0, 2, 3, 1).reshape(F, -1)  # taps, then channels
        if layout == "implicit_gemm":
            channels = kernel.shape[1]
            aligned = ((0, 0), (0, 0), (0, align_channels(channels) - channels))
            rows = np.pad(rows.reshape(F, -1, channels), aligned).reshape(F, -1)
        if layout in ("hwio", "depthwise"):
            return np.ascontiguousarray(rows.T, np.float32 if layout == "hwio" else dtype)
        packed = np.zeros(shape, dtype)
        packed[:F, : rows.shape[1]] = rows
        return round_to_tf32(packed) if layout in ("implicit_gemm", "image_gemm") and dtype == np.float32 else packed


def round_to_tf32(a: np.ndarray) -> np.ndarray:
    """Round float32 to the 10 bits of mantissa that TF32 has, ties away from zero; infinity and NaN stay."""
    bits = (a.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(a), bits.view(np.float32), a)


class PackedWeights:
    """The packed weights of a schedule's convolutions. `cache` maps keys to arrays; programs of one network share it."""

    def __init__(self, be: Backend, schedule: Schedule, dtype: np.dtype[Any], cache: dict[Any, tuple[Array, Array]]):
        self.be, self.schedule, self.dtype, self.cache = be, schedule, dtype, cache

    def layout(self, step: Convolve) -> str:
        """Return the layout that a convolution's algorithm reads."""
        return ALGORITHMS[self.schedule.algorithms[step]].weight_layout

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(weight_bytes(s, self.layout(s), self.dtype.itemsize) for s in self.schedule.algorithms)

    @property
    def ready(self) -> bool:
        """Whether all are on the device already."""
        return all(self._key(s) in self.cache for s in self.schedule.algorithms)

    def _key(self, step: Convolve) -> tuple[Any, ...]:
        group = self.schedule.fused_gemms.get(step, (step,))
        return (
            tuple((s.layers[0], s.part) for s in group),
            step.layers[0],
            step.part,
            self.dtype.name,
            self.layout(step),
        )

    def arrays(self, step: Convolve) -> tuple[Array, Array]:
        """Return the packed kernel and the bias, float32: F rounded up to 8.

        The kernels of a fused gemm are concatenated in one array, which is returned for each of its convolutions.
        """
        key = self._key(step)
        if key not in self.cache:
            group = self.schedule.fused_gemms.get(step, (step,))
            arrays = [fold_batch_norm({name: self.be.to_numpy(a) for name, a in s.w.items()}, s.binary) for s in group]
            kernels = [
                pack_weights(s, self.layout(s), w["kernel"], self.dtype) for s, w in zip(group, arrays, strict=True)
            ]
            kernel = self.be.asarray(np.concatenate(kernels) if len(group) > 1 else kernels[0])
            for s, w in zip(group, arrays, strict=True):
                bias = np.zeros(align_channels(len(w["bias"])), np.float32)  # aligned, as kernels read vectors
                bias[: len(w["bias"])] = w["bias"]
                self.cache[self._key(s)] = kernel, self.be.asarray(bias)
        return self.cache[key]

    def cached(self, key: tuple[Any, ...], make: Callable[[], tuple[Array, Array]]) -> tuple[Array, Array]:
        """Return other arrays of a layer in this storage type, made on the first call."""
        key = (*key, self.dtype.name)
        if key not in self.cache:
            self.cache[key] = make()
        return self.cache[key]
