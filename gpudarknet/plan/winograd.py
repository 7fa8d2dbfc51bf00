"""Winograd's minimal filtering for 3 x 3 convolutions of stride 1 (Lavin and Gray 2015, arXiv 1509.09308).

A tile of m x m outputs takes (m + 2)^2 products instead of 9 m^2: y = A'[(G g G') * (B' d B)]A, where the products of one
position, over all channels, filters and tiles, are one gemm. Both transforms are gemms too, by the Kronecker squares of
B' and A'. F(2x2) saves a factor 2.25, F(4x4) a factor 4, of which the transforms take part of the gain back.

The error of F(4x4) depends on the points at which polynomials are evaluated: with 0, 1, -1, 2, -2, infinity, the usual
ones, its largest error is 4 times that of the points below (measured: 1.3e-6 root mean square, 1.3e-5 largest, relative
to the output's deviation, at 256 channels; plain gemm has 4e-7).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from .after import Finish, Last
from .convolve import Phases, ceil, pieces, window
from .gemm import multiply, pack, transform
from .steps import Convolve
from .team import Task, Team

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


def winograd(
    step: Convolve, x: np.ndarray, y: np.ndarray, weights: tuple[np.ndarray, np.ndarray], last: Last, team: Team, m: int
) -> Phases:
    """3 x 3, stride 1, pad 1, one group."""
    U, finish = weights[0], last(None)
    bias = weights[1].reshape(-1, 1)
    (N, C, H, W), F = x.shape, y.shape[1]
    BT, _, AT = transforms(m)
    forth, back = np.kron(BT, BT).astype(np.float32), np.kron(AT, AT).astype(np.float32)
    back = np.hstack([back, np.ones((m * m, 1), np.float32)])  # the bias is one more product to sum
    TH, TW = ceil(H, m), ceil(W, m)
    rows = max(1, TILES // ((m + 2) ** 2 * max(C, F) * TW))
    bands = pieces(TH, rows, team.size)
    Q, q = (m + 2) ** 2, m * m

    def gather(tiles: np.ndarray, n: int, c0: int, c1: int, t0: int, t1: int, worker: int) -> None:
        """Cut the tiles of rows t0 to t1 out of x, with a border of zeros -> tiles (m+2, m+2, channels, t1-t0, TW)."""
        R = t1 - t0
        padded = team.scratch(worker, "padded", c1 - c0, m * R + 2, m * TW + 2)
        window(x[n, c0:c1], m * t0 - 1, -1, padded)
        a, b, c = padded.strides
        tiles[...] = np.lib.stride_tricks.as_strided(padded, tiles.shape, (b, c, a, m * b, m * c))

    def scatter(tiles: np.ndarray, n: int, f0: int, f1: int, t0: int, t1: int) -> None:
        """Put tiles (m, m, filters, t1-t0, TW) to their places in y."""
        whole = min(t1, H // m) - t0  # rows of tiles that lie in the map from top to bottom
        out = y[n, f0:f1, m * t0 : m * (t0 + whole)]
        out = out.reshape(f1 - f0, whole, m, W).transpose(2, 0, 1, 3)
        for j in range(m):
            part = out[..., j::m]
            part[...] = tiles[:, j, :, :whole, : part.shape[-1]]
        for i in range(H - m * (t0 + whole) if whole < t1 - t0 else 0):
            for j in range(m):
                part = y[n, f0:f1, m * (t0 + whole) + i, j::m]
                part[...] = tiles[i, j, :, whole, : part.shape[-1]]

    def band(n: int, t0: int, t1: int) -> Task:
        T = (t1 - t0) * TW
        p0, p1 = m * t0 * W, min(m * t1, H) * W

        def run(worker: int) -> None:
            D = team.scratch(worker, "tiles", Q, C * T)
            V = team.scratch(worker, "V", Q, C * T)
            M = team.scratch(worker, "M", Q + 1, F, T)
            gather(D.reshape(m + 2, m + 2, C, t1 - t0, TW), n, 0, C, t0, t1, worker)
            transform(forth, D, V)
            multiply(U, V.reshape(Q, C, T), M[:Q])
            M[Q] = bias
            Y = team.scratch(worker, "tiles", q, F * T)
            transform(back, M.reshape(Q + 1, F * T), Y)
            scatter(Y.reshape(m, m, F, t1 - t0, TW), n, 0, F, t0, t1)
            finish(worker, n, 0, F, p0, p1)

        return run

    if N > 1 or (len(bands) >= team.size and TW * (bands[0][1] - bands[0][0]) >= 24):
        return [[band(n, *t) for n in range(N) for t in (bands if N == 1 else pieces(TH, rows, 1))]]
    return [[whole_map for whole_map in phase] for phase in _by_positions(
        C, F, H, W, TH * TW, TH, TW, Q, q, m, forth, back, U, gather, scatter, bias, finish, team)]  # fmt: skip


def _by_positions(
    C: int, F: int, H: int, W: int, T: int, TH: int, TW: int, Q: int, q: int, m: int,
    forth: Any, back: Any, U: Any, gather: Any, scatter: Any, bias: np.ndarray, finish: Finish, team: Team,
) -> Phases:  # fmt: skip
    """Small maps: the weights are the largest matrix, so each is read once: the positions are shared out among workers."""

    def cut(c0: int, c1: int) -> Task:
        def run(worker: int) -> None:
            V = team.scratch(0, "shared", Q, C, T)
            D = team.scratch(worker, "tiles", Q, (c1 - c0) * T)
            gather(D.reshape(m + 2, m + 2, c1 - c0, TH, TW), 0, c0, c1, 0, TH, worker)
            transform(forth, D, V[:, c0:c1].reshape(Q, -1))

        return run

    def products(i0: int, i1: int) -> Task:
        def run(worker: int) -> None:
            V = team.scratch(0, "shared", Q, C, T)
            M = team.scratch(0, "products", Q + 1, F, T)
            multiply(U[i0:i1], V[i0:i1], M[i0:i1])

        return run

    def restore(f0: int, f1: int) -> Task:
        def run(worker: int) -> None:
            M = team.scratch(0, "products", Q + 1, F, T)[:, f0:f1]
            M[Q] = bias[f0:f1]
            Y = team.scratch(worker, "tiles", q, (f1 - f0) * T)
            transform(back, M.reshape(Q + 1, -1), Y)
            scatter(Y.reshape(m, m, f1 - f0, TH, TW), 0, f0, f1, 0, TH)
            finish(worker, 0, f0, f1, 0, H * W)

        return run

    most = max(1, TILES // (Q * T))
    return [
        [cut(*c) for c in pieces(C, most, team.size)],
        [products(*i) for i in pieces(Q, ceil(Q, 2 * team.size), team.size)],
        [restore(*f) for f in pieces(F, most, team.size)],
    ]
