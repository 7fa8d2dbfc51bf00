"""Convolution and its gradients (src/convolutional_layer.c): one gemm per kernel tap, without im2col.

On the CPU the work is split into tasks whose data stays in cache; all cores share them.

The padded input is first split into phases, one per residue of the stride. Then, whatever the stride, a kernel tap reads a
contiguous run of one phase: S elements per output row, of which OW are used. The matrix that a tap multiplies is therefore a
view of a phase at an offset, and neither patches nor their gradients are copied row by row. The S - OW extra elements of
each row go through the gemm and are dropped.

With few input channels or with groups, one gemm over all taps is faster (`im2col_mode`): the views are copied into a matrix of
patches.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import gcd, prod
from typing import Any

import numpy as np

from ..array import Array, ArrayBackend, KernelBackend
from ..backend.threads import Task, split_range
from .base import op
from .im2col import col2im_cuda, im2col_cuda
from .matmul import matmul

TASK_ELEMENTS = 1 << 20  # gemm results of a task: 4 MB. Smaller tasks wait for the GIL too often.
MIN_COLUMNS = 768  # output pixels of a gemm, if there are so many
MIN_TASKS = 4  # if there are so many images, so that all cores have work
MAX_PARTIAL_SUMS = 1 << 22  # elements of the kernel gradients that tasks keep until they are reduced: 16 MB
IM2COL_BELOW = 16  # with fewer input channels, or with groups, use im2col_mode
SMALL_GEMM = 10**6  # multiplications up to which OpenBLAS, with AVX-512, does not pack the matrices first


class Taps:
    """The kernel taps that read one phase: rows p and columns q of the kernel (slices), `height` x `width` of them.

    phase: its (vertical, horizontal) residue. The first tap reads from offset `start`; the tap below it `down` elements
    further, the tap to its right `right` elements further.
    """

    def __init__(self, phase: tuple[int, int], size: int, stride: tuple[int, int], dilation: int, S: int):
        def along(residue: int, s: int) -> tuple[slice, int, int, int]:
            step = s // gcd(dilation, s)
            first = next(p for p in range(size) if p * dilation % s == residue)
            return slice(first, None, step), -(-(size - first) // step), first * dilation // s, step * dilation // s

        self.p, self.height, top, down = along(phase[0], stride[0])
        self.q, self.width, left, self.right = along(phase[1], stride[1])
        self.phase, self.start, self.down = phase, top * S + left, down * S


class Geometry:
    """Which elements of which phase each kernel tap reads.

    size, stride (vertical, horizontal), dilation, pad: as in `im2col.im2col`. im2col_mode: one gemm for all taps. A phase
    has `extra_rows` more rows than the output, and S columns.
    """

    def __init__(
        self, size: int, stride: tuple[int, int], dilation: int, pad: int, OH: int, OW: int, im2col_mode: bool
    ):
        self.size, self.stride, self.pad, self.OH, self.OW, self.im2col_mode = size, stride, pad, OH, OW, im2col_mode
        reach = (size - 1) * dilation
        self.extra_rows, self.S = reach // stride[0], OW + reach // stride[1]
        self.margin = (
            self.extra_rows * self.S + reach // stride[1]
        )  # from the start of the first run to that of the last
        residues = [sorted({p * dilation % s for p in range(size)}) for s in stride]
        self.taps = [Taps((a, b), size, stride, dilation, self.S) for a in residues[0] for b in residues[1]]

    def split_phases(self, be: ArrayBackend, x: Array, first: int, rows: int) -> Array:
        """Split x (N, C, H, W), padded, into the phases that `rows` output rows from `first` on need.

        Returns a flat buffer that holds (N, phases, C, rows + extra_rows, S) and S zeros, which the last run reads.
        """
        N, C, H, W = x.shape
        shape = (N, len(self.taps), C, rows + self.extra_rows, self.S)
        buffer = be.zeros((prod(shape) + self.S,), x.dtype)
        phases = buffer[: -self.S].reshape(shape)
        for k, taps in enumerate(self.taps):
            in_phase, in_map = self.overlap(taps, H, W, first, rows)
            phases[:, k][in_phase] = x[in_map]
        return buffer

    def merge_phases(self, phases: Array, x: Array) -> None:
        """Copy phases for all output rows back into x (N, C, H, W); leave elements that no tap reads."""
        for k, taps in enumerate(self.taps):
            in_phase, in_map = self.overlap(taps, x.shape[2], x.shape[3], 0, self.OH)
            x[in_map] = phases[:, k][in_phase]

    def overlap(self, taps: Taps, H: int, W: int, first: int, rows: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Return the elements that a phase and the map have in common: (index into the phase, index into the map)."""
        r, y = inside(taps.phase[0] - self.pad + first * self.stride[0], self.stride[0], rows + self.extra_rows, H)
        c, x = inside(taps.phase[1] - self.pad, self.stride[1], self.S, W)
        return (slice(None), slice(None), r, c), (slice(None), slice(None), y, x)

    def matrices(
        self, be: ArrayBackend, buffer: Array, N: int, C: int, first: int, rows: int
    ) -> Iterator[tuple[slice, slice, Array]]:
        """Yield (p, q, the matrices (N, height, width, C, L) of these taps) for `rows` output rows from `first` on.

        L = rows * S. buffer: the result of `split_phases` for N images. In im2col_mode yield once, the patches
        (N, 1, 1, C*size*size, L).
        """
        L, every = rows * self.S, slice(None)
        length = (buffer.size - self.S) // (N * len(self.taps) * C)  # of a phase
        patches = be.empty((N, C, self.size, self.size, L), buffer.dtype) if self.im2col_mode else None
        for k, t in enumerate(self.taps):
            strides = len(self.taps) * C * length, t.down, t.right, length, 1
            view = be.strided(buffer, k * C * length + first * self.S + t.start, (N, t.height, t.width, C, L), strides)
            if patches is None:
                yield t.p, t.q, view
            else:
                patches[:, :, t.p, t.q] = view.transpose(0, 3, 1, 2, 4)
        if patches is not None:
            yield every, every, patches.reshape(N, 1, 1, -1, L)

    def backward_data(self, be: ArrayBackend, matrix: Array, dz: Array) -> Array:
        """Multiply matrix (groups, C/groups*size*size, F/groups) by dz (N, groups, F/groups, L), and sum over taps.

        Returns phases (N, phases, C, rows + extra_rows, S). The rows of matrix are by tap, then channel; in im2col_mode by
        channel, then tap.
        """
        (N, groups, _, L), taps, M = dz.shape, self.size**2, matrix.shape[1]
        C, length = groups * M // taps, self.margin + L
        products = be.empty((N * C * taps * length + self.margin,), dz.dtype)  # zeros before each run, and at the end
        runs = products[: N * C * taps * length].reshape(N, groups, M, length)
        runs[..., : self.margin], products[N * C * taps * length :] = 0, 0
        gemm(be, matrix, dz, runs[..., self.margin :])
        by_tap, by_channel = (length, taps * length) if self.im2col_mode else (C * length, length)
        phases = be.empty((N, len(self.taps), C, L // self.S + self.extra_rows, self.S), dz.dtype)
        for k, t in enumerate(self.taps):
            p, q = t.p.indices(self.size), t.q.indices(self.size)
            begin = self.margin - t.start + (p[0] * self.size + q[0]) * by_tap
            strides = (C * taps * length, p[2] * self.size * by_tap - t.down, q[2] * by_tap - t.right, by_channel, 1)
            shape = N, t.height, t.width, C, L + self.extra_rows * self.S
            phases[:, k] = be.strided(products, begin, shape, strides).sum(axis=(1, 2)).reshape(phases[:, k].shape)
        return phases


geometry_of = lru_cache(256)(Geometry)


def inside(origin: int, stride: int, count: int, pixels: int) -> tuple[slice, slice]:
    """Return which of `count` positions origin, origin + stride, ... are pixels 0 to pixels - 1, and those pixels."""
    begin = max(0, -(origin // stride))
    end = max(begin, min(count, -((origin - pixels) // stride)))
    return slice(begin, end), slice(begin * stride + origin, max(0, end * stride + origin), stride)


def gemm(be: ArrayBackend, a: Array, b: Array, out: Array) -> None:
    """out (..., M, L) = a (..., M, K) @ b (..., K, L), in blocks of rows that make small gemms, if M allows it."""
    M, K = a.shape[-2:]
    fitting = (
        n for n in (1, 2, 3, 4, 6, 8, 9, 12) if M % n == 0 and M // n * K * b.shape[-1] <= SMALL_GEMM and M // n >= 16
    )
    blocks = next(fitting, 1)
    if blocks > 1:
        a, out = (v.reshape(*v.shape[:-2], blocks, M // blocks, v.shape[-1]) for v in (a, out))
        b = b[..., None, :, :]
    be.xp.matmul(a, b, out=out)


@op
def convolve(
    be: ArrayBackend,
    x: Array,
    kernel: Array,
    groups: int,
    stride: tuple[int, int],
    dilation: int,
    pad: int,
    OH: int,
    OW: int,
) -> Array:
    """Convolve (cross-correlate) x (N, C, H, W) with kernel (F, C/groups, size, size) -> (N, F, OH, OW).

    `stride` is (vertical, horizontal); `pad` counts zeros before the first row and column.
    """
    (N, C), (F, Cg, size, _) = x.shape[:2], kernel.shape
    im2col_mode = groups > 1 or Cg < IM2COL_BELOW
    geometry = geometry_of(size, stride, dilation, pad, OH, OW, im2col_mode)
    Fg, taps, S = F // groups, 1 if im2col_mode else size, geometry.S
    if im2col_mode:
        w = kernel.reshape(groups, 1, 1, Fg, Cg * size * size)
    else:
        w = be.xp.ascontiguousarray(kernel.transpose(2, 3, 0, 1)).reshape(1, size, size, F, C)
    z = be.empty((N, F, OH, OW), x.dtype)
    row = max(C * size * size if im2col_mode else 0, F * taps * taps) * S  # intermediate elements of an output row

    def task(n0: int, n1: int, r0: int, r1: int) -> Task:
        n, rows = n1 - n0, r1 - r0

        def run() -> None:
            buffer = geometry.split_phases(be, x[n0:n1], r0, rows)
            products = be.empty((n, groups, taps, taps, Fg, rows * S), x.dtype)
            for p, q, m in geometry.matrices(be, buffer, n, C, 0, rows):
                m = m.reshape(n, groups, *m.shape[1:3], -1, rows * S) if groups > 1 else m[:, None]
                gemm(be, w[:, p, q], m, products[:, :, p, q])
            total = products.sum(axis=(2, 3)) if taps > 1 else products
            z[n0:n1, :, r0:r1] = total.reshape(n, F, rows, S)[..., :OW]

        return run

    images = split_range(N, min(TASK_ELEMENTS // (row * OH), -(-N // MIN_TASKS)))
    bands = split_range(OH, max(TASK_ELEMENTS // row, -(-MIN_COLUMNS // S)))
    be.run_parallel([task(*n, *r) for n in images for r in bands])
    return z


@convolve.kernel
def convolve_cuda(
    be: KernelBackend,
    x: Array,
    kernel: Array,
    groups: int,
    stride: tuple[int, int],
    dilation: int,
    pad: int,
    OH: int,
    OW: int,
) -> Array:
    (N, _), (F, _, size, _) = x.shape[:2], kernel.shape
    col = im2col_cuda(be, x, size, stride, dilation, pad, OH, OW).reshape(N, groups, -1, OH * OW)
    return matmul(be, kernel.reshape(groups, F // groups, -1), col).reshape(N, F, OH, OW)


@op(sums=(1,))
def convolve_backward(
    be: ArrayBackend,
    dz: Array,
    x: Array,
    kernel: Array,
    groups: int,
    stride: tuple[int, int],
    dilation: int,
    pad: int,
    skip_input_grad: int,
) -> tuple[Array | None, Array]:
    """Return dx (N, C, H, W) and dkernel (F, C/groups, size, size) of `convolve`, for dz (N, F, OH, OW).

    With skip_input_grad dx is None.
    """
    (N, C), (F, Cg, size, _), (OH, OW) = x.shape[:2], kernel.shape, dz.shape[2:]
    im2col_mode = groups > 1 or Cg < IM2COL_BELOW
    geometry = geometry_of(size, stride, dilation, pad, OH, OW, im2col_mode)
    Fg, taps, S = F // groups, 1 if im2col_mode else size, geometry.S
    order = (0, 2, 3, 4, 1) if im2col_mode else (0, 3, 4, 2, 1)  # rows by channel and tap, or by tap and channel
    w = be.xp.ascontiguousarray(kernel.reshape(groups, Fg, Cg, size, size).transpose(*order))
    row = C * size * size * S
    bands = split_range(OH, max(TASK_ELEMENTS // row, -(-MIN_COLUMNS // S)))
    band_height = bands[-1][1] - bands[-1][0]
    per_step = max(1, min(TASK_ELEMENTS // (row * OH), -(-N // MIN_TASKS)))  # images
    images = split_range(N, max(per_step, -(-N * kernel.size // MAX_PARTIAL_SUMS)))
    max_channels = max(IM2COL_BELOW, TASK_ELEMENTS // (size * size * S * band_height))
    blocks = [(0, C)] if im2col_mode else split_range(C, max_channels)
    dx = None if skip_input_grad else be.zeros(x.shape, dz.dtype)
    sums = be.zeros((len(images), groups, taps, taps, Cg * size * size if im2col_mode else C, Fg), dz.dtype)

    def task(k: int, n0: int, n1: int, c0: int, c1: int) -> Task:
        partial_sum = sums[k] if im2col_mode else sums[k, :, :, :, c0:c1]
        matrix = w.reshape(groups, -1, Fg) if im2col_mode else w[:, :, :, c0:c1].reshape(1, -1, F)

        def band(buffer: Array, images: slice, r0: int, r1: int) -> Any:
            """Add to the gradient of the kernel; return the gradient of the phases, None with skip_input_grad."""
            n, L = images.stop - images.start, (r1 - r0) * S
            padded = be.empty((n, F, r1 - r0, S), dz.dtype)
            padded[..., :OW], padded[..., OW:] = dz[images, :, r0:r1], 0
            transposed = be.xp.ascontiguousarray(padded.reshape(n, F, L).transpose(0, 2, 1))  # faster in BLAS
            transposed = transposed.reshape(n, L, groups, Fg).transpose(0, 2, 1, 3)[:, :, None, None]
            for p, q, m in geometry.matrices(be, buffer, n, c1 - c0, r0, r1 - r0):
                m = m.reshape(n, groups, *m.shape[1:3], -1, L) if groups > 1 else m[:, None]
                products = be.empty((*m.shape[:-1], Fg), dz.dtype)
                gemm(be, m, transposed, products)
                partial_sum[:, p, q] += products.sum(axis=0)
            return None if skip_input_grad else geometry.backward_data(be, matrix, padded.reshape(n, groups, Fg, L))

        def run() -> None:
            for n in range(n0, n1, per_step):
                images = slice(n, min(n + per_step, n1))
                buffer = geometry.split_phases(be, x[images, c0:c1], 0, OH)
                dphases = [band(buffer, images, *rows) for rows in bands]
                if dx is None:
                    continue
                phases = dphases[0]
                if len(bands) > 1:
                    phases = be.zeros((*phases.shape[:3], OH + geometry.extra_rows, S), dz.dtype)
                    for (r0, _), d in zip(bands, dphases, strict=True):
                        phases[..., r0 : r0 + d.shape[3], :] += d
                geometry.merge_phases(phases, dx[images, c0:c1])

        return run

    be.run_parallel([task(k, *n, *c) for k, n in enumerate(images) for c in blocks])
    total = sums.sum(axis=0)
    total = total.reshape(groups, Cg, size, size, Fg) if im2col_mode else total.transpose(0, 3, 1, 2, 4)
    return dx, be.xp.ascontiguousarray(total.transpose(0, 4, 1, 2, 3)).reshape(kernel.shape)


@convolve_backward.kernel
def convolve_backward_cuda(
    be: KernelBackend,
    dz: Array,
    x: Array,
    kernel: Array,
    groups: int,
    stride: tuple[int, int],
    dilation: int,
    pad: int,
    skip_input_grad: int,
) -> tuple[Array | None, Array]:
    (N, C, H, W), (F, _, size, _), (OH, OW) = x.shape, kernel.shape, dz.shape[2:]
    flat, dz = kernel.reshape(groups, F // groups, -1), dz.reshape(N, groups, F // groups, OH * OW)
    col = im2col_cuda(be, x, size, stride, dilation, pad, OH, OW).reshape(N, groups, -1, OH * OW)
    dkernel = matmul(be, dz, col.transpose(0, 1, 3, 2)).sum(axis=0, dtype=np.float32).reshape(kernel.shape)
    if skip_input_grad:
        return None, dkernel
    dcol = matmul(be, flat.transpose(0, 2, 1), dz).reshape(N, C, size, size, OH, OW)
    return col2im_cuda(be, dcol, H, W, stride, dilation, pad), dkernel
