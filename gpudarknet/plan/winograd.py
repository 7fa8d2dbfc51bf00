"""Winograd's minimal filtering for 3 x 3 convolutions of stride 1 (Lavin and Gray 2015, arXiv 1509.09308).

A tile of m x m outputs takes (m + 2)^2 products instead of 9 m^2: y = A'[(G g G') * (B' d B)]A, where the products of one
position, over all channels, filters and tiles, are one gemm. Both transforms are gemms too, by the Kronecker squares of
B' and A'. F(2x2) saves a factor 2.25, F(4x4) a factor 4, of which the transforms take part of the gain back.

The error of F(4x4) depends on the points at which polynomials are evaluated: with 0, 1, -1, 2, -2, infinity, the usual
ones, its largest error is 4 times that of the points below (measured: 1.3e-6 root mean square, 1.3e-5 largest, relative
to the output's deviation, at 256 channels; plain gemm has 4e-7).
"""

from __future__ import annotations

from functools import cache, partial

import numpy as np

from .after import Last
from .convolve import Phases, ceil, pieces, window
from .gemm import multiply, pack, transform
from .steps import Convolve
from .team import Team

POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)}
TILES = 1 << 18  # numbers of a band's transformed input or output: 1 MB


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
    """Transform kernel (F, C, 3, 3) -> positions (m+2)^2 of (F, C), packed; the bias (F,) stays."""
    F, C = kernel.shape[:2]
    _, G, _ = transforms(m)
    U = np.matmul(np.kron(G, G).astype(np.float32), kernel.reshape(F * C, 9).T)
    return pack(U.reshape(-1, F, C)), bias


