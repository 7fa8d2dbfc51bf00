"""What a plan's steps are on a GPU: launches of kernels and products by cuBLAS, on maps that lie pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ...backend.cuda import STORAGE, Launcher
from ...ops.activation import NAMES
from ..steps import Activate, Add, Convolve, Copy, EpilogueOp, MaxPool, Multiply, Sort, Step, Upsample, YoloHead
from .stream import Work

if TYPE_CHECKING:
    from .program import Program, View

WIDE = frozenset({"linear", "leaky", "relu", "mish", "swish", "logistic"})  # what `finish` can do to 16 bytes at once
JOINS: dict[type, int] = {Add: 1, Sort: 2, Multiply: 3}  # as nhwc.cuh numbers them


def kernel(program: Program, name: str, threads: int, *args: Any) -> Work:
    """Return the work of launching a kernel."""
    launch = program.be.launch
    assert launch is not None
    program.kernels.add(name)
    return lambda: launch(name, threads, *args)


def compile_kernels(program: Program) -> None:
    """Have all kernels that a program launches compiled at once, but for those of layers that run by their `forward`."""
    if program.kernels and isinstance(program.be.launch, Launcher):
        files = {name.partition(".")[0] for name in program.kernels}
        program.be.launch.compile(sorted(files), STORAGE[program.type.name])
        program.kernels = set()


Pass = tuple[str, Add | Sort | Multiply | None, str]


def passes(epilogue: Sequence[EpilogueOp]) -> list[Pass]:
    """Group what is done to a result as `finish` does it: an activation, a join, an activation; at least once."""
    one, rest = first_pass(epilogue)
    found = [one]
    while rest:
        one, rest = first_pass(rest)
        found.append(one)
    return found


def first_pass(epilogue: Sequence[EpilogueOp]) -> tuple[Pass, list[EpilogueOp]]:
    """Return the first pass, and what is left to do after it."""
    todo, join = list(epilogue), None

    def activation() -> str:
        first = todo[0] if todo else None
        if not isinstance(first, Activate):
            return "linear"
        todo.pop(0)
        return first.kind

    before, last = activation(), "linear"
    if todo and not isinstance(todo[0], Activate):
        join, last = todo.pop(0), activation()
    return (before, join, last), todo  # type: ignore[return-value]


def pass_arguments(
    program: Program, one: Pass, sizes: tuple[int, int]
) -> tuple[View | None, tuple[int, ...], tuple[Any, ...]]:
    """Return the map that is joined, (Co, Po, ldo), and the numbers before .. after, as kernels take them."""
    first, join, last = one
    eps, slope = (join.eps, join.slope) if isinstance(join, Sort) else (0.0, 0.0)
    numbers = (NAMES.index(first), JOINS[type(join)] if join else 0, eps, slope, NAMES.index(last))
    if join is None:
        return None, (*sizes, 0), numbers
    other = program.view(join.other)
    return other, (*other.sizes, other.ld), numbers


def smooth(one: Pass, width: int, views: Sequence[View], other: View | None) -> bool:
    """Say whether a pass can be done to `width` channels at a time."""
    joined = other is None or other.shape[0] == 1 or other.fits(width)
    return {one[0], one[2]} <= WIDE and joined and all(view.fits(width) for view in views)


def finish(
    program: Program, epilogue: Sequence[EpilogueOp], x: View, y: View, bias: Any = None, step: Step | None = None
) -> list[Work]:
    """Return the work of y = epilogue(x + bias); if this is the last that `step` does, also of the patches that it writes.

    Nothing is to be done where the reader adds the bias.
    """
    if step in program.scheme.unbiased.values():
        return []
    work: list[Work] = []
    todo = passes(epilogue)
    for i, one in enumerate(todo):
        reader = program.scheme.ahead.get(step) if step is not None and i == len(todo) - 1 else None
        (C, H, W), (other, (Co, Po, ldo), numbers) = y.shape, pass_arguments(program, one, y.sizes)
        wide = smooth(one, program.width, (x, y), other)
        joined = other.a if other else None
        if reader is None:
            n = y.pixels * C // (program.width if wide else 1)
            sizes = (n, C, H * W, Co, Po, x.ld, ldo, y.ld, *numbers, wide)
            work.append(kernel(program, "epilogue.finish", n, x.a, bias, joined, y.a, *sizes))
        else:
            where = patches(program, reader, H, W)
            wide = wide and where.fits
            n = where.places * C // (program.width if wide else 1)
            out = None if step in program.scheme.unstored else y.a
            more = (n, C, H, W, Co, Po, x.ld, ldo, y.ld, *numbers, *where.numbers, wide)
            work.append(kernel(program, "epilogue.finish_patches", n, x.a, bias, joined, out, where.col, *more))
        x, bias = y, None
    return work


class Where(NamedTuple):
    """Where a map of H x W goes that a convolution's patches are made of, as kernels take it."""

    col: Any
    places: int  # pixels with the border
    numbers: tuple[int, ...]
    fits: bool  # 16 bytes at a time


