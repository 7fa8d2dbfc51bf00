"""What a plan's steps are on a GPU: launches of kernels/plan.cu and products by cuBLAS, on maps that lie pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..ops.activation import NAMES
from .lane import Work, address
from .steps import (
    Activate,
    Add,
    After,
    Convolve,
    Copy,
    MaxPool,
    Multiply,
    Sort,
    Step,
    Upsample,
    YoloHead,
)

if TYPE_CHECKING:
    from .cuda import Program, View

ROUND = 8  # channels: 16 bytes of float16
FEW = 4  # channels
COLUMNS = 256 << 20  # bytes of patches at a time, at most
WIDE = frozenset({"linear", "leaky", "relu", "mish", "swish", "logistic"})  # what `finish` can do to 16 bytes at once
JOINS: dict[type, int] = {Add: 1, Sort: 2, Multiply: 3}  # as plan.cu numbers them


def rounded(channels: int) -> int:
    """Return the channels rounded up to what 16-byte accesses need."""
    return -(-channels // ROUND) * ROUND


def direct(step: Convolve) -> bool:
    """Say whether a convolution's input is its matrix of patches."""
    return (step.size, step.strides, step.pad) == (1, (1, 1), 0) and not depthwise(step) and not few(step)


def depthwise(step: Convolve) -> bool:
    """Say whether every channel has a kernel of its own."""
    return step.groups == step.xs[0].shape[0] == step.y.shape[0] and step.groups > 1


def few(step: Convolve) -> bool:
    """Say whether its input has so few channels, as an image has, that one kernel does best without patches."""
    return step.groups == 1 and step.xs[0].shape[0] <= FEW


def weight_bytes(step: Convolve, itemsize: int) -> int:
    """Return the bytes of a convolution's arrays on the device."""
    F, C = step.y.shape[0], step.xs[0].shape[0] // step.groups
    row = C * step.size**2
    if few(step):
        return 4 * F * (row + 1)
    size = F * row if depthwise(step) else (rounded(F) if step.groups == 1 else F) * rounded(row)
    return size * itemsize + 4 * F


def kernel(program: Program, name: str, threads: int, *args: Any) -> Work:
    """Return the work of launching a kernel."""
    launch = program.be.launch
    assert launch is not None
    return lambda: launch(name, threads, *args)


def _convolve(program: Program, step: Convolve) -> list[Work]:
    y = program.view(step.y)
    _, bias = program.arrays(step)
    if few(step):
        return _convolve_few(program, step)
    if not step.pooled:
        work = _products(program, step, 0, y.pixels, y.a, y.ld)
        return work + finish(program, step.after, y, y, bias)
    (F, OH, OW), work = y.shape, []
    ((kind, _, _), *_), rest = passes(step.after), step.after[1:]  # nothing but activations comes after a pool
    wide = kind in WIDE and program.fits(y)
    images, ld = program.images_at_a_time(step, program.plan.batch), rounded(F)
    for first in range(0, program.plan.batch, images):
        count = min(images, program.plan.batch - first)
        pixels = count * OH * OW
        out = program.blocks[: (4 * pixels - 1) * ld + F]
        work += _products(program, step, 4 * OH * OW * first, 4 * pixels, out, ld)
        part = y.a[first * OH * OW * y.ld :][: (pixels - 1) * y.ld + F]
        n = pixels * F // (program.width if wide else 1)
        sizes = (n, F, OH, OW, ld, y.ld, NAMES.index(kind), wide)
        work.append(kernel(program, "plan.finish_blocks", n, out, bias, part, *sizes))
    return work + _finish_in_place(program, rest, y)


def _convolve_few(program: Program, step: Convolve) -> list[Work]:
    x, y, (weights, bias) = program.view(step.xs[0]), program.view(step.y), program.arrays(step)
    (C, H, W), F = x.shape, y.shape[0]
    first = step.after[0] if step.after else None
    kind, rest = (first.kind, step.after[1:]) if isinstance(first, Activate) else ("linear", step.after)
    program.methods[step] = "in one kernel"
    wide = kind in WIDE and program.fits(y)
    n = y.pixels * F // (program.width if wide else 1)
    geometry = (H, W, *y.shape[1:], step.size, *step.strides, step.dilation, step.pad)
    sizes = (n, C, F, *geometry, x.ld, y.ld, NAMES.index(kind), step.pooled, wide)
    work = [kernel(program, "plan.convolve_few", n, x.a, weights, bias, y.a, *sizes)]
    return work + _finish_in_place(program, rest, y)


