"""Convolution algorithms of the CPU, as stages of tasks.

Maps are (N, H, W, C) views: channels are contiguous, pixels may be strided.

im2col_gemm   im2col of a band of rows, one gemm with K = size^2 C. A band's matrix stays in cache.
gemm_1x1      1 x 1: the map is the matrix. A gemm per piece of the map, or of the filters if the map is small.
grouped_gemm  as im2col_gemm, with a small gemm for each group.
depthwise     one kernel per channel: multiply and add, tap by tap.
winograd      3 x 3, stride 1: in `winograd.py`.
"""

from __future__ import annotations

import numpy as np

from ...backend.threads import split_range
from ..steps import Convolve
from .command_list import CommandList, Task, TaskStages
from .epilogue import EpilogueFactory
from .gemm import matmul, pack_weights

COL_SIZE = 1 << 18  # elements of an im2col matrix: 1 MB
MIN_GEMM_ROWS = 192  # pixels that one gemm should have; with fewer, reading the weights dominates
MIN_CONTIGUOUS_CHANNELS = 8  # with fewer, runs along a row of the map are longer than runs along the channels

PackedWeights = tuple[np.ndarray, np.ndarray]  # the matrix, and the bias


def ceil_div(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)


def as_matrix(a: np.ndarray) -> np.ndarray:
    """View rows of a map (R, W, C) as (R*W, C). `reshape` copies if it cannot tell that the rows are contiguous."""
    R, W, C = a.shape
    return np.lib.stride_tricks.as_strided(a, (R * W, C), a.strides[1:])


def weight_matrix(kernel: np.ndarray) -> np.ndarray:
    """Reorder kernel (F, C/groups, size, size) as im2col orders pixels: -> (size^2 C/groups, F)."""
    return kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel))


def pack_gemm_1x1(kernel: np.ndarray, bias: np.ndarray) -> PackedWeights:
    """Pack for `gemm_1x1`."""
    return pack_weights(weight_matrix(kernel)), bias


def pack_im2col(kernel: np.ndarray, bias: np.ndarray) -> PackedWeights:
    """Pack for `im2col_gemm`: the bias is one more row, multiplied by a column of ones."""
    return pack_weights(np.vstack([weight_matrix(kernel), bias])), bias


def pack_grouped(kernel: np.ndarray, bias: np.ndarray) -> PackedWeights:
    """Pack for `grouped_gemm` and `depthwise`: (size^2 C/groups, F)."""
    return np.ascontiguousarray(weight_matrix(kernel)), bias


def split_filters(weights: np.ndarray, workers: int) -> list[tuple[int, int]]:
    """Split the filters of a packed matrix into ranges (from, to), one per worker if its blocks allow."""
    count, b = (weights.shape[-3], weights.shape[-1]) if weights.ndim == 3 else (weights.shape[-1], 1)
    return [(b * f0, b * f1) for f0, f1 in split_range(count, count, workers)]


