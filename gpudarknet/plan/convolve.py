"""Ways to convolve on the CPU. Each turns a step into phases of tasks; a phase begins when the one before has ended.

patches   im2col of a band of rows, one gemm: K = C size^2. A band's matrix stays in cache.
direct    1 x 1: the map is the matrix. A gemm per piece of the map, or of the filters where the map is small.
winograd  3 x 3, stride 1: in `winograd.py`.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from .after import Last
from .gemm import multiply, pack
from .steps import Convolve
from .team import Task, Team

Phases = list[list[Task]]
COL = 1 << 18  # numbers of an im2col piece: 1 MB
WIDE = 192  # pixels that one gemm should have at least: below it packing the weights shows


def ceil(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)


def pieces(length: int, most: int, workers: int) -> list[tuple[int, int]]:
    """Cut a length into nearly equal (from, to), none longer than `most`, their count a multiple of the workers."""
    count = ceil(length, max(1, most))
    count = min(length, ceil(count, workers) * workers)
    edges = [length * i // count for i in range(count + 1)]
    return list(pairwise(edges))


Weights = tuple[np.ndarray, np.ndarray]  # the matrix, and the bias where it is not a column of it


def matrix(kernel: np.ndarray, bias: np.ndarray) -> Weights:
    """Prepare kernel (F, C/groups, size, size) for gemm: -> (F, C/groups size^2)."""
    return kernel.reshape(len(kernel), -1), bias


def packed(kernel: np.ndarray, bias: np.ndarray) -> Weights:
    """As `matrix`, in blocks."""
    return pack(kernel.reshape(len(kernel), -1)), bias


def with_bias(kernel: np.ndarray, bias: np.ndarray) -> Weights:
    """As `packed`, with the bias as one more column, which meets a row of ones."""
    return pack(np.hstack([kernel.reshape(len(kernel), -1), bias.reshape(-1, 1)])), bias


def direct(step: Convolve, x: np.ndarray, y: np.ndarray, weights: Weights, last: Last, team: Team) -> Phases:
    """1 x 1, stride 1, one group: y (F, HW) = weights (F, C) @ x (C, HW)."""
    (N, C), F, P = x.shape[:2], y.shape[1], x.shape[2] * x.shape[3]
    flat, finish = weights[0], last(weights[1])
    tasks: list[Task] = []

    def task(n: int, p0: int, p1: int, f0: int, f1: int) -> Task:
        w, b, out = filters(flat, f0, f1), x[n].reshape(C, P)[:, p0:p1], y[n].reshape(F, P)[f0:f1, p0:p1]

        def run(worker: int) -> None:
            multiply(w, b, out)
            finish(worker, n, f0, f1, p0, p1)

        return run

    if N * P >= team.size * 2 * WIDE:
        parts = pieces(P, max(WIDE, COL // (C + F)), 1 if N > 1 else team.size)
        tasks = [task(n, *p, 0, F) for n in range(N) for p in parts]
    else:
        tasks = [task(n, 0, P, *f) for n in range(N) for f in by_filters(flat, F, team.size)]
    return [tasks]


def by_filters(weights: np.ndarray, F: int, workers: int) -> list[tuple[int, int]]:
    """Cut the filters of a prepared matrix into (from, to), one piece per worker, where its blocks allow."""
    b = weights.shape[-1] if weights.ndim == 3 else 1
    return [(b * f0, b * f1) for f0, f1 in pieces(F // b, F // b, workers)]


def filters(weights: np.ndarray, f0: int, f1: int) -> np.ndarray:
    """Return the part of a prepared matrix that makes filters f0 to f1."""
    b = weights.shape[-1] if weights.ndim == 3 else 1
    return weights[f0 // b : f1 // b]


def pool(x: np.ndarray, out: np.ndarray, worker: int, team: Team) -> None:
    """Keep the maximum of each 2 x 2 block: x (F, 2R, 2S) -> out (F, R, S)."""
    F, R, S = x.shape
    rows = team.scratch(worker, "rows", F, R // 2, S)
    np.maximum(x[:, ::2], x[:, 1::2], out=rows)
    np.maximum(rows[:, :, ::2], rows[:, :, 1::2], out=out)


def window(x: np.ndarray, top: int, left: int, out: np.ndarray) -> None:
    """Copy what x (C, H, W) has from (top, left) on into out (C, R, S), and zeros where that is outside x."""
    (H, W), (R, S) = x.shape[1:], out.shape[1:]
    a, b, c, d = max(0, -top), min(R, H - top), max(0, -left), min(S, W - left)
    if b <= a or d <= c:
        out[...] = 0
        return
    for border in (out[:, :a], out[:, b:], out[:, a:b, :c], out[:, a:b, d:]):
        if border.size:
            border[...] = 0
    out[:, a:b, c:d] = x[:, top + a : top + b, left + c : left + d]


def fill_patches(col: np.ndarray, x: np.ndarray, step: Convolve, r0: int, padded: np.ndarray) -> None:
    """Lay out patches: x (C, H, W) -> col (C, size, size, R, OW), the output rows from r0 on; zeros outside x.

    It takes few calls, as each may have to wait for the interpreter's lock: a padded copy, and one copy of its windows.
    """
    (sy, sx), d = step.strides, step.dilation
    window(x, r0 * sy - step.pad, -step.pad, padded)
    a, b, c = padded.strides
    col[...] = np.ndarray(col.shape, np.float32, padded, 0, (a, d * b, d * c, sy * b, sx * c))


def extent(step: Convolve, C: int, R: int) -> tuple[int, int, int]:
    """Return the shape of the input, border included, that R rows of the output are made from."""
    reach, OW = (step.size - 1) * step.dilation + 1, step.host[1]
    return C, (R - 1) * step.strides[0] + reach, (OW - 1) * step.strides[1] + reach


def patches(step: Convolve, x: np.ndarray, y: np.ndarray, weights: Weights, last: Last, team: Team) -> Phases:
    """Any size, stride and dilation, one group. The bias is the product of one more column of weights with ones."""
    (N, C), F, (OH, OW), size = x.shape[:2], y.shape[1], step.host, step.size
    K, s = C * size * size, 2 if step.pooled else 1  # a band has a multiple of s rows
    flat, finish = weights[0], last(None)
    small = N * OH * OW < 2 * WIDE * team.size

    def product(worker: int, n: int, r0: int, r1: int, f0: int, f1: int, col: np.ndarray) -> None:
        """Make rows r0 to r1 of filters f0 to f1, pooled if they are to be."""
        p0, p1 = r0 * OW // s**2, r1 * OW // s**2
        out = y[n].reshape(F, -1)[f0:f1, p0:p1]
        if not step.pooled:
            multiply(filters(flat, f0, f1), col, out)
        else:
            band = team.scratch(worker, "band", f1 - f0, (r1 - r0) * OW)
            multiply(filters(flat, f0, f1), col, band)
            pool(band.reshape(-1, r1 - r0, OW), y[n, f0:f1, r0 // 2 : r1 // 2], worker, team)
        finish(worker, n, f0, f1, p0, p1)

    def band(n: int, r0: int, r1: int) -> Task:
        def run(worker: int) -> None:
            col = team.scratch(worker, "col", K + 1, (r1 - r0) * OW)
            padded = team.scratch(worker, "padded", *extent(step, C, r1 - r0))
            fill_patches(col[:K].reshape(C, size, size, r1 - r0, OW), x[n], step, r0, padded)
            col[K] = 1
            product(worker, n, r0, r1, 0, F, col)

        return run

    def fill(n: int, c0: int, c1: int) -> Task:
        def run(worker: int) -> None:
            col = team.scratch(0, "shared", K + 1, OH * OW)
            padded = team.scratch(worker, "padded", *extent(step, c1 - c0, OH))
            fill_patches(col[:K].reshape(C, size, size, OH, OW)[c0:c1], x[n, c0:c1], step, 0, padded)
            col[K] = 1

        return run

    def share(n: int, f0: int, f1: int) -> Task:
        return lambda worker: product(worker, n, 0, OH, f0, f1, team.scratch(0, "shared", K + 1, OH * OW))

    if small:  # the weights are the larger matrix: every worker takes some of the filters, on shared patches
        phases: Phases = []
        for n in range(N):
            phases += [[fill(n, *c) for c in pieces(C, C, team.size)]]
            phases += [[share(n, *f) for f in by_filters(flat, F, team.size)]]
        return phases
    rows = max(COL // (K * OW), ceil(WIDE, OW))
    bands = pieces(OH // s, max(1, rows // s), 1 if N > 1 else team.size)
    return [[band(n, s * r0, s * r1) for n in range(N) for r0, r1 in bands]]


def grouped(step: Convolve, x: np.ndarray, y: np.ndarray, weights: Weights, last: Last, team: Team) -> Phases:
    """As `patches`, a small gemm for each group."""
    (N, C, _, _), (_, F, OH, OW), size, g = x.shape, y.shape, step.size, step.groups
    K = C // g * size * size
    finish, flat = last(weights[1]), weights[0].reshape(g, F // g, K)
    rows = max(COL // (C * size * size * OW), 1)

    def task(n: int, r0: int, r1: int) -> Task:
        L, out = (r1 - r0) * OW, y[n].reshape(g, F // g, OH * OW)[:, :, r0 * OW : r1 * OW]

        def run(worker: int) -> None:
            col = team.scratch(worker, "col", C, size, size, r1 - r0, OW)
            padded = team.scratch(worker, "padded", *extent(step, C, r1 - r0))
            fill_patches(col, x[n], step, r0, padded)
            np.matmul(flat, col.reshape(g, K, L), out=out)
            finish(worker, n, 0, F, r0 * OW, r1 * OW)

        return run

    return [[task(n, *r) for n in range(N) for r in pieces(OH, rows, 1 if N > 1 else team.size)]]