def _products(program: Program, step: Convolve, start: int, pixels: int, out: Any, ld: int) -> list[Work]:
    """Return the work of convolving without bias: out (pixels, F), the pixels from `start` on of the result's map."""
    x, (OH, OW), (weights, _) = program.view(step.xs[0]), step.host, program.arrays(step)
    (C, H, W), F, g, taps = x.shape, step.y.shape[0], step.groups, step.size**2
    G, K = C // g, C // g * taps
    if g == 1 and (step.pooled or step.y.whole is None):
        F = ld  # zeros into what lies between pixels: tensor cores like multiples of 8, heads have 255
    geometry = (H, W, OH, OW, step.size, *step.strides, step.dilation, step.pad)
    if depthwise(step):
        program.methods[step] = "depthwise"
        wide = program.fits(x, program.view(step.y))
        n = pixels * C // (program.width if wide else 1)
        return [kernel(program, "plan.depthwise", n, x.a, weights, out, n, C, *geometry, x.ld, ld, wide)]
    if direct(step):
        program.methods[step] = "gemm"
        return [_product(program, address(out), ld, address(x.a), weights, pixels, F, K, x.ld, g)]
    ldcol, size, work = rounded(C * taps), program.type.itemsize, []
    rows = min(pixels, max(1, COLUMNS // (ldcol * size)))
    parts = range(0, pixels, rows)
    program.methods[step] = "im2col, gemm" + (f" in {len(parts)} parts" if len(parts) > 1 else "")
    wide = program.fits(x) and G % program.width == 0
    for first in parts:
        count = min(rows, pixels - first)
        n = count * step.size * C // (program.width if wide else 1)
        col = program.col[: (count - 1) * ldcol + C * taps]
        sizes = (n, start + first, C, G, *geometry, x.ld, ldcol, wide)
        work.append(kernel(program, "plan.im2col", n, x.a, col, *sizes))
        at = address(out) + first * ld * size
        work.append(_product(program, at, ld, address(col), weights, count, F, K, ldcol, g))
    return work


def _product(
    program: Program, y: int, ldy: int, a: int, weights: Any, M: int, F: int, K: int, lda: int, groups: int
) -> Work:
    """Return the work of y (M, F) = a (M, K) @ weights (F, K).T, for each of the groups of columns; y, a: addresses."""
    handle, w, ldw, precision = program.lane.handle, address(weights), weights.shape[1], program.precision
    if groups == 1:
        return lambda: handle.gemm(precision, y, a, w, M, F, K, ldy, lda, ldw)
    N = F // groups
    return lambda: handle.gemms(precision, groups, y, a, w, M, N, K, ldy, lda, ldw, N, K, N * ldw)


Pass = tuple[str, Add | Sort | Multiply | None, str]


def passes(after: Sequence[After]) -> list[Pass]:
    """Group what is done to a result as `finish` does it: an activation, a join, an activation; at least once."""
    todo, found = list(after), list[Pass]()

    def activation() -> str:
        first = todo[0] if todo else None
        if not isinstance(first, Activate):
            return "linear"
        todo.pop(0)
        return first.kind

    while todo or not found:
        before, join, last = activation(), None, "linear"
        if todo and not isinstance(todo[0], Activate):
            join, last = todo.pop(0), activation()
        found.append((before, join, last))  # type: ignore[arg-type]
    return found


def finish(program: Program, after: Sequence[After], x: View, y: View, bias: Any = None) -> list[Work]:
    """Return the work of y = after(x + bias)."""
    work: list[Work] = []
    C, P = y.sizes
    for first, join, last in passes(after):
        other = program.view(join.other) if join is not None else None
        Co, Po = other.sizes if other is not None else (C, P)
        eps, slope = (join.eps, join.slope) if isinstance(join, Sort) else (0.0, 0.0)
        wide = {first, last} <= WIDE and program.fits(x, y) and (other is None or Co == 1 or program.fits(other))
        n = y.pixels * C // (program.width if wide else 1)
        work.append(
            kernel(
                program, "plan.finish", n, x.a, bias, other.a if other else None, y.a, n, C, P, Co, Po,
                x.ld, other.ld if other else 0, y.ld,
                NAMES.index(first), JOINS[type(join)] if join else 0, eps, slope, NAMES.index(last), wide,
            )
        )  # fmt: skip
        x, bias = y, None
    return work


def _finish_in_place(program: Program, after: Sequence[After], y: View) -> list[Work]:
    return finish(program, after, y, y) if after else []


def _copy(program: Program, step: Copy) -> list[Work]:
    return finish(program, step.after, program.view(step.xs[0]), program.view(step.y))


def _maxpool(program: Program, step: MaxPool) -> list[Work]:
    x, y = program.view(step.xs[0]), program.view(step.y)
    (C, H, W), (_, OH, OW), wide = x.shape, y.shape, program.fits(x, y)
    n = y.pixels * C // (program.width if wide else 1)
    sizes = (n, C, H, W, OH, OW, step.size, *step.strides, step.padding // 2, x.ld, y.ld, wide)
    return [kernel(program, "plan.maxpool", n, x.a, y.a, *sizes), *_finish_in_place(program, step.after, y)]


def _upsample(program: Program, step: Upsample) -> list[Work]:
    x, y = program.view(step.xs[0]), program.view(step.y)
    wide = program.fits(x, y)
    n = y.pixels * y.shape[0] // (program.width if wide else 1)
    sizes = (n, *x.shape, step.s, step.scale, x.ld, y.ld, wide)
    return [kernel(program, "plan.upsample", n, x.a, y.a, *sizes), *_finish_in_place(program, step.after, y)]


def _yolo(program: Program, step: YoloHead) -> list[Work]:
    x, y = program.view(step.xs[0]), program.view(step.y)
    C, n = x.shape[0], y.pixels * y.shape[0]
    sizes = (n, C, C // step.A, step.scale_x_y, step.new_coords, x.ld, y.ld)
    return [kernel(program, "plan.yolo", n, x.a, y.a, *sizes), *_finish_in_place(program, step.after, y)]


BIND: dict[type[Step], Callable[[Program, Any], list[Work]]] = {
    Convolve: _convolve,
    Copy: _copy,
    MaxPool: _maxpool,
    Upsample: _upsample,
    YoloHead: _yolo,
}