def filter_slice(weights: np.ndarray, f0: int, f1: int) -> np.ndarray:
    """Return the part of a packed matrix that computes filters f0 to f1."""
    b = weights.shape[-1]
    return weights[f0 // b : f1 // b] if weights.ndim == 3 else weights[:, f0:f1]


def gemm_1x1(
    step: Convolve, x: np.ndarray, y: np.ndarray, weights: PackedWeights, epilogue: EpilogueFactory, workers: int
) -> TaskStages:
    """1 x 1, stride 1, one group: y (HW, F) = x (HW, C) @ weights (C, F)."""
    (N, H, W, C), F = x.shape, y.shape[3]
    matrix, apply_epilogue = weights[0], epilogue(weights[1])

    def task(n: int, r0: int, r1: int, f0: int, f1: int) -> Task:
        def record(commands: CommandList) -> None:
            out = commands.scratch("gemm", (r1 - r0) * W, f1 - f0)
            matmul(commands, as_matrix(x[n, r0:r1]), filter_slice(matrix, f0, f1), out)
            apply_epilogue(commands, n, r0, r1, f0, f1, out.reshape(r1 - r0, W, -1))

        return record

    if N * H * W >= workers * 2 * MIN_GEMM_ROWS:
        bands = split_range(H, max(MIN_GEMM_ROWS, COL_SIZE // (C + F)) // W, 1 if N > 1 else workers)
        return [[task(n, *r, 0, F) for n in range(N) for r in bands]]
    return [[task(n, 0, H, *f) for n in range(N) for f in split_filters(matrix, workers)]]


def maxpool_2x2(commands: CommandList, x: np.ndarray) -> np.ndarray:
    """Record the maximum of each 2 x 2 block: x (2R, 2S, F) -> (R, S, F), in scratch."""
    R, S, F = x.shape
    rows = commands.scratch("rows", R // 2, S, F)
    commands.record(np.maximum, x[::2], x[1::2], out=rows)
    pooled = commands.scratch("pooled", R // 2, S // 2, F)
    commands.record(np.maximum, rows[:, ::2], rows[:, 1::2], out=pooled)
    return pooled


def copy_padded(commands: CommandList, x: np.ndarray, top: int, left: int, out: np.ndarray, fill: float = 0) -> None:
    """Record copying the window of x (H, W, C) that begins at (top, left) to out (R, S, C); outside x it is `fill`."""
    (H, W), (R, S) = x.shape[:2], out.shape[:2]
    a, b, c, d = max(0, -top), min(R, H - top), max(0, -left), min(S, W - left)
    if b <= a or d <= c:
        commands.record(out.fill, fill)
        return
    for border in (out[:a], out[b:], out[a:b, :c], out[a:b, d:]):
        if border.size:
            commands.record(border.fill, fill)
    commands.record(np.copyto, out[a:b, c:d], x[top + a : top + b, left + c : left + d])


def channel_scratch(commands: CommandList, name: str, channels: int, *shape: int) -> np.ndarray:
    """Return scratch whose last axis holds channels: contiguous, or planar (channels outermost in memory) if there are few."""
    if channels >= MIN_CONTIGUOUS_CHANNELS:
        return commands.scratch(name, *shape)
    return np.moveaxis(commands.scratch(name, shape[-1], *shape[:-1]), 0, -1)


def sliding_windows(commands: CommandList, step: Convolve, x: np.ndarray, r0: int, r1: int) -> np.ndarray:
    """View the inputs of output rows r0 to r1: x (H, W, C) -> (R, OW, size, size, C), 0 outside x."""
    (sy, sx), d, C = step.strides, step.dilation, x.shape[2]
    R, OW, extent = r1 - r0, step.conv_output_size[1], (step.size - 1) * step.dilation + 1
    padded = channel_scratch(commands, "padded", C, (R - 1) * sy + extent, (OW - 1) * sx + extent, C)
    copy_padded(commands, x, r0 * sy - step.pad, -step.pad, padded)
    a, b, c = padded.strides
    shape = (R, OW, step.size, step.size, C)
    return np.lib.stride_tricks.as_strided(padded, shape, (sy * a, sx * b, d * a, d * b, c))


def im2col_gemm(
    step: Convolve, x: np.ndarray, y: np.ndarray, weights: PackedWeights, epilogue: EpilogueFactory, workers: int
) -> TaskStages:
    """Any size, stride and dilation, one group. The bias is one more row of the weights, multiplied by ones."""
    (N, _, _, C), F, (OH, OW), size = x.shape, y.shape[3], step.conv_output_size, step.size
    K, s = C * size * size, 2 if step.pooled else 1  # a band has a multiple of s rows
    matrix, apply_epilogue = weights[0], epilogue(None)

    def im2col(commands: CommandList, col: np.ndarray, n: int, r0: int, r1: int) -> None:
        windows = sliding_windows(commands, step, x[n], r0, r1)
        commands.record(np.copyto, col[:, :K].reshape(windows.shape), windows)
        commands.record(col[:, K].fill, 1)

    def gemm(commands: CommandList, col: np.ndarray, n: int, r0: int, r1: int, f0: int, f1: int) -> None:
        """Compute rows r0 to r1 of filters f0 to f1, with max-pooling if it is fused."""
        out = commands.scratch("gemm", len(col), f1 - f0)
        matmul(commands, col, filter_slice(matrix, f0, f1), out)
        rows = out.reshape(r1 - r0, OW, -1)
        rows = maxpool_2x2(commands, rows) if step.pooled else rows
        apply_epilogue(commands, n, r0 // s, r1 // s, f0, f1, rows)

    def band(n: int, r0: int, r1: int) -> Task:
        def record(commands: CommandList) -> None:
            col = channel_scratch(commands, "col", C, (r1 - r0) * OW, K + 1)
            im2col(commands, col, n, r0, r1)
            gemm(commands, col, n, r0, r1, 0, F)

        return record

    def shared_col(commands: CommandList) -> np.ndarray:
        return commands.shared("col", OH * OW, K + 1)

    def im2col_rows(n: int, r0: int, r1: int) -> Task:
        return lambda commands: im2col(commands, shared_col(commands)[r0 * OW : r1 * OW], n, r0, r1)

    def gemm_filters(n: int, f0: int, f1: int) -> Task:
        return lambda commands: gemm(commands, shared_col(commands), n, 0, OH, f0, f1)

    if N * OH * OW < 2 * MIN_GEMM_ROWS * workers:  # the weights are the larger matrix: split the filters among workers
        row_ranges, filter_ranges = split_range(OH, OH, workers), split_filters(matrix, workers)
        stages: TaskStages = []
        for n in range(N):
            stages += [im2col_rows(n, *r) for r in row_ranges], [gemm_filters(n, *f) for f in filter_ranges]
        return stages
    rows = max(COL_SIZE // (K * OW), ceil_div(MIN_GEMM_ROWS, OW))
    bands = split_range(OH // s, max(1, rows // s), 1 if N > 1 else workers)
    return [[band(n, s * r0, s * r1) for n in range(N) for r0, r1 in bands]]


def grouped_gemm(
    step: Convolve, x: np.ndarray, y: np.ndarray, weights: PackedWeights, epilogue: EpilogueFactory, workers: int
) -> TaskStages:
    """Any size, stride and dilation, several groups."""
    (N, _, _, C), F, (OH, OW), size, g = x.shape, y.shape[3], step.conv_output_size, step.size, step.groups
    K, apply_epilogue = C // g * size * size, epilogue(weights[1])
    matrices = weights[0].reshape(K, g, F // g).swapaxes(0, 1)

    def task(n: int, r0: int, r1: int) -> Task:
        R, L = r1 - r0, (r1 - r0) * OW

        def record(commands: CommandList) -> None:
            col, out = commands.scratch("col", g, L, K), commands.scratch("gemm", R, OW, F)
            windows = sliding_windows(commands, step, x[n], r0, r1).reshape(R, OW, size, size, g, C // g)
            commands.record(np.copyto, col.reshape(g, R, OW, size, size, C // g), windows.transpose(4, 0, 1, 2, 3, 5))
            commands.record(np.matmul, col, matrices, out=out.reshape(L, g, F // g).swapaxes(0, 1))
            apply_epilogue(commands, n, r0, r1, 0, F, out)

        return record

    bands = split_range(OH, max(COL_SIZE // (C * size * size * OW), 1), 1 if N > 1 else workers)
    return [[task(n, *r) for n in range(N) for r in bands]]


def depthwise(
    step: Convolve, x: np.ndarray, y: np.ndarray, weights: PackedWeights, epilogue: EpilogueFactory, workers: int
) -> TaskStages:
    """Any size, stride and dilation; groups = channels = filters."""
    (N, _, _, C), (OH, OW), size = x.shape, step.conv_output_size, step.size
    apply_epilogue = epilogue(weights[1])

    def task(n: int, r0: int, r1: int) -> Task:
        def record(commands: CommandList) -> None:
            windows = sliding_windows(commands, step, x[n], r0, r1)
            total, product = commands.scratch("gemm", 2, r1 - r0, OW, C)
            for i, w in enumerate(weights[0]):
                out = product if i else total
                commands.record(np.multiply, windows[:, :, i // size, i % size], w, out=out)
                if i:
                    commands.record(np.add, total, product, out=total)
            apply_epilogue(commands, n, r0, r1, 0, C, total)

        return record

    bands = split_range(OH, max(COL_SIZE // (8 * C * OW), 1), 1 if N > 1 else workers)
    return [[task(n, *r) for n in range(N) for r in bands]]
