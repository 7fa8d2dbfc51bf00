"""Convolution in training and its two gradients, as gemms on patches that stay in cache.

Weights and their gradients are matrices (size * size * C, F): rows by tap, then channel (HWIO). Nothing is packed: the forward
multiplies patches by the matrix, the weights' gradient is the patches' transpose times dz, and the input's is dz times the
matrix's transpose, added up tap by tap. With few pixels, the weights are the larger matrix: then all tasks share the patches, and
each takes a part of the weights.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ....backend.threads import split_range
from ...steps import Convolve
from ..command_list import CommandList, Task, TaskStages
from ..convolution import MIN_CONTIGUOUS_CHANNELS, MIN_GEMM_ROWS, channel_scratch, copy_padded
from . import fused
from .pixels import MIN_TASKS, as_pixels

COL_SIZE = 1 << 18  # elements of the patches of a piece: 1 MB
MAX_SHARED = 1 << 23  # elements of patches that tasks share: 32 MB
MAX_PARTIAL = 1 << 24  # elements of the partial sums of a weights' gradient: 64 MB
MAX_PARTS = 16  # partial sums of a weights' gradient

as_strided = np.lib.stride_tricks.as_strided


class Piece(NamedTuple):
    """Rows r0 to r1 of the images n0 to n1; several images only as a whole."""

    n0: int
    n1: int
    r0: int
    r1: int


class Convolution:
    """A Convolve step with one group, for a batch: x (N, H, W, C) -> z (N, OH, OW, F), contiguous. matrix: the weights."""

    def __init__(self, step: Convolve, x: np.ndarray, z: np.ndarray, matrix: np.ndarray):
        self.step, self.x, self.z, self.matrix = step, x, as_pixels(z), matrix
        (self.N, self.H, self.W, self.C), (self.OH, self.OW, self.F) = x.shape, z.shape[1:]
        self.K, self.taps = len(matrix), step.size * step.size
        self.pixels = self.N * self.OH * self.OW
        self.is_matrix = (step.size, step.strides, step.pad) == (1, (1, 1), 0)  # x is the patches
        pixels = max(MIN_GEMM_ROWS, COL_SIZE // max(self.K, self.F))
        self.few_pixels = self.pixels < MIN_TASKS * MIN_GEMM_ROWS
        self.pieces = self.split(min(pixels, -(-self.pixels // MIN_TASKS)))

    def split(self, pixels: int) -> list[Piece]:
        """Split the batch into pieces of about so many output pixels."""
        image = self.OH * self.OW
        if pixels >= image:
            return [Piece(*n, 0, self.OH) for n in split_range(self.N, pixels // image)]
        return [Piece(n, n + 1, *r) for n in range(self.N) for r in split_range(self.OH, max(1, pixels // self.OW))]

    def range_of(self, p: Piece) -> tuple[int, int]:
        """Return the output pixels (from, to) of a piece."""
        return (p.n0 * self.OH + p.r0) * self.OW, ((p.n1 - 1) * self.OH + p.r1) * self.OW

    def patches(self, commands: CommandList, p: Piece, out: np.ndarray | None = None) -> np.ndarray:
        """Record the patches of a piece: (pixels, K), in scratch or in `out`."""
        step, C, size, OW, R = self.step, self.C, self.step.size, self.OW, p.r1 - p.r0
        if self.is_matrix:
            first, end = self.range_of(p)
            return as_pixels(self.x)[first:end]
        first, end = self.range_of(p)
        if fused.available():
            band, (sy, sx) = (p.n0 * self.OH + p.r0, (p.n1 - 1) * self.OH + p.r1), step.strides
            geometry = self.H, self.W, C, self.OH, OW, size, sy, sx, step.dilation, step.pad
            arguments = fused.flat(self.x), fused.step(self.x), *geometry, *band
            if C < MIN_CONTIGUOUS_CHANNELS and out is None:
                planes = commands.scratch("col", self.K, end - first)
                fused.record(commands, fused.kernels().planar_patches, *arguments, planes)
                return planes.T
            col = commands.scratch("col", end - first, self.K) if out is None else out
            fused.record(commands, fused.kernels().patches, *arguments, col.reshape(-1))
            return col
        col = channel_scratch(commands, "col", C, end - first, self.K) if out is None else out
        (sy, sx), d, extent = step.strides, step.dilation, (size - 1) * step.dilation + 1
        for n in range(p.n0, p.n1):
            padded = channel_scratch(commands, "padded", C, (R - 1) * sy + extent, (OW - 1) * sx + extent, C)
            copy_padded(commands, self.x[n], p.r0 * sy - step.pad, -step.pad, padded)
            a, b, c = padded.strides
            windows = as_strided(padded, (R, OW, size, size, C), (sy * a, sx * b, d * a, d * b, c))
            rows = col[(n - p.n0) * R * OW : (n - p.n0 + 1) * R * OW]
            e, f = rows.strides
            target = as_strided(rows, windows.shape, (OW * e, e, size * C * f, C * f, f))
            commands.record(np.copyto, target, windows)
        return col

    def shared_patches(self, commands: CommandList) -> np.ndarray:
        """Return memory for the patches of the whole batch, which all workers share."""
        return as_pixels(self.x) if self.is_matrix else commands.shared("col", self.pixels, self.K)

    def share_patches(self) -> TaskStages:
        """Return the stage that writes the shared patches."""
        if self.is_matrix:
            return []

        def image(n: int) -> Task:
            def record(commands: CommandList) -> None:
                first = n * self.OH * self.OW
                out = self.shared_patches(commands)[first : first + self.OH * self.OW]
                self.patches(commands, Piece(n, n + 1, 0, self.OH), out)

            return record

        return [[image(n) for n in range(self.N)]]

    def forward(self) -> TaskStages:
        """Return the stages that write z."""

        def piece(p: Piece) -> Task:
            def record(commands: CommandList) -> None:
                first, end = self.range_of(p)
                commands.record(np.matmul, self.patches(commands, p), self.matrix, out=self.z[first:end])

            return record

        def filters(f0: int, f1: int) -> Task:
            def record(commands: CommandList) -> None:
                col = self.shared_patches(commands)
                commands.record(np.matmul, col, self.matrix[:, f0:f1], out=self.z[:, f0:f1])

            return record

        if self.few_pixels:
            return [*self.share_patches(), [filters(*f) for f in split_range(self.F, max(16, -(-self.F // MIN_TASKS)))]]
        return [[piece(p) for p in self.pieces]]

    def filter_gradient(self, dz: np.ndarray, out: np.ndarray) -> TaskStages:
        """Return the stages that write the gradient of the weights, out (K, F), from dz (N, OH, OW, F)."""
        d, K, F = as_pixels(dz), self.K, self.F
        parts = min(MAX_PARTS, MAX_PARTIAL // (K * F), len(self.pieces))

        def rows(k0: int, k1: int) -> Task:
            return lambda commands: commands.record(
                np.matmul, self.shared_patches(commands)[:, k0:k1].T, d, out=out[k0:k1]
            )

        if self.few_pixels or (parts < MIN_TASKS and self.pixels * K <= MAX_SHARED):
            return [*self.share_patches(), [rows(*k) for k in split_range(K, max(16, -(-K // MIN_TASKS)))]]

        def part(number: int, a: int, b: int) -> Task:
            def record(commands: CommandList) -> None:
                total = commands.shared("parts", parts, K, F)[number] if parts > 1 else out
                for k, p in enumerate(self.pieces[a:b]):
                    first, end = self.range_of(p)
                    target = commands.scratch("product", K, F) if k else total
                    commands.record(np.matmul, self.patches(commands, p).T, d[first:end], out=target)
                    if k:
                        commands.record(np.add, total, target, out=total)

            return record

        parts = max(1, parts)
        count = len(self.pieces)
        stages: TaskStages = [[part(n, count * n // parts, count * (n + 1) // parts) for n in range(parts)]]
        if parts > 1:

            def total(k0: int, k1: int) -> Task:
                def record(commands: CommandList) -> None:
                    sums = commands.shared("parts", parts, K, F)
                    commands.record(np.add, sums[0, k0:k1], sums[1, k0:k1], out=out[k0:k1])
                    for n in range(2, parts):
                        commands.record(np.add, out[k0:k1], sums[n, k0:k1], out=out[k0:k1])

                return record

            stages.append([total(*k) for k in split_range(K, max(1, (1 << 14) // F))])
        return stages

    def data_gradient(self, dz: np.ndarray, dx: np.ndarray, adds: bool) -> TaskStages:
        """Return the stages that write dx (N, H, W, C), or add to it, from dz (N, OH, OW, F)."""
        d, C, F = as_pixels(dz), self.C, self.F
        if self.is_matrix:
            return self._matrix_data_gradient(d, as_pixels(dx), adds)
        weights = self.matrix.reshape(self.taps, C, F)
        if self.few_pixels:  # reading the weights dominates: each part of them is read once
            images, blocks = [(0, self.N)], max(1, min(MIN_TASKS, C // 16))
        else:
            images = split_range(self.N, 1)
            blocks = max(1, min(-(-MIN_TASKS // len(images)), C // 32))
        channels = split_range(C, -(-C // blocks))

        def task(n0: int, n1: int, c0: int, c1: int) -> Task:
            def record(commands: CommandList) -> None:
                if not adds:
                    commands.record(dx[n0:n1, :, :, c0:c1].fill, 0)
                pixels = max(MIN_GEMM_ROWS, COL_SIZE // (self.taps * (c1 - c0)))
                if n1 - n0 > 1 or pixels >= self.OH * self.OW:
                    bands = [(0, self.OH)]
                else:
                    bands = split_range(self.OH, max(1, pixels // self.OW))
                for r0, r1 in bands:
                    self._scatter(commands, d, weights[:, c0:c1], dx[n0:n1, :, :, c0:c1], n0, r0, r1)

            return record

        return [[task(*n, *c) for n in images for c in channels]]

    def _scatter(
        self, commands: CommandList, d: np.ndarray, weights: np.ndarray, dx: np.ndarray, n0: int, r0: int, r1: int
    ) -> None:
        """Record adding to dx (images, H, W, c) what rows r0 to r1 of dz contribute. weights: (taps, c, F)."""
        step, OH, OW, (n, H, W, c) = self.step, self.OH, self.OW, dx.shape
        first = (n0 * OH + r0) * OW
        pixels = (n - 1) * OH * OW + (r1 - r0) * OW
        if c * self.taps == self.K:
            products = commands.scratch("products", pixels, self.taps, c)
            matrix = weights.reshape(self.K, self.F).T
            commands.record(np.matmul, d[first : first + pixels], matrix, out=products.reshape(pixels, self.K))
            by_tap = products.transpose(1, 0, 2)
        else:
            by_tap = products = commands.scratch("products", self.taps, pixels, c)
            commands.record(np.matmul, d[first : first + pixels], weights.transpose(0, 2, 1), out=by_tap)
        (sy, sx), size = step.strides, step.size
        if fused.available():
            flat, target = products.reshape(-1), fused.flat(dx)
            pixel, by = (self.taps * c, c) if c * self.taps == self.K else (c, pixels * c)
            numbers = fused.step(dx), H, W, OH, OW, size, sy, sx, step.dilation, step.pad, n, r0, r1
            fused.record(commands, fused.kernels().add_patches, flat, pixel, by, c, target, *numbers)
            return
        for tap in range(self.taps):
            p, q = divmod(tap, size)
            y0, i0, i1 = inside(p * step.dilation - step.pad, sy, r0, r1, H)
            x0, j0, j1 = inside(q * step.dilation - step.pad, sx, 0, OW, W)
            if i0 >= i1 or j0 >= j1:
                continue
            product = by_tap[tap].reshape(n, r1 - r0, OW, c)[:, i0 - r0 : i1 - r0, j0:j1]
            target = dx[:, y0 : y0 + (i1 - i0 - 1) * sy + 1 : sy, x0 : x0 + (j1 - j0 - 1) * sx + 1 : sx]
            commands.record(np.add, target, product, out=target)

    def _matrix_data_gradient(self, d: np.ndarray, dx: np.ndarray, adds: bool) -> TaskStages:
        """Return the stage for a 1 x 1 convolution: dx (pixels, C) = d (pixels, F) times the weights' transpose."""
        matrix, C = self.matrix.T, self.C

        def task(a: int, b: int, c0: int, c1: int) -> Task:
            def record(commands: CommandList) -> None:
                target = dx[a:b, c0:c1]
                out = commands.scratch("product", b - a, c1 - c0) if adds else target
                commands.record(np.matmul, d[a:b], matrix[:, c0:c1], out=out)
                if adds:
                    commands.record(np.add, target, out, out=target)

            return record

        if self.few_pixels:
            return [[task(0, self.pixels, *c) for c in split_range(C, max(16, -(-C // MIN_TASKS)))]]
        return [[task(*self.range_of(p), 0, C) for p in self.pieces]]


def inside(offset: int, stride: int, first: int, end: int, length: int) -> tuple[int, int, int]:
    """Return which of the windows first to end - 1 read a pixel of 0 to length - 1 with a tap at `offset` from their start.

    Returns that pixel of the first such window, the first such window, and the end.
    """
    begin = max(first, -(offset // stride) if offset < 0 else first)
    stop = min(end, (length - 1 - offset) // stride + 1)
    return begin * stride + offset, begin, max(begin, stop)
