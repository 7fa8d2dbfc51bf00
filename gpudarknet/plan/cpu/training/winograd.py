"""Winograd's filtering in training: the forward, and both gradients, of 3 x 3 convolutions of stride 1 (`plan/cpu/winograd.py`).

y = A'[(G g G') * (B' d B)]A, so that with dm = A dy A' the gradients are dg = G'[sum over tiles of (B' d B) * dm]G, and dd is
the convolution of dy with the rotated kernel. All three multiply 36 positions of 6 x 6 tiles instead of 9 taps of 16 pixels.

Measured, at 64 to 512 channels: differences of 1e-6 to 5e-6 of the largest value from im2col (plain gemms: 5e-7).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ....backend.threads import split_range
from ...steps import Convolve
from ..command_list import CommandList, Task, TaskStages
from ..winograd import Winograd, as_strided, transforms
from . import fused
from .pixels import share

COPIED, TRANSFORMED, KERNEL = 12, 60, 150  # time per element of a patch, a tile, a kernel, in operations of a gemm
M = 4  # outputs of a tile, vertically and horizontally
POSITIONS = (M + 2) ** 2
CHUNK_SIZE = 1 << 23  # elements of transformed inputs and products that tasks share: 32 MB
COLUMNS = 1 << 13  # columns of the kernels' transform that a task computes


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

    U: the transformed kernels (36, C, F), computed before. name: of the memory of transformed inputs, so that passes that run
    at the same time have their own.
    """

    def __init__(
        self,
        step: Convolve,
        x: np.ndarray,
        y: np.ndarray,
        U: np.ndarray,
        workers: int,
        adds: bool = False,
        name: str = "",
    ):
        super().__init__(step, x, y, (U, np.zeros(y.shape[3], np.float32)), lambda bias: self._store, M)
        self.adds, self.name, self.workers = adds, name, workers
        self.transforms = tuple(np.ascontiguousarray(m, np.float32) for m in (transforms(M)[0], transforms(M)[2]))
        tile_rows = self.N * self.TH
        self.chunks = split_range(tile_rows, max(1, CHUNK_SIZE // (POSITIONS * (self.C + self.F) * self.TW)))

    def _store(
        self, commands: CommandList, n: int, r0: int, r1: int, f0: int, f1: int, values: np.ndarray | None = None
    ) -> None:
        assert values is not None
        target = self.y[n, r0:r1, :, f0:f1]
        if self.adds:
            commands.record(np.add, target, values, out=target)
        else:
            commands.record(np.copyto, target, values)

    def stages(self) -> TaskStages:
        """Return the stages, for each chunk of tiles: transforms, products, transforms back."""
        stages: TaskStages = []
        for t0, t1 in self.chunks:
            rows = share(t1 - t0, self.workers)
            stages += [
                [partial(self.transform_inputs, t0, t1, *r) for r in rows],
                [partial(self.multiply, t0, t1, *q) for q in share(POSITIONS, self.workers)],
                [partial(self.transform_outputs, t0, t1, *r) for r in rows],
            ]
        return stages

    def memory(self, commands: CommandList, name: str, t0: int, t1: int, channels: int) -> np.ndarray:
        """Return shared memory (36, tiles, channels) for rows of tiles t0 to t1."""
        return commands.shared(f"{name}{self.name}", POSITIONS, (t1 - t0) * self.TW, channels)

    def transform_inputs(self, t0: int, t1: int, a: int, b: int, commands: CommandList) -> None:
        """Record B' d B of rows a to b of a chunk."""
        V = self.memory(commands, "V", t0, t1, self.C)[:, a * self.TW : b * self.TW]
        if not fused.available():
            self.input_transform(commands, V, t0 + a, t0 + b)
            return
        lines = commands.scratch("lines", M + 2, M * self.TW + 2, self.C)
        arguments = fused.step(self.x), self.H, self.W, self.C, t0 + a, t0 + b, self.transforms[0]
        fused.record(
            commands, fused.kernels().winograd_input, fused.flat(self.x), *arguments, fused.flat(V), planes(V), lines
        )

    def multiply(self, t0: int, t1: int, first: int, end: int, commands: CommandList) -> None:
        """Record the products of some positions of all tiles of a chunk."""
        V, products = (self.memory(commands, k, t0, t1, c)[first:end] for k, c in (("V", self.C), ("M", self.F)))
        commands.record(np.matmul, V, self.U[first:end], out=products)

    def transform_outputs(self, t0: int, t1: int, a: int, b: int, commands: CommandList) -> None:
        """Record A' m A of rows a to b of a chunk, into y."""
        products = self.memory(commands, "M", t0, t1, self.F)[:, a * self.TW : b * self.TW]
        if not fused.available():
            self.output_transform(commands, products, t0 + a, t0 + b)
            return
        lines, y = commands.scratch("lines", M + 2, M * self.TW, self.F), fused.flat(self.y)
        arguments = t0 + a, t0 + b, self.transforms[1], y, fused.step(self.y), self.H, self.W, self.F, self.adds
        fused.record(
            commands, fused.kernels().winograd_output, fused.flat(products), planes(products), *arguments, lines
        )

    def filter_gradient(self, dz: np.ndarray, out: np.ndarray) -> TaskStages:
        """Return the stages that write the gradient of the weights, out (9 * C, F), from x and dz (N, H, W, F)."""
        stages: TaskStages = []
        for t0, t1 in self.chunks:
            both: list[Task] = []
            for r in share(t1 - t0, self.workers):
                both += partial(self.transform_inputs, t0, t1, *r), partial(self.transform_gradients, dz, t0, t1, *r)
            stages += [both, [partial(self.accumulate, t0, t1, *q) for q in share(POSITIONS, self.workers)]]
        GG = np.ascontiguousarray(np.kron(transforms(M)[1], transforms(M)[1]).T.astype(np.float32))
        taps = out.reshape(9, -1)

        def back(a: int, b: int) -> Task:
            def record(commands: CommandList) -> None:
                dU = commands.shared("dU", POSITIONS, self.C * self.F)
                commands.record(np.matmul, GG, dU[:, a:b], out=taps[:, a:b])

            return record

        stages.append([back(*r) for r in split_range(taps.shape[1], COLUMNS)])
        return stages

    def accumulate(self, t0: int, t1: int, first: int, end: int, commands: CommandList) -> None:
        """Record the sum over the tiles of a chunk, at some positions, of input times gradient; later chunks are added."""
        V, D = (self.memory(commands, k, t0, t1, c)[first:end] for k, c in (("V", self.C), ("D", self.F)))
        total = commands.shared("dU", POSITIONS, self.C, self.F)[first:end]
        if t0 == 0:
            commands.record(np.matmul, V.transpose(0, 2, 1), D, out=total)
            return
        product = commands.scratch("product", *total.shape)
        commands.record(np.matmul, V.transpose(0, 2, 1), D, out=product)
        commands.record(np.add, total, product, out=total)

    def transform_gradients(self, dz: np.ndarray, t0: int, t1: int, a: int, b: int, commands: CommandList) -> None:
        """Record A dz A' of rows a to b of a chunk. Outside dz it is 0."""
        A = np.ascontiguousarray(self.transforms[1].T)  # (6, 4)
        D = self.memory(commands, "D", t0, t1, self.F)[:, a * self.TW : b * self.TW]
        if not fused.available():
            self._transform_gradients(commands, A, dz, D, t0 + a, t0 + b)
            return
        lines = commands.scratch("lines", M + 2, M * self.TW, self.F)
        arguments = fused.step(dz), self.H, self.W, self.F, t0 + a, t0 + b, A
        fused.record(
            commands, fused.kernels().winograd_gradient, fused.flat(dz), *arguments, fused.flat(D), planes(D), lines
        )

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


def planes(V: np.ndarray) -> int:
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
