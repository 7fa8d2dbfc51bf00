"""What convolutions are on a GPU, each in its way (ways.py): launches of kernels and products by cuBLAS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ...backend.cublas import address
from ...ops.activation import NAMES
from ..steps import Activate, Convolve
from .algorithms import BUDGETS, rounded
from .launches import WIDE, finish, finish_in_place, first_pass, kernel, pass_arguments, patches, smooth
from .stream import Work

if TYPE_CHECKING:
    from .program import Program, View

QUAD = 4  # channels that Winograd's kernels do at a time, as winograd.cu has it


def convolve(program: Program, step: Convolve) -> list[Work]:
    """Return a convolution's work; one of a group that one gemm does is done with the group's last."""
    group = program.scheme.together.get(step)
    if group is not None:
        return _together(program, group) if step is group[-1] else []
    return BY_WAY[program.scheme.algorithms[step]](program, step)


def _by_kernel(program: Program, step: Convolve) -> list[Work]:
    x, (convolve, after) = program.view(step.xs[0]), few(program, step)
    return [partial(convolve, "direct.convolve_few", x.a, (x.sizes[1] * x.ld, 1, x.ld)), *after]


Few = Callable[[str, Any, tuple[int, int, int]], None]


def few(program: Program, step: Convolve) -> tuple[Few, list[Work]]:
    """Return convolve(kernel, x, apart), a convolution of few channels as a function of what it reads, and what comes after.

    apart: how many numbers of x lie between images, between channels and between pixels.
    """
    y, (weights, bias), F, launch = program.view(step.y), program.arrays(step), step.y.shape[0], program.be.launch
    assert launch is not None
    first = step.epilogue[0] if step.epilogue else None
    kind, rest = (first.kind, step.epilogue[1:]) if isinstance(first, Activate) else ("linear", step.epilogue)
    program.algorithms[step] = "in one kernel"
    program.kernels |= {"direct.convolve_few", "direct.convolve_floats", "direct.convolve_bytes"}
    wide = kind in WIDE and program.fits(y)
    n = y.pixels * F // (program.width if wide else 1)
    geometry = (*step.xs[0].shape, *y.shape[1:], step.size, *step.strides, step.dilation, step.pad)
    more = (*geometry, y.ld, NAMES.index(kind), step.pooled, wide)

    def convolve(kernel: str, x: Any, apart: tuple[int, int, int]) -> None:
        launch(kernel, n, x, weights, bias, y.a, n, F, *apart, *more)

    return convolve, finish_in_place(program, rest, y)


def _depthwise(program: Program, step: Convolve) -> list[Work]:
    x, y, (weights, bias) = program.view(step.xs[0]), program.view(step.y), program.arrays(step)
    program.algorithms[step] = "depthwise"
    wide = program.fits(x, y)
    n = y.pixels * y.shape[0] // (program.width if wide else 1)
    geometry = (*x.shape, *y.shape[1:], step.size, *step.strides, step.dilation, step.pad)
    work = [kernel(program, "direct.depthwise", n, x.a, weights, y.a, n, *geometry, x.ld, y.ld, wide)]
    return work + finish(program, step.epilogue, y, y, bias, step)


def _by_gemm(program: Program, step: Convolve) -> list[Work]:
    x, y, (_, bias) = program.view(step.xs[0]), program.view(step.y), program.arrays(step)
    program.algorithms[step] = program.scheme.algorithms[step]
    images = program.plan.batch if program.scheme.algorithms[step] == "gemm by image" else 1
    work = [_product(program, step, address(y.a), y.ld, address(x.a), x.ld, y.pixels, images)]
    return work + finish(program, step.epilogue, y, y, bias, step)


def _together(program: Program, group: tuple[Convolve, ...]) -> list[Work]:
    """Return the work of convolutions of the same map by one gemm: into a map that joins them, then each to its place."""
    first, last, x = group[0], group[-1], program.view(group[0].xs[0])
    joined, weights = program.memory(last, "joined"), program.arrays(first)[0]
    ld, handle, start = len(weights), program.stream_context.handle, 0
    for step in group:
        others = ", ".join(str(s.layers[0]) for s in group if s is not step)
        program.algorithms[step] = f"gemm with layer{'s' * (len(group) > 2)} {others}"
    sizes = (program.precision, address(joined), address(x.a), address(weights), x.pixels, ld, x.shape[0])
    lds = (ld, x.ld, weights.shape[1])
    work: list[Work] = [lambda: handle.gemm(*sizes, *lds)]
    if len(group) == 2 and not any(s in program.scheme.ahead or len(s.epilogue) > 1 for s in group):
        return [*work, _finish_two(program, first, last, joined, ld)]
    for step in group:
        y = program.view(step.y)
        part = replace(y, a=joined[start:][: (y.pixels - 1) * ld + y.shape[0]], ld=ld, start=start)
        work += finish(program, step.epilogue, part, y, program.arrays(step)[1], step)
        start += rounded(y.shape[0])
    return work


def _finish_two(program: Program, first: Convolve, second: Convolve, joined: Any, ld: int) -> Work:
    views = program.view(first.y), program.view(second.y)
    biases = (program.arrays(s)[1] for s in (first, second))
    kinds = [first_pass(s.epilogue)[0][0] for s in (first, second)]
    (C1, C2), wide = (v.shape[0] for v in views), set(kinds) <= WIDE and program.fits(*views)
    n = views[0].pixels * (C1 + C2) // (program.width if wide else 1)
    sizes = (n, C1, C2, rounded(C1), ld, *(v.ld for v in views), *map(NAMES.index, kinds), wide)
    return kernel(program, "epilogue.finish_two", n, joined, *biases, *(v.a for v in views), *sizes)


def _by_patches(program: Program, step: Convolve) -> list[Work]:
    y, (_, bias) = program.view(step.y), program.arrays(step)
    if not step.pooled:
        work = _products(program, step, 0, y.pixels, y.a, y.ld)
        return work + finish(program, step.epilogue, y, y, bias, step)
    (F, OH, OW), work = y.shape, []
    (kind, _, _), rest = first_pass(step.epilogue)  # nothing but activations comes after a pool
    blocks, images, ld = program.memory(step, "blocks"), program.case(step).pooled_images, rounded(F)
    for first in range(0, program.plan.batch, images):
        count = min(images, program.plan.batch - first)
        pixels = count * OH * OW
        out = blocks[: (4 * pixels - 1) * ld + F]
        work += _products(program, step, 4 * OH * OW * first, 4 * pixels, out, ld)
        work.append(_finish_blocks(program, step, kind, out, ld, bias, y.images(first, count), not rest))
    return work + finish_in_place(program, rest, y, step)


def _finish_blocks(
    program: Program, step: Convolve, kind: str, x: Any, ldx: int, bias: Any, y: View, last: bool
) -> Work:
    reader, (C, H, W) = program.scheme.ahead.get(step) if last else None, y.shape
    wide = kind in WIDE and program.fits(y)
    if reader is None:
        n = y.pixels * C // (program.width if wide else 1)
        return kernel(
            program, "epilogue_pool.finish_blocks", n, x, bias, y.a, n, C, W, ldx, y.ld, NAMES.index(kind), wide
        )
    where = patches(program, reader, H, W)
    wide = wide and where.fits
    n, out = where.places * C // (program.width if wide else 1), None if step in program.scheme.unstored else y.a
    sizes = (n, C, H, W, ldx, y.ld, NAMES.index(kind), *where.numbers, wide)
    return kernel(program, "epilogue_pool.finish_blocks_patches", n, x, bias, out, where.col, *sizes)


def _products(program: Program, step: Convolve, start: int, pixels: int, out: Any, ld: int) -> list[Work]:
    """Return the work of convolving without bias: out (pixels, F), the pixels from `start` on of the result's map."""
    x, (OH, OW), case, way = (
        program.view(step.xs[0]),
        step.conv_output_size,
        program.case(step),
        program.scheme.algorithms[step],
    )
    (C, H, W), ldcol, size, work = x.shape, case.ldcol, program.type.itemsize, []
    G, col = C // step.groups, program.memory(step, "patches")
    rows, writer = min(case.rows(way), pixels), program.writers.get(step)
    parts, images = range(0, pixels, rows), program.plan.batch if way == "patches by image" else 1
    maker = f"im2col by layer {writer.layers[-1]}" if writer is not None else "im2col"
    program.algorithms[step] = f"{maker}, gemm" + (" by image" if images > 1 else "")
    program.algorithms[step] += f" in {len(parts)} parts" if len(parts) > 1 else ""
    geometry = (H, W, OH, OW, step.size, *step.strides, step.dilation, step.pad)
    wide = program.fits(x) and G % program.width == 0
    for first in parts:
        count = min(rows, pixels - first)
        if writer is None:
            n = count * step.size * C // (program.width if wide else 1)
            part = col[: (count - 1) * ldcol + C * step.size**2]
            sizes = (n, start + first, C, G, *geometry, x.ld, ldcol, wide)
            work.append(kernel(program, "plan.im2col", n, x.a, part, *sizes))
        at = address(out) + first * ld * size
        work.append(_product(program, step, at, ld, address(col), ldcol, count, images))
    return work


