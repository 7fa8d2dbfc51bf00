"""Convolutions' kernels as the forward pass and the data gradient read them, packed in one launch (kernels/pack_weights.cu).

forward   (F, size*size, C/groups)        of implicit_gemm.cu, as plan/cuda/weights.py packs it
depthwise (size*size, C)                  of direct.cu and depthwise_gradient.cu
gradient  (C, size*size, F/groups)        of the data gradient: taps rotated for implicit_gemm.cu, not for data_gradient*.cu

The last axis is rounded up to 8 and zero there, but of depthwise kernels. `source` and `target` are offsets in two flat buffers:
of weights, float32, where a kernel is (F, C/groups, size, size); and of packed weights, where offsets are multiples of 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ....array import Array
from ..algorithms import align_channels
from .kernel_call import KernelCall
from .segments import BLOCK, first_blocks


class Packing(NamedTuple):
    """A packed kernel: rows, taps, valid and padded length of a row; the steps in the source of its groups, rows and elements."""

    source: int
    target: int
    rows: int
    taps: int
    inner: int
    padded: int
    group_rows: int
    group_step: int
    row_step: int
    inner_step: int
    rotated: int

    @property
    def size(self) -> int:
        """Elements of the packed kernel."""
        return self.rows * self.taps * self.padded


def pack_forward(source: int, target: int, F: int, C: int, size: int, groups: int) -> Packing:
    """Pack a kernel for the forward pass."""
    taps, inner = size * size, C // groups
    return Packing(source, target, F, taps, inner, align_channels(inner), F, 0, inner * taps, taps, 0)


def pack_gradient(source: int, target: int, F: int, C: int, size: int, groups: int, rotated: bool) -> Packing:
    """Pack a kernel for the gradient of the convolution's input; rotated: for kernels/implicit_gemm.cu."""
    taps, inner, rows = size * size, F // groups, C // groups
    steps = (inner * rows * taps, taps, rows * taps)
    return Packing(source, target, C, taps, inner, align_channels(inner), rows, *steps, rotated)


def pack_depthwise(source: int, target: int, C: int, size: int) -> Packing:
    """Pack a depthwise kernel (C, 1, size, size) to (size*size, C), for both passes."""
    taps = size * size
    return Packing(source, target, 1, taps, C, C, 1, 0, 0, taps, 0)


def descriptors(packings: Sequence[Packing]) -> tuple[np.ndarray, int]:
    """Return what the kernel reads, an int32 array (packings, 12), and its blocks."""
    first, blocks = first_blocks(p.size for p in packings)
    rows = [(block, *p) for block, p in zip(first, packings, strict=True)]
    return np.array(rows, np.int32).reshape(len(rows), 12), blocks


def pack_weights(weights: Array, packed: Array, packings: Array, blocks: int, precision: str) -> KernelCall:
    """Pack weights, float32, to `packed`, float16 or float32, which is rounded to TF32 if that is the precision."""
    args = (weights, packed, packings, len(packings), precision == "tf32")
    return KernelCall("pack_weights.pack_weights", blocks * BLOCK, args, BLOCK)
