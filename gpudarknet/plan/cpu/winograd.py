"""Winograd's minimal filtering for 3 x 3 convolutions of stride 1 (Lavin and Gray 2015, arXiv 1509.09308).

A tile of m x m outputs takes (m + 2)^2 products instead of 9 m^2: y = A'[(G g G') * (B' d B)]A, where the products of one
position, over all channels, filters and tiles, are one gemm. F(2x2) saves a factor 2.25, F(4x4) a factor 4, of which the
transforms take part of the gain back. These are gemms of B' and A' with views of the maps, down the columns and then along
the rows: as a pixel's channels lie side by side, no tile is ever cut out or put back.

The error of F(4x4) depends on the points at which polynomials are evaluated: with 0, 1, -1, 2, -2, infinity, the usual
ones, its largest error is 4 times that of the points below (measured: 1.3e-6 root mean square, 1.3e-5 largest, relative
to the output's deviation, at 256 channels; plain gemm has 4e-7).
"""

from __future__ import annotations

from functools import cache, partial

import numpy as np

from ...backend.threads import split_range
from ..steps import Convolve
from .command_list import Tape
from .convolution import Phases, ceil, pool
from .epilogue import Last
from .gemm import multiply, pack

POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)}
TILES = 1 << 18  # numbers of a band's transformed input or output: 1 MB
LONG = 1 << 13  # numbers in a row that a transform takes at a time
view = np.lib.stride_tricks.as_strided


