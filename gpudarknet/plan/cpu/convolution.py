"""Ways to convolve on the CPU. Each turns a step into phases of tasks; a phase begins when the one before has ended.

Maps are (N, H, W, C) views: a pixel's channels lie side by side, pixels may lie apart.

patches    im2col of a band of rows, one gemm: K = size^2 C. A band's matrix stays in cache.
direct     1 x 1: the map is the matrix. A gemm per piece of the map, or of the filters where the map is small.
grouped    as patches, a small gemm for each group.
depthwise  a kernel of its own for every channel: products and sums, tap by tap.
winograd   3 x 3, stride 1: in `winograd.py`.
"""

from __future__ import annotations

import numpy as np

from ...backend.threads import split_range
from ..steps import Convolve
from .command_list import Tape, Task
from .epilogue import Last
from .gemm import multiply, pack

Phases = list[list[Task]]
COL = 1 << 18  # numbers of an im2col piece: 1 MB
TALL = 192  # pixels that one gemm should have at least: below it reading the weights shows


def ceil(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)


def pixels(a: np.ndarray) -> np.ndarray:
    """View rows of a map, (R, W, C), as (R*W, C). `reshape` copies where it cannot tell that rows follow each other."""
    R, W, C = a.shape
    return np.lib.stride_tricks.as_strided(a, (R * W, C), a.strides[1:])


Weights = tuple[np.ndarray, np.ndarray]  # the matrix, and the bias where it is not a row of it


def rows_of(kernel: np.ndarray) -> np.ndarray:
    """Order kernel (F, C/groups, size, size) as a patch is: -> (size^2 C/groups, F)."""
    return kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel))


def packed(kernel: np.ndarray, bias: np.ndarray) -> Weights:
    """Prepare for `direct`."""
    return pack(rows_of(kernel)), bias


def with_bias(kernel: np.ndarray, bias: np.ndarray) -> Weights:
    """Prepare for `patches`: the bias is one more row, which meets a column of ones."""
    return pack(np.vstack([rows_of(kernel), bias])), bias


def in_rows(kernel: np.ndarray, bias: np.ndarray) -> Weights:
    """Prepare for `grouped` and `depthwise`: (size^2 C/groups, F)."""
    return np.ascontiguousarray(rows_of(kernel)), bias


def by_filters(weights: np.ndarray, workers: int) -> list[tuple[int, int]]:
    """Cut the filters of a prepared matrix into (from, to), one piece per worker, where its blocks allow."""
    count, b = (weights.shape[-3], weights.shape[-1]) if weights.ndim == 3 else (weights.shape[-1], 1)
    return [(b * f0, b * f1) for f0, f1 in split_range(count, count, workers)]