def _product(program: Program, step: Convolve, y: int, ldy: int, a: int, lda: int, M: int, images: int) -> Work:
    """Return the work of y (M, F) = a (M, K) @ weights (F, K).T, for each group of channels or in images; y, a: addresses."""
    weights, handle, precision, groups = (
        program.arrays(step)[0],
        program.stream_context.handle,
        program.precision,
        step.groups,
    )
    w, ldw, F = address(weights), weights.shape[1], step.y.shape[0]
    K = step.xs[0].shape[0] // groups * step.size**2
    if groups > 1:
        N = F // groups
        return lambda: handle.gemms(precision, groups, y, a, w, M, N, K, ldy, lda, ldw, N, K, N * ldw)
    if step.pooled or step.y.base is None:
        F = rounded(F)  # zeros into what lies between pixels: tensor cores like multiples of 8, heads have 255
    if images > 1:
        rows = M // images
        apart = (rows * ldy, rows * lda, 0)
        return lambda: handle.gemms(precision, images, y, a, w, rows, F, K, ldy, lda, ldw, *apart)
    return lambda: handle.gemm(precision, y, a, w, M, F, K, ldy, lda, ldw)


def _winograd(program: Program, step: Convolve) -> list[Work]:
    x, y, case, (weights, bias) = (
        program.view(step.xs[0]),
        program.view(step.y),
        program.case(step),
        program.arrays(step),
    )
    (C, H, W), F, (OH, OW), (TH, TW) = x.shape, y.shape[0], step.conv_output_size, case.tiles
    one, rest = first_pass(step.epilogue)
    handle, ldc, ldf, work = program.stream_context.handle, rounded(C), rounded(F), list[Work]()
    images = case.winograd_images
    parts = range(0, program.plan.batch, images)
    program.algorithms[step] = "winograd" + (f" in {len(parts)} parts" if len(parts) > 1 else "")
    for first in parts:
        count = min(images, program.plan.batch - first)
        tiles = count * TH * TW
        cut = program.memory(step, "tiles")[: (16 * tiles - 1) * ldc + C]
        made = program.memory(step, "products")[: (16 * tiles - 1) * ldf + F]
        source, result = x.images(first, count), y.images(first, count)
        quads = source.fits(QUAD)
        n = tiles * C // (QUAD if quads else 1)
        sizes = (n, tiles, C, H, W, TH, TW, x.ld, ldc, quads)
        work.append(kernel(program, "winograd.winograd_cut", n, source.a, cut, *sizes))
        work.append(_positions(handle, program.precision, address(made), address(cut), weights, tiles, ldf, C, ldc))
        other, (Co, Po, ldo), numbers = pass_arguments(program, one, y.sizes)
        joined = other.images(first, count).a if other else None
        quads = smooth(one, QUAD, (result,), other)
        n = tiles * F // (QUAD if quads else 1)
        sizes = (n, tiles, F, OH, OW, TH, TW, Co, Po, ldf, ldo, y.ld, *numbers, step.pooled, quads)
        work.append(kernel(program, "winograd.winograd_join", n, made, bias, joined, result.a, *sizes))
    return work + finish_in_place(program, rest, y)


def _positions(handle: Any, precision: str, y: int, a: int, weights: Any, tiles: int, F: int, C: int, lda: int) -> Work:
    """Return the work of the products of all 16 positions in tiles."""
    w, ldw = address(weights), weights.shape[2]
    apart = (tiles * F, tiles * lda, F * ldw)
    return lambda: handle.gemms(precision, 16, y, a, w, tiles, F, C, F, lda, ldw, *apart)


BY_WAY: dict[str, Callable[[Program, Convolve], list[Work]]] = {
    "kernel": _by_kernel,
    "depthwise": _depthwise,
    "gemm": _by_gemm,
    "gemm by image": _by_gemm,
    "patches": _by_patches,
    **dict.fromkeys(BUDGETS, _by_patches),
    "patches by image": _by_patches,
    "winograd": _winograd,
}