@cache
def transforms(m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return B' (m+2, m+2), G (m+2, 3), A' (m, m+2) in double: Toom's and Cook's scheme for the points and infinity."""
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


def kernels(kernel: np.ndarray, bias: np.ndarray, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Transform kernel (F, C, 3, 3) -> positions (m+2)^2 of (C, F), packed; the bias (F,) stays."""
    F, C = kernel.shape[:2]
    _, G, _ = transforms(m)
    U = np.matmul(np.kron(G, G).astype(np.float32), kernel.transpose(2, 3, 1, 0).reshape(9, C * F))
    return pack(U.reshape(-1, C, F)), bias


class Winograd:
    """A 3 x 3 convolution of stride 1, pad 1, one group, in tiles of m x m outputs.

    Rows of tiles are counted through all images.
    """

    def __init__(
        self, step: Convolve, x: np.ndarray, y: np.ndarray, weights: tuple[np.ndarray, np.ndarray], last: Last, m: int
    ):
        BT, _, AT = transforms(m)
        self.forth = BT.astype(np.float32)
        self.back = np.hstack([AT, np.ones((m, 1))]).astype(np.float32)  # the bias is one more term
        self.U, self.bias = weights
        self.pooled, self.x, self.y, self.finish, self.m = step.pooled, x, y, last(None), m
        (self.N, self.H, self.W, self.C), self.F = x.shape, y.shape[3]
        self.TH, self.TW = ceil(self.H, m), ceil(self.W, m)
        self.Q = (m + 2) ** 2  # positions in a tile

    def phases(self, workers: int) -> Phases:
        """Return the tasks: bands of tiles, each from input to output in a worker's cache, or one map in three phases.

        Three phases serve small maps, whose weights are their largest matrix: the positions are shared out among the
        workers, so that each position's weights are read once.
        """
        rows = self.N * self.TH
        if rows * self.TW > SMALL:
            most = max(1, TILES // (self.Q * max(self.C, self.F) * self.TW))
            return [[partial(self.band, *t) for t in split_range(rows, most, workers)]]
        tall, positions = split_range(rows, rows, workers), split_range(self.Q, self.Q, workers)
        return [
            [partial(self.cut, *t) for t in tall],
            [partial(self.products, *i) for i in positions],
            [partial(self.restore, *t) for t in tall],
        ]

    def band(self, t0: int, t1: int, tape: Tape) -> None:
        """Make the rows of tiles t0 to t1."""
        V, M = (tape.scratch(name, self.Q, (t1 - t0) * self.TW, n) for name, n in (("V", self.C), ("M", self.F)))
        self.transform(tape, V, t0, t1)
        multiply(tape, V, self.U, M)
        self.inverse(tape, M, t0, t1)

    def cut(self, t0: int, t1: int, tape: Tape) -> None:
        """Transform the rows of tiles t0 to t1."""
        self.transform(tape, self.shared(tape, "V", self.C)[:, t0 * self.TW : t1 * self.TW], t0, t1)

    def products(self, i0: int, i1: int, tape: Tape) -> None:
        """Multiply positions i0 to i1."""
        V, M = self.shared(tape, "V", self.C), self.shared(tape, "M", self.F)
        multiply(tape, V[i0:i1], self.U[i0:i1], M[i0:i1])

    def restore(self, t0: int, t1: int, tape: Tape) -> None:
        """Transform the rows of tiles t0 to t1 back."""
        self.inverse(tape, self.shared(tape, "M", self.F)[:, t0 * self.TW : t1 * self.TW], t0, t1)

    def shared(self, tape: Tape, name: str, channels: int) -> np.ndarray:
        """All tiles (positions, tiles, channels), for all workers."""
        return tape.shared(name, self.Q, self.N * self.TH * self.TW, channels)

    def by_image(self, t0: int, t1: int) -> list[tuple[int, int, int]]:
        """Cut rows of tiles at the ends of images: -> (image, from, to within it)."""
        first, last = t0 // self.TH, (t1 - 1) // self.TH
        return [(n, max(t0 - n * self.TH, 0), min(t1 - n * self.TH, self.TH)) for n in range(first, last + 1)]

    def places(self, V: np.ndarray) -> tuple[int, int, int, int, int]:
        """Return the strides by which (positions, tiles, channels) is seen as (rows, k, columns of tiles, k, channels)."""
        q, t, c = V.strides
        return self.TW * t, (self.m + 2) * q, t, q, c

    def transform(self, tape: Tape, V: np.ndarray, t0: int, t1: int) -> None:
        """Transform the rows of tiles t0 to t1 of x -> V (positions, tiles, C): first down columns, then along rows."""
        m, k, C, R = self.m, self.m + 2, self.C, t1 - t0
        down = tape.scratch("down", R, k, self.TW * m + 2, C)
        tape(down[:, :, 0].fill, 0)
        tape(down[:, :, self.W + 1 :].fill, 0)
        done = 0
        for n, a, b in self.by_image(t0, t1):
            self.transform_columns(tape, n, a, b, down[done : done + b - a, :, 1 : self.W + 1])
            done += b - a
        r, i, w, c = down.strides
        tiles = view(down, (R, k, self.TW, k, C), (r, i, m * w, w, c))
        tape(np.matmul, self.forth, tiles, out=view(V, tiles.shape, self.places(V)))

    def transform_columns(self, tape: Tape, n: int, t0: int, t1: int, out: np.ndarray) -> None:
        """Transform columns of image n: out (rows of tiles, m+2, W, C). Tiles at the edge do without rows outside x."""
        m, k, (H, W, C) = self.m, self.m + 2, self.x.shape[1:]
        top, bottom = max(0, m * t0 - 1), min(H, m * t1 + 1)
        x = self.x[n, top:bottom]
        if x.strides[1] != C * x.itemsize:  # a part of a larger map
            apart, x = x, tape.scratch("rows", *x.shape)
            tape(np.copyto, x, apart)
        flat, step = x.reshape(bottom - top, W * C), x.strides[0]
        whole = [t for t in range(t0, t1) if t > 0 and m * t + m < H]
        for t in sorted({*range(t0, t1)}.difference(whole)):
            a, b = max(0, 1 - m * t), min(k, H + 1 - m * t)
            rows = flat[m * t - 1 + a - top : m * t - 1 + b - top]
            tape(np.matmul, self.forth[:, a:b], rows, out=view(out[t - t0], (k, W * C), (out.strides[1], x.itemsize)))
        if not whole:
            return
        tiles = view(flat[m * whole[0] - 1 - top :], (len(whole), k, W * C), (m * step, step, x.itemsize))
        place = view(out[whole[0] - t0 :], tiles.shape, (*out.strides[:2], x.itemsize))
        for p in range(0, W * C, LONG):
            tape(np.matmul, self.forth, tiles[..., p : p + LONG], out=place[..., p : p + LONG])

    def inverse(self, tape: Tape, M: np.ndarray, t0: int, t1: int) -> None:
        """Transform M (positions, tiles, F) back: along rows, then down columns, into the rows of tiles t0 to t1 of y."""
        m, k, TW, F, R = self.m, self.m + 2, self.TW, self.F, t1 - t0
        along = tape.scratch("down", R, k + 1, TW * m, F)
        tape(np.copyto, along[:, k], self.bias)
        tiles = view(M, (R, k, TW, k, F), self.places(M))
        tape(np.matmul, self.back[:, :k], tiles, out=along[:, :k].reshape(R, k, TW, m, F))
        flat = along.reshape(R, k + 1, TW * m * F)
        most = max(1, TILES // (4 * m * TW * m * F))
        for n, a, b in self.by_image(t0, t1):
            for t in range(a, b, most):
                end, first = min(t + most, b), n * self.TH + t - t0
                out = tape.scratch("tiles", end - t, m, TW * m * F)
                for p in range(0, TW * m * F, LONG):
                    tape(
                        np.matmul, self.back, flat[first : first + end - t, :, p : p + LONG], out=out[..., p : p + LONG]
                    )
                rows = out.reshape(-1, TW * m, F)[: self.H - m * t]
                top, bottom = m * t, min(m * end, self.H)
                if self.pooled:
                    rows, top, bottom = pool(tape, rows), top // 2, bottom // 2
                self.finish(tape, n, top, bottom, 0, F, rows[:, : self.y.shape[2]])


SMALL = 64  # tiles: below it one position's weights are larger than its tiles


def winograd(
    step: Convolve,
    x: np.ndarray,
    y: np.ndarray,
    weights: tuple[np.ndarray, np.ndarray],
    last: Last,
    workers: int,
    m: int,
) -> Phases:
    """3 x 3, stride 1, pad 1, one group."""
    return Winograd(step, x, y, weights, last, m).phases(workers)
