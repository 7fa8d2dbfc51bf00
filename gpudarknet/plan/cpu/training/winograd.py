"""Winograd's filtering in training: the forward, and both gradients, of 3 x 3 convolutions of stride 1 (`plan/cpu/winograd.py`).

y = A'[(G g G') * (B' d B)]A, so that with dm = A dy A' the gradients are dg = G'[sum over tiles of (B' d B) * dm]G, and dd is
the convolution of dy with the rotated kernel. All three multiply 36 positions of 6 x 6 tiles instead of 9 taps of 16 pixels.

Measured, at 64 to 512 channels: differences of 1e-6 to 5e-6 of the largest value from im2col (plain gemms: 5e-7).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from ....backend.threads import split_range
from ...steps import Convolve
from ..command_list import CommandList, Task, TaskStages
from ..winograd import BAND_SIZE, Winograd, as_strided, transforms
from .pixels import MIN_TASKS

M = 4  # outputs of a tile, vertically and horizontally
POSITIONS = (M + 2) ** 2
MIN_BAND_TILES = 96  # of a band that is transformed and multiplied in cache; with fewer, weights are read too often
CHUNK_SIZE = 1 << 23  # elements of transformed inputs and products that tasks share: 32 MB
COLUMNS = 1 << 13  # columns of the kernels' transform that a task computes

# (commands, image, first row, end row, first channel, end channel, values (rows, W, channels)): what to do with the results
Store = Callable[[CommandList, int, int, int, int, int, np.ndarray], None]


def pays(step: Convolve, batch: int) -> bool:
    """Return whether Winograd is faster than im2col for a convolution's forward and gradients, by a rough model."""
    if (step.size, step.strides, step.dilation, step.pad, step.groups) != (3, (1, 1), 1, 1, 1):
        return False
    (C, H, W), F = step.xs[0].shape, step.y.shape[0]
    tiles = batch * -(-H // M) * -(-W // M)
    direct = 18 * C * F * batch * H * W + 9 * (C + F) * batch * H * W * 12
    transformed = 2 * POSITIONS * C * F * tiles + (C + F) * POSITIONS * tiles * 40 + POSITIONS * C * F * 40
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
    """One of the passes: from x (N, H, W, C) to results (N, H, W, F) that `store` gets. U: (36, C, F), transformed before."""

    def __init__(self, step: Convolve, x: np.ndarray, y: np.ndarray, U: np.ndarray, store: Store):
        super().__init__(step, x, y, (U, np.zeros(y.shape[3], np.float32)), lambda bias: store, M)  # type: ignore[arg-type,return-value]
        self.tile_rows = self.N * self.TH
        self.chunk = max(1, CHUNK_SIZE // (POSITIONS * (self.C + self.F) * self.TW))  # rows of tiles

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
            stages += [
                [partial(self.transform_inputs, t0, t1, a, b) for a, b in rows]
                + [partial(self.transform_gradients, dz, t0, t1, a, b) for a, b in rows],
                [partial(self.accumulate, t0, t1, q) for q in range(POSITIONS)],
            ]
        G = transforms(M)[1]
        GG = np.ascontiguousarray(np.kron(G, G).T.astype(np.float32))
        taps = out.reshape(9, CF)

        def back(a: int, b: int) -> Task:
            return lambda commands: commands.record(
                np.matmul, GG, commands.shared("dU", POSITIONS, CF)[:, a:b], out=taps[:, a:b]
            )

        return [*stages, [back(*r) for r in split_range(CF, COLUMNS)]]

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
        R, k, F, W, H = b - a, M + 2, self.F, self.W, self.H
        columns = commands.scratch("half transformed", R, k, self.TW * M, F)
        if self.TW * M > W:
            commands.record(columns[:, :, W:].fill, 0)
        done = 0
        for n, first, end in self.split_by_image(t0 + a, t0 + b):
            source = dz[n]
            if source.strides[1] != F * source.itemsize:  # channels of a larger map
                rows = commands.scratch("rows", min(H, M * end) - M * first, W, F)
                commands.record(np.copyto, rows, source[M * first : min(H, M * end)])
                source, offset = rows, M * first
            else:
                offset = 0
            for t in range(first, end):
                top, bottom = M * t - offset, min(H, M * t + M) - offset
                flat = source[top:bottom].reshape(bottom - top, W * F)
                piece = columns[done + t - first]
                out = as_strided(piece, (k, W * F), (piece.strides[0], piece.itemsize))
                commands.record(np.matmul, A[:, : bottom - top], flat, out=out)
            done += end - first
        tiles = columns.reshape(R, k, self.TW, M, F)
        view = as_strided(target, (R, k, self.TW, k, F), self.tile_strides(target))
        commands.record(np.matmul, A, tiles, out=view)
