"""Winograd's minimal filtering for 3 x 3 convolutions of stride 1 (Lavin and Gray 2015, arXiv 1509.09308).

A tile of m x m outputs takes (m + 2)^2 multiplications instead of 9 m^2: y = A'[(G g G') * (B' d B)]A. The products at one
position of the tile, over all channels, filters and tiles, are one gemm. F(2x2) saves a factor 2.25, F(4x4) a factor 4, minus
the time of the transforms. These are gemms of B' and A' with views of the maps, along columns and then along rows: as channels
are contiguous (NHWC), no tile is ever copied out or back.

The error of F(4x4) depends on the interpolation points. The usual ones, 0, 1, -1, 2, -2 and infinity, have 4 times the maximum
error of those below (measured: 1.3e-6 root mean square, 1.3e-5 maximum, relative to the output's standard deviation, at 256
channels; plain gemm has 4e-7).
"""

from __future__ import annotations

from functools import cache, partial

import numpy as np

from ...backend.threads import split_range
from ..steps import Convolve
from .command_list import CommandList, TaskStages
from .convolution import PackedWeights, ceil_div, maxpool_2x2
from .epilogue import EpilogueFactory
from .gemm import matmul, pack_weights

POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)}
BAND_SIZE = 1 << 18  # elements of a band's transformed input or output: 1 MB
ROW_SIZE = 1 << 13  # elements of a row that one transform command processes
MIN_BANDED_TILES = 64  # with fewer, one position's weights are larger than its tiles
as_strided = np.lib.stride_tricks.as_strided