class Winograd:
    """A 3 x 3 convolution of stride 1, pad 1, one group, in tiles of m x m outputs."""

    def __init__(
        self, step: Convolve, x: np.ndarray, y: np.ndarray, weights: tuple[np.ndarray, np.ndarray], last: Last, team: Team,
        m: int,
    ):  # fmt: skip
        BT, _, AT = transforms(m)
        self.forth = np.kron(BT, BT).astype(np.float32)
        self.back = np.hstack([np.kron(AT, AT), np.ones((m * m, 1))]).astype(np.float32)  # the bias is one more term
        self.U, self.bias = weights[0], weights[1].reshape(-1, 1)
        self.pooled, self.x, self.y, self.finish, self.team, self.m = step.pooled, x, y, last(None), team, m
        self.C, self.F = x.shape[1], y.shape[1]
        self.TH, self.TW = ceil(x.shape[2], m), ceil(x.shape[3], m)
        self.Q = (m + 2) ** 2  # positions in a tile

    def phases(self) -> Phases:
        """Return the tasks: bands of tiles, each from input to output in a worker's cache, or one map in three phases.

        Three phases serve small maps, whose weights are their largest matrix: the positions are shared out among the
        workers, so that each position's weights are read once.
        """
        N, Q, T, size = self.x.shape[0], self.Q, self.TH * self.TW, self.team.size
        rows = max(1, TILES // (Q * max(self.C, self.F) * self.TW))
        bands = pieces(self.TH, rows, size if N == 1 else 1)
        wide = self.TW * (bands[0][1] - bands[0][0]) >= 24 and len(bands) >= size
        if N > 1 or wide:
            return [[partial(self.band, n, *t) for n in range(N) for t in bands]]
        most = max(1, TILES // (Q * T))
        return [
            [partial(self.cut, *c) for c in pieces(self.C, most, size)],
            [partial(self.products, *i) for i in pieces(Q, ceil(Q, 2 * size), size)],
            [partial(self.restore, *f) for f in pieces(self.F, most, size)],
        ]

    def band(self, n: int, t0: int, t1: int, worker: int) -> None:
        """Make the rows of tiles t0 to t1 of image n."""
        Q, C, F, T, scratch = self.Q, self.C, self.F, (t1 - t0) * self.TW, self.team.scratch
        D, V, M = scratch(worker, "tiles", Q, C * T), scratch(worker, "V", Q, C * T), scratch(worker, "M", Q + 1, F, T)
        self.gather(D, n, 0, C, t0, t1, worker)
        transform(self.forth, D, V)
        multiply(self.U, V.reshape(Q, C, T), M[:Q])
        M[Q] = self.bias
        Y = scratch(worker, "tiles", self.m**2, F * T)
        transform(self.back, M.reshape(Q + 1, F * T), Y)
        self.scatter(Y, n, 0, F, t0, t1, worker)

    def cut(self, c0: int, c1: int, worker: int) -> None:
        """Transform channels c0 to c1 of the map."""
        T = self.TH * self.TW
        V, D = self.shared(), self.team.scratch(worker, "tiles", self.Q, (c1 - c0) * T)
        self.gather(D, 0, c0, c1, 0, self.TH, worker)
        transform(self.forth, D, V[:, c0:c1].reshape(self.Q, -1))

    def products(self, i0: int, i1: int, worker: int) -> None:
        """Multiply positions i0 to i1."""
        multiply(self.U[i0:i1], self.shared()[i0:i1], self.summed()[i0:i1])

    def restore(self, f0: int, f1: int, worker: int) -> None:
        """Transform filters f0 to f1 back."""
        M = self.summed()[:, f0:f1]
        M[self.Q] = self.bias[f0:f1]
        Y = self.team.scratch(worker, "tiles", self.m**2, (f1 - f0) * self.TH * self.TW)
        transform(self.back, M.reshape(self.Q + 1, -1), Y)
        self.scatter(Y, 0, f0, f1, 0, self.TH, worker)

    def shared(self) -> np.ndarray:
        """The transformed map (positions, C, tiles), for all workers."""
        return self.team.scratch(0, "shared", self.Q, self.C, self.TH * self.TW)

    def summed(self) -> np.ndarray:
        """The products and a row for the bias (positions + 1, F, tiles), for all workers."""
        return self.team.scratch(0, "products", self.Q + 1, self.F, self.TH * self.TW)

    def gather(self, out: np.ndarray, n: int, c0: int, c1: int, t0: int, t1: int, worker: int) -> None:
        """Cut the tiles of rows t0 to t1 out of x, with a border of zeros: -> (positions, channels * tiles)."""
        m, R = self.m, t1 - t0
        padded = self.team.scratch(worker, "padded", c1 - c0, m * R + 2, m * self.TW + 2)
        window(self.x[n, c0:c1], m * t0 - 1, -1, padded)
        tiles = out.reshape(m + 2, m + 2, c1 - c0, R, self.TW)
        a, b, c = padded.strides
        tiles[...] = np.ndarray(tiles.shape, np.float32, padded, 0, (b, c, a, m * b, m * c))

    def scatter(self, Y: np.ndarray, n: int, f0: int, f1: int, t0: int, t1: int, worker: int) -> None:
        """Put tiles (m*m, filters * tiles) to their places in y, pooled if they are to be, and finish them."""
        k, (H, W) = self.m, self.y.shape[2:]
        tiles = Y.reshape(k, k, f1 - f0, t1 - t0, self.TW)
        if self.pooled:
            k //= 2
            rows = self.team.scratch(worker, "rows", k, *tiles.shape[1:])
            np.maximum(tiles[::2], tiles[1::2], out=rows)
            tiles = Y.reshape(-1)[: rows.size // 2].reshape(k, k, *tiles.shape[2:])
            np.maximum(rows[:, ::2], rows[:, 1::2], out=tiles)
        whole = min(t1, H // k)  # up to here tiles lie in the map from top to bottom
        out = self.y[n, f0:f1, k * t0 : k * whole].reshape(f1 - f0, whole - t0, k, W).transpose(2, 0, 1, 3)
        for j in range(k):
            part = out[..., j::k]
            part[...] = tiles[:, j, :, : whole - t0, : part.shape[-1]]
        for i in range(H - k * whole if whole < t1 else 0):
            for j in range(k):
                part = self.y[n, f0:f1, k * whole + i, j::k]
                part[...] = tiles[i, j, :, whole - t0, : part.shape[-1]]
        self.finish(worker, n, f0, f1, k * t0 * W, min(k * t1, H) * W)


def winograd(
    step: Convolve, x: np.ndarray, y: np.ndarray, weights: tuple[np.ndarray, np.ndarray], last: Last, team: Team, m: int
) -> Phases:
    """3 x 3, stride 1, pad 1, one group."""
    return Winograd(step, x, y, weights, last, team, m).phases()