def filters(weights: np.ndarray, f0: int, f1: int) -> np.ndarray:
    """Return the part of a prepared matrix that makes filters f0 to f1."""
    b = weights.shape[-1]
    return weights[f0 // b : f1 // b] if weights.ndim == 3 else weights[:, f0:f1]


def direct(step: Convolve, x: np.ndarray, y: np.ndarray, weights: Weights, last: Last, workers: int) -> Phases:
    """1 x 1, stride 1, one group: y (HW, F) = x (HW, C) @ weights (C, F)."""
    (N, H, W, C), F = x.shape, y.shape[3]
    matrix, finish = weights[0], last(weights[1])

    def task(n: int, r0: int, r1: int, f0: int, f1: int) -> Task:
        def record(tape: Tape) -> None:
            out = tape.scratch("product", (r1 - r0) * W, f1 - f0)
            multiply(tape, pixels(x[n, r0:r1]), filters(matrix, f0, f1), out)
            finish(tape, n, r0, r1, f0, f1, out.reshape(r1 - r0, W, -1))

        return record

    if N * H * W >= workers * 2 * TALL:
        parts = split_range(H, max(TALL, COL // (C + F)) // W, 1 if N > 1 else workers)
        return [[task(n, *r, 0, F) for n in range(N) for r in parts]]
    return [[task(n, 0, H, *f) for n in range(N) for f in by_filters(matrix, workers)]]


def pool(tape: Tape, x: np.ndarray) -> np.ndarray:
    """Keep the maximum of each 2 x 2 block: x (2R, 2S, F) -> (R, S, F), in scratch."""
    R, S, F = x.shape
    rows = tape.scratch("rows", R // 2, S, F)
    tape(np.maximum, x[::2], x[1::2], out=rows)
    found = tape.scratch("pooled", R // 2, S // 2, F)
    tape(np.maximum, rows[:, ::2], rows[:, 1::2], out=found)
    return found


def window(tape: Tape, x: np.ndarray, top: int, left: int, out: np.ndarray, fill: float = 0) -> None:
    """Copy what x (H, W, C) has from (top, left) on into out (R, S, C), and `fill` where that is outside x."""
    (H, W), (R, S) = x.shape[:2], out.shape[:2]
    a, b, c, d = max(0, -top), min(R, H - top), max(0, -left), min(S, W - left)
    if b <= a or d <= c:
        tape(out.fill, fill)
        return
    for border in (out[:a], out[b:], out[a:b, :c], out[a:b, d:]):
        if border.size:
            tape(border.fill, fill)
    tape(np.copyto, out[a:b, c:d], x[top + a : top + b, left + c : left + d])


FEW = 8  # channels: with fewer, runs along a row of the map are longer than along the channels


def grid(tape: Tape, name: str, channels: int, *shape: int) -> np.ndarray:
    """Return scratch whose last axis, made of channels, lies side by side, or apart if those are few."""
    if channels >= FEW:
        return tape.scratch(name, *shape)
    return np.moveaxis(tape.scratch(name, shape[-1], *shape[:-1]), 0, -1)


def taps(tape: Tape, step: Convolve, x: np.ndarray, r0: int, r1: int) -> np.ndarray:
    """View what the output's rows r0 to r1 are made from: x (H, W, C) -> (R, OW, size, size, C), zeros outside x."""
    (sy, sx), d, R, OW, reach = (
        step.strides,
        step.dilation,
        r1 - r0,
        step.conv_output_size[1],
        (step.size - 1) * step.dilation + 1,
    )
    padded = grid(tape, "padded", x.shape[2], (R - 1) * sy + reach, (OW - 1) * sx + reach, x.shape[2])
    window(tape, x, r0 * sy - step.pad, -step.pad, padded)
    a, b, c = padded.strides
    shape = (R, OW, step.size, step.size, x.shape[2])
    return np.lib.stride_tricks.as_strided(padded, shape, (sy * a, sx * b, d * a, d * b, c))


def patches(step: Convolve, x: np.ndarray, y: np.ndarray, weights: Weights, last: Last, workers: int) -> Phases:
    """Any size, stride and dilation, one group. The bias is the product of ones with one more row of weights."""
    (N, _, _, C), F, (OH, OW), size = x.shape, y.shape[3], step.conv_output_size, step.size
    K, s = C * size * size, 2 if step.pooled else 1  # a band has a multiple of s rows
    matrix, finish = weights[0], last(None)

    def fill(tape: Tape, col: np.ndarray, n: int, r0: int, r1: int) -> None:
        found = taps(tape, step, x[n], r0, r1)
        tape(np.copyto, col[:, :K].reshape(found.shape), found)
        tape(col[:, K].fill, 1)

    def product(tape: Tape, col: np.ndarray, n: int, r0: int, r1: int, f0: int, f1: int) -> None:
        """Make rows r0 to r1 of filters f0 to f1, pooled if they are to be."""
        out = tape.scratch("product", len(col), f1 - f0)
        multiply(tape, col, filters(matrix, f0, f1), out)
        found = out.reshape(r1 - r0, OW, -1)
        finish(tape, n, r0 // s, r1 // s, f0, f1, pool(tape, found) if step.pooled else found)

    def band(n: int, r0: int, r1: int) -> Task:
        def record(tape: Tape) -> None:
            col = grid(tape, "col", C, (r1 - r0) * OW, K + 1)
            fill(tape, col, n, r0, r1)
            product(tape, col, n, r0, r1, 0, F)

        return record

    def shared(tape: Tape) -> np.ndarray:
        return tape.shared("col", OH * OW, K + 1)

    def lay_out(n: int, r0: int, r1: int) -> Task:
        return lambda tape: fill(tape, shared(tape)[r0 * OW : r1 * OW], n, r0, r1)

    def share(n: int, f0: int, f1: int) -> Task:
        return lambda tape: product(tape, shared(tape), n, 0, OH, f0, f1)

    if N * OH * OW < 2 * TALL * workers:  # the weights are the larger matrix: every worker takes some of the filters
        cuts, shares = split_range(OH, OH, workers), by_filters(matrix, workers)
        return [tasks for n in range(N) for tasks in ([lay_out(n, *r) for r in cuts], [share(n, *f) for f in shares])]
    rows = max(COL // (K * OW), ceil(TALL, OW))
    bands = split_range(OH // s, max(1, rows // s), 1 if N > 1 else workers)
    return [[band(n, s * r0, s * r1) for n in range(N) for r0, r1 in bands]]


def grouped(step: Convolve, x: np.ndarray, y: np.ndarray, weights: Weights, last: Last, workers: int) -> Phases:
    """Any size, stride and dilation, several groups."""
    (N, _, _, C), F, (OH, OW), size, g = x.shape, y.shape[3], step.conv_output_size, step.size, step.groups
    K, finish = C // g * size * size, last(weights[1])
    matrices = weights[0].reshape(K, g, F // g).swapaxes(0, 1)

    def task(n: int, r0: int, r1: int) -> Task:
        R, L = r1 - r0, (r1 - r0) * OW

        def record(tape: Tape) -> None:
            col, out = tape.scratch("col", g, L, K), tape.scratch("product", R, OW, F)
            found = taps(tape, step, x[n], r0, r1).reshape(R, OW, size, size, g, C // g)
            tape(np.copyto, col.reshape(g, R, OW, size, size, C // g), found.transpose(4, 0, 1, 2, 3, 5))
            tape(np.matmul, col, matrices, out=out.reshape(L, g, F // g).swapaxes(0, 1))
            finish(tape, n, r0, r1, 0, F, out)

        return record

    bands = split_range(OH, max(COL // (C * size * size * OW), 1), 1 if N > 1 else workers)
    return [[task(n, *r) for n in range(N) for r in bands]]


def depthwise(step: Convolve, x: np.ndarray, y: np.ndarray, weights: Weights, last: Last, workers: int) -> Phases:
    """Any size, stride and dilation; as many groups as channels as filters."""
    (N, _, _, C), (OH, OW), size = x.shape, step.conv_output_size, step.size
    finish = last(weights[1])

    def task(n: int, r0: int, r1: int) -> Task:
        def record(tape: Tape) -> None:
            found = taps(tape, step, x[n], r0, r1)
            total, one = tape.scratch("product", 2, r1 - r0, OW, C)
            for i, w in enumerate(weights[0]):
                tape(np.multiply, found[:, :, i // size, i % size], w, out=one if i else total)
                if i:
                    tape(np.add, total, one, out=total)
            finish(tape, n, r0, r1, 0, C, total)

        return record

    bands = split_range(OH, max(COL // (8 * C * OW), 1), 1 if N > 1 else workers)
    return [[task(n, *r) for n in range(N) for r in bands]]