@cache
def transforms(m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return B' (m+2, m+2), G (m+2, 3), A' (m, m+2) in float64: Toom-Cook for the points and infinity."""
    points = POINTS[m]
    n = len(points)
    BT, G, AT = np.zeros((n + 1, n + 1)), np.zeros((n + 1, 3)), np.zeros((m, n + 1))
    for i, p in enumerate(points):
        others = [q for q in points if q != p]
        BT[i, :n] = np.poly(others)[::-1]
        G[i] = np.power(p, range(3)) / np.prod([p - q for q in others])
        AT[:, i] = np.power(p, range(m))
    BT[n] = np.poly(points)[::-1]
    G[n, 2] = AT[m - 1, n] = 1
    return BT, G, AT


def pack_winograd(kernel: np.ndarray, bias: np.ndarray, m: int) -> PackedWeights:
    """Transform kernel (F, C, 3, 3) to a matrix (C, F) for each of (m+2)^2 positions, packed; the bias (F,) is unchanged."""
    F, C = kernel.shape[:2]
    _, G, _ = transforms(m)
    U = np.matmul(np.kron(G, G).astype(np.float32), kernel.transpose(2, 3, 1, 0).reshape(9, C * F))
    return pack_weights(U.reshape(-1, C, F)), bias


class Winograd:
    """A 3 x 3 convolution of stride 1, pad 1, one group, in tiles of m x m outputs.

    t0 and t1 are rows of tiles, counted through all images. U, V, M: transformed kernel, input and product, as in the paper.
    """

    def __init__(
        self, step: Convolve, x: np.ndarray, y: np.ndarray, weights: PackedWeights, epilogue: EpilogueFactory, m: int
    ):
        BT, _, AT = transforms(m)
        self.BT = BT.astype(np.float32)
        self.AT = np.hstack([AT, np.ones((m, 1))]).astype(np.float32)  # the bias is one more term
        self.U, self.bias = weights
        self.pooled, self.x, self.y, self.apply_epilogue, self.m = step.pooled, x, y, epilogue(None), m
        (self.N, self.H, self.W, self.C), self.F = x.shape, y.shape[3]
        self.TH, self.TW = ceil_div(self.H, m), ceil_div(self.W, m)
        self.Q = (m + 2) ** 2  # positions in a tile

    def make_tasks(self, workers: int) -> TaskStages:
        """Return one stage of bands of tiles, each from input to output in a worker's cache, or three stages for small maps.

        The weights of a small map are its largest matrix. The three stages split the positions among the workers, so that
        each position's weights are read once.
        """
        rows = self.N * self.TH
        if rows * self.TW > MIN_BANDED_TILES:
            height = max(1, BAND_SIZE // (self.Q * max(self.C, self.F) * self.TW))
            return [[partial(self.band, *t) for t in split_range(rows, height, workers)]]
        row_ranges, positions = split_range(rows, rows, workers), split_range(self.Q, self.Q, workers)
        return [
            [partial(self.input_rows, *t) for t in row_ranges],
            [partial(self.gemm_positions, *i) for i in positions],
            [partial(self.output_rows, *t) for t in row_ranges],
        ]

    def band(self, t0: int, t1: int, commands: CommandList) -> None:
        """Compute rows of tiles t0 to t1."""
        tiles = (t1 - t0) * self.TW
        V, M = commands.scratch("V", self.Q, tiles, self.C), commands.scratch("M", self.Q, tiles, self.F)
        self.input_transform(commands, V, t0, t1)
        matmul(commands, V, self.U, M)
        self.output_transform(commands, M, t0, t1)

    def input_rows(self, t0: int, t1: int, commands: CommandList) -> None:
        """Transform the input of rows of tiles t0 to t1, into shared memory."""
        V = self.shared(commands, "V", self.C)
        self.input_transform(commands, V[:, t0 * self.TW : t1 * self.TW], t0, t1)

    def gemm_positions(self, i0: int, i1: int, commands: CommandList) -> None:
        """Multiply positions i0 to i1 of all tiles."""
        V, M = self.shared(commands, "V", self.C), self.shared(commands, "M", self.F)
        matmul(commands, V[i0:i1], self.U[i0:i1], M[i0:i1])

    def output_rows(self, t0: int, t1: int, commands: CommandList) -> None:
        """Transform the products of rows of tiles t0 to t1 to outputs."""
        M = self.shared(commands, "M", self.F)
        self.output_transform(commands, M[:, t0 * self.TW : t1 * self.TW], t0, t1)

    def shared(self, commands: CommandList, name: str, channels: int) -> np.ndarray:
        """Return memory for all tiles (positions, tiles, channels), shared by all workers."""
        return commands.shared(name, self.Q, self.N * self.TH * self.TW, channels)

    def split_by_image(self, t0: int, t1: int) -> list[tuple[int, int, int]]:
        """Split rows of tiles at image boundaries: -> (image, first, end within it)."""
        first, last = t0 // self.TH, (t1 - 1) // self.TH
        return [(n, max(t0 - n * self.TH, 0), min(t1 - n * self.TH, self.TH)) for n in range(first, last + 1)]

    def tile_strides(self, V: np.ndarray) -> tuple[int, int, int, int, int]:
        """Return strides that view (positions, tiles, channels) as (rows of tiles, k, columns of tiles, k, channels)."""
        q, t, c = V.strides
        return self.TW * t, (self.m + 2) * q, t, q, c

    def input_transform(self, commands: CommandList, V: np.ndarray, t0: int, t1: int) -> None:
        """Record B' d B of rows of tiles t0 to t1 -> V (positions, tiles, C): along columns, then along rows."""
        m, k, C, R = self.m, self.m + 2, self.C, t1 - t0
        columns = commands.scratch("half transformed", R, k, self.TW * m + 2, C)
        commands.record(columns[:, :, 0].fill, 0)
        commands.record(columns[:, :, self.W + 1 :].fill, 0)
        done = 0
        for n, a, b in self.split_by_image(t0, t1):
            self.transform_columns(commands, n, a, b, columns[done : done + b - a, :, 1 : self.W + 1])
            done += b - a
        r, i, w, c = columns.strides
        tiles = as_strided(columns, (R, k, self.TW, k, C), (r, i, m * w, w, c))
        commands.record(np.matmul, self.BT, tiles, out=as_strided(V, tiles.shape, self.tile_strides(V)))

    def transform_columns(self, commands: CommandList, n: int, t0: int, t1: int, out: np.ndarray) -> None:
        """Record B' d of image n: out (rows of tiles, m+2, W, C). Tiles at the border leave out the rows outside x."""
        m, k, (H, W, C) = self.m, self.m + 2, self.x.shape[1:]
        top, bottom = max(0, m * t0 - 1), min(H, m * t1 + 1)
        x = self.x[n, top:bottom]
        if x.strides[1] != C * x.itemsize:  # channels of a larger map
            original, x = x, commands.scratch("rows", *x.shape)
            commands.record(np.copyto, x, original)
        flat, step = x.reshape(bottom - top, W * C), x.strides[0]
        inner = [t for t in range(t0, t1) if t > 0 and m * t + m < H]
        for t in sorted({*range(t0, t1)}.difference(inner)):
            a, b = max(0, 1 - m * t), min(k, H + 1 - m * t)
            rows = flat[m * t - 1 + a - top : m * t - 1 + b - top]
            target = as_strided(out[t - t0], (k, W * C), (out.strides[1], x.itemsize))
            commands.record(np.matmul, self.BT[:, a:b], rows, out=target)
        if not inner:
            return
        first = flat[m * inner[0] - 1 - top :]
        tiles = as_strided(first, (len(inner), k, W * C), (m * step, step, x.itemsize))
        target = as_strided(out[inner[0] - t0 :], tiles.shape, (*out.strides[:2], x.itemsize))
        for p in range(0, W * C, ROW_SIZE):
            commands.record(np.matmul, self.BT, tiles[..., p : p + ROW_SIZE], out=target[..., p : p + ROW_SIZE])

    def output_transform(self, commands: CommandList, M: np.ndarray, t0: int, t1: int) -> None:
        """Record A' M A of M (positions, tiles, F), along rows, then along columns, into rows of tiles t0 to t1 of y."""
        m, k, TW, F, R = self.m, self.m + 2, self.TW, self.F, t1 - t0
        rows = commands.scratch("half transformed", R, k + 1, TW * m, F)
        commands.record(np.copyto, rows[:, k], self.bias)
        tiles = as_strided(M, (R, k, TW, k, F), self.tile_strides(M))
        commands.record(np.matmul, self.AT[:, :k], tiles, out=rows[:, :k].reshape(R, k, TW, m, F))
        flat = rows.reshape(R, k + 1, TW * m * F)
        height = max(1, BAND_SIZE // (4 * m * TW * m * F))
        for n, a, b in self.split_by_image(t0, t1):
            for t in range(a, b, height):
                end, first = min(t + height, b), n * self.TH + t - t0
                out = commands.scratch("tiles", end - t, m, TW * m * F)
                for p in range(0, TW * m * F, ROW_SIZE):
                    source = flat[first : first + end - t, :, p : p + ROW_SIZE]
                    commands.record(np.matmul, self.AT, source, out=out[..., p : p + ROW_SIZE])
                result = out.reshape(-1, TW * m, F)[: self.H - m * t]
                top, bottom = m * t, min(m * end, self.H)
                if self.pooled:
                    result, top, bottom = maxpool_2x2(commands, result), top // 2, bottom // 2
                self.apply_epilogue(commands, n, top, bottom, 0, F, result[:, : self.y.shape[2]])


def winograd(
    step: Convolve, x: np.ndarray, y: np.ndarray, weights: PackedWeights, epilogue: EpilogueFactory, workers: int,
    m: int,
) -> TaskStages:  # fmt: skip
    """3 x 3, stride 1, pad 1, one group."""
    return Winograd(step, x, y, weights, epilogue, m).make_tasks(workers)
