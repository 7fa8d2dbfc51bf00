"""Winograd's filtering in training: the forward, and both gradients, of 3 x 3 convolutions of stride 1 (`plan/cpu/winograd.py`).

y = A'[(G g G') * (B' d B)]A, so that with dm = A dy A' the gradients are dg = G'[sum over tiles of (B' d B) * dm]G, and dd is
the convolution of dy with the rotated kernel. All three multiply 36 positions of 6 x 6 tiles instead of 9 taps of 16 pixels.

Measured, at 64 to 512 channels: differences of 1e-6 to 5e-6 of the largest value from im2col (plain gemms: 5e-7).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ....backend.threads import split_range
from ...steps import Convolve
from ..command_list import CommandList, Task, TaskStages
from ..winograd import BAND_SIZE, Winograd, as_strided, transforms
from . import fused
from .pixels import MIN_TASKS

COPIED, TRANSFORMED, KERNEL = 12, 60, 150  # time per element of a patch, a tile, a kernel, in operations of a gemm
M = 4  # outputs of a tile, vertically and horizontally
POSITIONS = (M + 2) ** 2
MIN_BAND_TILES = 96  # of a band that is transformed and multiplied in cache; with fewer, weights are read too often
CHUNK_SIZE = 1 << 23  # elements of transformed inputs and products that tasks share: 32 MB
COLUMNS = 1 << 13  # columns of the kernels' transform that a task computes
Written = Callable[
    [CommandList, int, int], None
]  # (commands, first pixel, end pixel): called when these results are written


def pays(step: Convolve, batch: int) -> bool:
    """Return whether Winograd is faster than im2col for a convolution's forward and gradients, by a rough model."""
    if (step.size, step.strides, step.dilation, step.pad, step.groups) != (3, (1, 1), 1, 1, 1):
        return False
    (C, H, W), F = step.xs[0].shape, step.y.shape[0]
    tiles = batch * -(-H // M) * -(-W // M)
    direct = 18 * C * F * batch * H * W + 9 * (C + F) * batch * H * W * COPIED
    transformed = 2 * POSITIONS * C * F * tiles + POSITIONS * ((C + F) * tiles * TRANSFORMED + C * F * KERNEL)
    return min(C, F) >= 16 and transformed < direct


def transform_kernel(matrix: np.ndarray, U: np.ndarray, rotated: bool) -> TaskStages:
    """Return the stage that writes U (36, C*F) = G g G' from the weights' matrix (9 * C, F), rotated by 180 degrees if asked."""
    G = transforms(M)[1]
    GG = np.kron(G, G).astype(np.float32)
    GG = np.ascontiguousarray(GG[:, ::-1]) if rotated else GG
    taps = matrix.reshape(9, -1)

    def task(a: int, b: int) -> Task:
        return lambda commands: commands.record(np.matmul, GG, taps[:, a:b], out=U[:, a:b])

    return [[task(*r) for r in split_range(taps.shape[1], COLUMNS)]]


class WinogradPass(Winograd):
    """One of the passes: from x (N, H, W, C) to y (N, H, W, F), which is written or, with `adds`, added to.

    U: the transformed kernels (36, C, F), computed before. written: called for each part of y.
    """

    def __init__(
        self, step: Convolve, x: np.ndarray, y: np.ndarray, U: np.ndarray, adds: bool = False,
        written: Written = lambda commands, first, end: None,
    ):  # fmt: skip
        super().__init__(step, x, y, (U, np.zeros(y.shape[3], np.float32)), lambda bias: self._store, M)
        self.tile_rows, self.adds, self.written = self.N * self.TH, adds, written
        self.chunk = max(1, CHUNK_SIZE // (POSITIONS * (self.C + self.F) * self.TW))  # rows of tiles

    def _store(
        self, commands: CommandList, n: int, r0: int, r1: int, f0: int, f1: int, values: np.ndarray | None = None
    ) -> None:
        assert values is not None
        target = self.y[n, r0:r1, :, f0:f1]
        if self.adds:
            commands.record(np.add, target, values, out=target)
        else:
            commands.record(np.copyto, target, values)
        self._report(commands, n, r0, r1)

    def _report(self, commands: CommandList, n: int, r0: int, r1: int) -> None:
        self.written(commands, (n * self.H + r0) * self.W, (n * self.H + r1) * self.W)

    def output_transform(self, commands: CommandList, products: np.ndarray, t0: int, t1: int) -> None:
        """Record A' m A of m (positions, tiles, F) into rows of tiles t0 to t1 of y."""
        if not fused.available():
            super().output_transform(commands, products, t0, t1)
            return
        lines, done = commands.scratch("lines", M + 2, M * self.TW, self.F), 0
        for n, a, b in self.split_by_image(t0, t1):
            part = products[:, done * self.TW : (done + b - a) * self.TW]
            y, ld = fused.flat(self.y[n]), self.y.strides[2] // self.y.itemsize
            arguments: Any = a, b, self.AT[:, : M + 2].copy(), y, ld, self.H, self.W, self.F, self.adds, lines
            commands.record(fused.kernels().winograd_output, fused.flat(part), step_of(part), *arguments)
            self._report(commands, n, M * a, min(M * b, self.H))
            done += b - a

    def stages(self) -> TaskStages:
        """Return the stages: one of bands, or for each chunk of tiles transforms, products, transforms back."""
        band = BAND_SIZE // (POSITIONS * max(self.C, self.F))
        if min(band, self.tile_rows * self.TW // MIN_TASKS) >= MIN_BAND_TILES:
            height = max(1, min(band // self.TW, self.tile_rows // MIN_TASKS))
            return [[partial(self.band, *t) for t in split_range(self.tile_rows, height)]]
        stages: TaskStages = []
        for t0, t1 in split_range(self.tile_rows, self.chunk):
            rows = split_range(t1 - t0, -(-(t1 - t0) // MIN_TASKS))
            stages += [
                [partial(self.transform_inputs, t0, t1, a, b) for a, b in rows],
                [partial(self.multiply, t0, t1, q) for q in range(POSITIONS)],
                [partial(self.transform_outputs, t0, t1, a, b) for a, b in rows],
            ]
        return stages

    def chunk_memory(self, commands: CommandList, name: str, t0: int, t1: int, channels: int) -> np.ndarray:
        """Return shared memory (36, tiles, channels) for rows of tiles t0 to t1."""
        return commands.shared(name, POSITIONS, (t1 - t0) * self.TW, channels)

    def input_transform(self, commands: CommandList, V: np.ndarray, t0: int, t1: int) -> None:
        """Record B' d B of rows of tiles t0 to t1 -> V (positions, tiles, C)."""
        if not fused.available():
            super().input_transform(commands, V, t0, t1)
            return
        scratch, done = commands.scratch("lines", M + 2, M * self.TW + 2, self.C), 0
        for n, a, b in self.split_by_image(t0, t1):
            top, bottom = max(0, M * a - 1), min(self.H, M * b + 1)
            rows = contiguous_rows(commands, self.x[n], top, bottom)
            part = V[:, done * self.TW : (done + b - a) * self.TW]
            arguments = self.H, self.W, self.C, top, a, b, self.BT, fused.flat(part), step_of(part), scratch
            commands.record(fused.kernels().winograd_input, rows, *arguments)
            done += b - a

    def transform_inputs(self, t0: int, t1: int, a: int, b: int, commands: CommandList) -> None:
        """Record the transform of the input of rows a to b of a chunk."""
        V = self.chunk_memory(commands, "V", t0, t1, self.C)[:, a * self.TW : b * self.TW]
        self.input_transform(commands, V, t0 + a, t0 + b)

    def multiply(self, t0: int, t1: int, q: int, commands: CommandList) -> None:
        """Record the product of one position of all tiles of a chunk."""
        V, product = (self.chunk_memory(commands, k, t0, t1, c)[q] for k, c in (("V", self.C), ("M", self.F)))
        commands.record(np.matmul, V, self.U[q], out=product)

    def transform_outputs(self, t0: int, t1: int, a: int, b: int, commands: CommandList) -> None:
        """Record the transform of the products of rows a to b of a chunk, back to results."""
        products = self.chunk_memory(commands, "M", t0, t1, self.F)[:, a * self.TW : b * self.TW]
        self.output_transform(commands, products, t0 + a, t0 + b)

    def filter_gradient(self, dz: np.ndarray, out: np.ndarray) -> TaskStages:
        """Return the stages that write the gradient of the weights, out (9 * C, F), from x and dz (N, H, W, F)."""
        CF = self.C * self.F
        stages: TaskStages = []
        for t0, t1 in split_range(self.tile_rows, self.chunk):
            rows = split_range(t1 - t0, -(-(t1 - t0) // MIN_TASKS))
            both: list[Task] = [partial(self.transform_inputs, t0, t1, a, b) for a, b in rows]
            both += [partial(self.transform_gradients, dz, t0, t1, a, b) for a, b in rows]
            stages += [both, [partial(self.accumulate, t0, t1, q) for q in range(POSITIONS)]]
        G = transforms(M)[1]
        GG = np.ascontiguousarray(np.kron(G, G).T.astype(np.float32))
        taps = out.reshape(9, CF)

        def back(a: int, b: int) -> Task:
            return lambda commands: commands.record(
                np.matmul, GG, commands.shared("dU", POSITIONS, CF)[:, a:b], out=taps[:, a:b]
            )

        stages.append([back(*r) for r in split_range(CF, COLUMNS)])
        return stages

    def accumulate(self, t0: int, t1: int, q: int, commands: CommandList) -> None:
        """Record the sum over the tiles of a chunk, at one position, of input times gradient; later chunks are added."""
        V, D = (self.chunk_memory(commands, k, t0, t1, c)[q] for k, c in (("V", self.C), ("M", self.F)))
        total = commands.shared("dU", POSITIONS, self.C, self.F)[q]
        if t0 == 0:
            commands.record(np.matmul, V.T, D, out=total)
            return
        product = commands.scratch("product", self.C, self.F)
        commands.record(np.matmul, V.T, D, out=product)
        commands.record(np.add, total, product, out=total)

    def transform_gradients(self, dz: np.ndarray, t0: int, t1: int, a: int, b: int, commands: CommandList) -> None:
        """Record A dz A' of rows a to b of a chunk: along columns, then along rows. Outside dz it is 0."""
        A = np.ascontiguousarray(transforms(M)[2].T.astype(np.float32))  # (6, 4)
        target = self.chunk_memory(commands, "M", t0, t1, self.F)[:, a * self.TW : b * self.TW]
        if not fused.available():
            self._transform_gradients(commands, A, dz, target, t0 + a, t0 + b)
            return
        scratch, done = commands.scratch("lines", M + 2, M * self.TW, self.F), 0
        for n, first, end in self.split_by_image(t0 + a, t0 + b):
            top, bottom = M * first, min(self.H, M * end)
            rows = contiguous_rows(commands, dz[n], top, bottom)
            part = target[:, done * self.TW : (done + end - first) * self.TW]
            arguments = self.H, self.W, self.F, top, first, end, A, fused.flat(part), step_of(part), scratch
            commands.record(fused.kernels().winograd_gradient, rows, *arguments)
            done += end - first

    def _transform_gradients(
        self, commands: CommandList, A: np.ndarray, dz: np.ndarray, target: np.ndarray, t0: int, t1: int
    ) -> None:
        """Record the same with NumPy, where it is two stacks of small gemms."""
        R, k, F, W, H = t1 - t0, M + 2, self.F, self.W, self.H
        columns = commands.scratch("half transformed", R, k, self.TW * M, F)
        if self.TW * M > W:
            commands.record(columns[:, :, W:].fill, 0)
        done = 0
        for n, first, end in self.split_by_image(t0, t1):
            flat = contiguous_rows(commands, dz[n], M * first, min(H, M * end)).reshape(-1, W * F)
            for t in range(first, end):
                piece, height = columns[done + t - first], min(H, M * t + M) - M * t
                out = as_strided(piece, (k, W * F), (piece.strides[0], piece.itemsize))
                source = flat[M * (t - first) : M * (t - first) + height]
                commands.record(np.matmul, A[:, :height], source, out=out)
            done += end - first
        tiles = columns.reshape(R, k, self.TW, M, F)
        view = as_strided(target, (R, k, self.TW, k, F), self.tile_strides(target))
        commands.record(np.matmul, A, tiles, out=view)


def step_of(V: np.ndarray) -> int:
    """Return the elements from one position to the next of V (36, tiles, channels)."""
    return V.strides[0] // V.itemsize


def contiguous_rows(commands: CommandList, x: np.ndarray, top: int, bottom: int) -> np.ndarray:
    """Return rows of x (H, W, C) as flat memory; those of a part of a map are copied to scratch."""
    rows = x[top:bottom]
    if rows.flags.c_contiguous:
        return rows.reshape(-1)
    copy = commands.scratch("rows", *rows.shape)
    commands.record(np.copyto, copy, rows)
    return copy.reshape(-1)