def patches(program: Program, reader: Convolve, H: int, W: int) -> Where:
    """Return where the patches of a convolution lie that are written ahead."""
    (OH, OW), reach, batch = reader.conv_output_size, (reader.size - 1) * reader.dilation + 1, program.plan.batch
    x, (sy, sx) = reader.xs[0], reader.strides
    C, first = x.shape[0], x.channel_offset - program.writers[reader].y.channel_offset
    G, ldcol, col = C // reader.groups, program.case(reader).ldcol, program.memory(reader, "patches")
    HP, WP = max(H + reader.pad, (OH - 1) * sy + reach), max(W + reader.pad, (OW - 1) * sx + reach)
    numbers = (HP, WP, first, C, G, OH, OW, reader.size, sy, sx, reader.dilation, reader.pad, ldcol)
    used = col[: (batch * OH * OW - 1) * ldcol + C * reader.size**2]
    return Where(used, batch * HP * WP, numbers, G % program.width == 0 and first % program.width == 0)


def finish_in_place(program: Program, epilogue: Sequence[EpilogueOp], y: View, step: Step | None = None) -> list[Work]:
    """Return the work of y = epilogue(y), none if there is nothing to do."""
    return finish(program, epilogue, y, y, step=step) if epilogue else []


def _copy(program: Program, step: Copy) -> list[Work]:
    return finish(program, step.epilogue, program.view(step.xs[0]), program.view(step.y), step=step)


def _maxpool(program: Program, step: MaxPool) -> list[Work]:
    x, y = program.view(step.xs[0]), program.view(step.y)
    (C, H, W), (_, OH, OW), wide = x.shape, y.shape, program.fits(x, y)
    n = y.pixels * C // (program.width if wide else 1)
    sizes = (n, C, H, W, OH, OW, step.size, *step.strides, step.padding // 2, x.ld, y.ld, wide)
    return [kernel(program, "plan.maxpool", n, x.a, y.a, *sizes), *finish_in_place(program, step.epilogue, y)]


def _upsample(program: Program, step: Upsample) -> list[Work]:
    x, y = program.view(step.xs[0]), program.view(step.y)
    wide = program.fits(x, y)
    n = y.pixels * y.shape[0] // (program.width if wide else 1)
    sizes = (n, *x.shape, step.s, step.scale, x.ld, y.ld, wide)
    return [kernel(program, "plan.upsample", n, x.a, y.a, *sizes), *finish_in_place(program, step.epilogue, y)]


def _yolo(program: Program, step: YoloHead) -> list[Work]:
    x, y = program.view(step.xs[0]), program.view(step.y)
    C, n, writer = x.shape[0], y.pixels * y.shape[0], program.scheme.unbiased.get(step)
    bias = None if writer is None else program.arrays(writer)[1]
    sizes = (n, C, C // step.A, step.scale_x_y, step.new_coords, x.ld, y.ld)
    return [kernel(program, "plan.yolo", n, x.a, bias, y.a, *sizes), *finish_in_place(program, step.epilogue, y)]


BIND: dict[type[Step], Callable[[Program, Any], list[Work]]] = {
    Copy: _copy,
    MaxPool: _maxpool,
    Upsample: _upsample,
    YoloHead: _yolo,
}
