"""The backward of steps other than convolutions and normalizations, as stages of tasks on maps (N, H, W, C)."""

from __future__ import annotations

from math import prod

import numpy as np

from ....backend import Backend
from ....backend.threads import split_range
from ....ops import shortcut
from ...steps import Activate, Copy, MaxPool, SortShortcut, Upsample
from ..command_list import CommandList, Task, TaskStages
from ..convolution import copy_padded
from ..program import TASK_SIZE
from . import fused
from .activations import apply_gradient
from .convolution import inside
from .pixels import MIN_TASKS, as_pixels, share, split_pixels


def maxpool_backward(
    step: MaxPool, x: np.ndarray, y: np.ndarray, dy: np.ndarray, dx: np.ndarray, adds: bool, workers: int
) -> TaskStages:
    """Add dy to the pixel that each maximum came from, the first in its window (row by row) if several are equal.

    The maxima of the rows of windows are computed again: first the row that holds the maximum is found, then the column in it.
    """
    (N, H, W, C), (_, OH, OW, _) = x.shape, y.shape
    size, (sy, sx), pad = step.size, step.strides, step.padding // 2
    if fused.available():

        def images(first: int, end: int) -> Task:
            def record(commands: CommandList) -> None:
                maps = (v for m in (x, dy, dx) for v in (fused.flat(m), fused.step(m)))
                numbers = H, W, OH, OW, size, sy, sx, pad, C, first, end, adds
                fused.record(commands, fused.kernels().maxpool_gradient, *maps, *numbers)

            return record

        return [[images(*r) for r in share(N, workers, H * W * C)]]
    c_count = max(1, min(C, -(-MIN_TASKS // N)))
    channels = split_range(C, max(8, -(-C // c_count)))

    def task(n: int, c0: int, c1: int) -> Task:
        def record(commands: CommandList) -> None:
            c, target = c1 - c0, dx[n, :, :, c0:c1]
            if not adds:
                commands.record(target.fill, 0)
            rows = max(1, (TASK_SIZE // 2) // (W * c * max(1, sy)))
            for r0, r1 in split_range(OH, rows):
                band(commands, n, slice(c0, c1), r0, r1, target)

        return record

    def band(commands: CommandList, n: int, c: slice, r0: int, r1: int, target: np.ndarray) -> None:
        R, width = r1 - r0, c.stop - c.start
        top, height, padded_width = r0 * sy - pad, (R - 1) * sy + size, max(pad + W, (OW - 1) * sx + size)
        source = commands.scratch("padded", height, padded_width, width)
        copy_padded(commands, x[n, :, :, c], top, -pad, source, -np.inf)
        taps = [source[:, q : q + (OW - 1) * sx + 1 : sx] for q in range(size)]
        row_maxima = commands.scratch("rows", height, OW, width)
        commands.record(np.copyto, row_maxima, taps[0])
        for tap in taps[1:]:
            commands.record(np.maximum, row_maxima, tap, out=row_maxima)
        maxima = commands.scratch("pooled", R, OW, width)
        gradient = commands.scratch("gradient", R, OW, width)
        commands.record(np.copyto, maxima, y[n, r0:r1, :, c])
        commands.record(np.copyto, gradient, dy[n, r0:r1, :, c])
        row_gradient = commands.scratch("row gradient", height, OW, width)
        commands.record(row_gradient.fill, 0)
        by_row = [slice(p, p + (R - 1) * sy + 1, sy) for p in range(size)]
        distribute(commands, [row_maxima[p] for p in by_row], maxima, gradient, [row_gradient[p] for p in by_row])
        inner = [inside(q - pad, sx, 0, OW, W) for q in range(size)]
        a, b = max(0, -top), min(height, H - top)  # the rows within the map
        sources = [tap[a:b] for tap in taps]
        targets = [target[top + a : top + b, x0 : x0 + (j1 - j0 - 1) * sx + 1 : sx] for x0, j0, j1 in inner]
        columns = [slice(j0, j1) for _, j0, j1 in inner]
        distribute(commands, sources, row_maxima[a:b], row_gradient[a:b], targets, columns)

    return [[task(n, *c) for n in range(N) for c in channels]]


def distribute(
    commands: CommandList, taps: list[np.ndarray], maxima: np.ndarray, gradient: np.ndarray, targets: list[np.ndarray],
    columns: list[slice] | None = None,
) -> None:  # fmt: skip
    """Record adding `gradient` to the target of the first tap that equals `maxima`; gradient becomes 0 where it was added.

    columns: which columns of a tap its target has.
    """
    equal = mask(commands, maxima.shape)
    part = commands.scratch("part", *maxima.shape)
    for k, (tap, target) in enumerate(zip(taps, targets, strict=True)):
        commands.record(np.equal, tap, maxima, out=equal)
        commands.record(np.multiply, gradient, equal, out=part)
        if k < len(taps) - 1:
            commands.record(np.subtract, gradient, part, out=gradient)
        source = part if columns is None else part[:, columns[k]]
        commands.record(np.add, target, source, out=target)


def mask(commands: CommandList, shape: tuple[int, ...]) -> np.ndarray:
    """Return uninitialized scratch for truth values."""
    n = prod(shape)
    return commands.scratch("mask", -(-n // 4)).view(np.bool_)[:n].reshape(shape)


def upsample_backward(step: Upsample, dy: np.ndarray, dx: np.ndarray, adds: bool) -> TaskStages:
    """Sum the gradients of the s x s copies of each pixel, multiplied by scale."""
    (N, H, W, C), s = dx.shape, step.s

    def task(n: int, r0: int, r1: int) -> Task:
        def record(commands: CommandList) -> None:
            total = commands.scratch("gradient", r1 - r0, W, C)
            copies = [dy[n, r0 * s + p : r1 * s : s, q::s] for p in range(s) for q in range(s)]
            commands.record(np.copyto, total, copies[0])
            for copy in copies[1:]:
                commands.record(np.add, total, copy, out=total)
            if step.scale != 1:
                commands.record(np.multiply, total, np.float32(step.scale), out=total)
            target = dx[n, r0:r1]
            if adds:
                commands.record(np.add, target, total, out=target)
            else:
                commands.record(np.copyto, target, total)

        return record

    return [[task(n, *r) for n in range(N) for r in split_range(H, max(1, TASK_SIZE // (2 * W * C)))]]


def copy_backward(
    step: Copy,
    saved: list[np.ndarray],
    dy: np.ndarray,
    dxs: list[np.ndarray | None],
    adds: tuple[bool, ...],
    workers: int,
) -> TaskStages:
    """Return the stage for a sum of maps, one activation, or a SORT shortcut; saved: the maps that it needs."""
    d, targets, kept = as_pixels(dy), [None if m is None else as_pixels(m) for m in dxs], [as_pixels(m) for m in saved]
    op = step.epilogue[0] if step.epilogue else None
    present = [m for m in targets if m is not None]
    if isinstance(op, SortShortcut) and not op.slope and fused.available() and len(present) == 2:
        (a, b), (da, db) = kept, present

        def pixels(first: int, end: int) -> Task:
            def record(commands: CommandList) -> None:
                runs = fused.Runs(d, a, b, da, db)
                arrays = (fused.flat(m) for m in (d, a, b, da, db))
                numbers = np.float32(op.eps), first, end, d.shape[1], runs.length, *runs.steps, *adds
                fused.record(commands, fused.kernels().sort_gradient, *arrays, *numbers)

            return record

        return [[pixels(*r) for r in share(len(d), workers, 4 * d.shape[1])]]

    def task(a: int, b: int) -> Task:
        def record(commands: CommandList) -> None:
            gradients: list[np.ndarray] = [d[a:b]] * len(targets)
            if isinstance(op, Activate):
                s, t, u, v = commands.scratch("pointwise", 4, *d[a:b].shape)
                commands.record(np.copyto, v, kept[0][a:b])
                apply_gradient(commands, op.kind, d[a:b], v, kept[-1][a:b], s, t, u)
                gradients = [s]
            elif isinstance(op, SortShortcut):
                gradients = sort_backward(commands, op, d[a:b], kept[0][a:b], kept[1][a:b])
            for gradient, target, add in zip(gradients, targets, adds, strict=True):
                if target is not None and add:
                    commands.record(np.add, target[a:b], gradient, out=target[a:b])
                elif target is not None:
                    commands.record(np.copyto, target[a:b], gradient)

        return record

    return [[task(*r) for r in split_pixels(*d.shape)]]


def sort_backward(
    commands: CommandList, op: SortShortcut, d: np.ndarray, a: np.ndarray, b: np.ndarray
) -> list[np.ndarray]:
    """Record da = d + d R'(a) R(b) / (2 root) and db alike, root = sqrt(R(a) R(b) + eps), where R(a) R(b) > 0; else d."""
    da, db, t, ra, rb, factor = commands.scratch("pointwise", 6, *d.shape)
    if op.slope:
        reference = shortcut.sort_shortcut_backward.reference

        def run() -> None:
            shape = (1, d.shape[1], d.shape[0], 1)
            maps = (np.ascontiguousarray(m.T).reshape(shape) for m in (d, a, b))
            for out, value in zip((da, db), reference(Backend("numpy", np), *maps, op.eps, op.slope), strict=True):
                out[...] = value.reshape(d.shape[::-1]).T

        commands.record(run)
        return [da, db]
    for source, rectified in ((a, ra), (b, rb)):
        commands.record(np.maximum, source, np.float32(0), out=rectified)
    commands.record(np.multiply, ra, rb, out=t)
    positive = mask(commands, d.shape)
    commands.record(np.greater, t, 0, out=positive)
    commands.record(np.multiply, d, positive, out=factor)
    commands.record(np.add, t, np.float32(op.eps), out=t)
    commands.record(np.sqrt, t, out=t)
    commands.record(np.add, t, t, out=t)
    commands.record(np.divide, factor, t, out=factor)
    commands.record(np.multiply, factor, rb, out=da)
    commands.record(np.add, da, d, out=da)
    commands.record(np.multiply, factor, ra, out=db)
    commands.record(np.add, db, d, out=db)
    return [da, db]
