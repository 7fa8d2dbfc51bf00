"""Epilogues of steps on a GPU: bias, activations and elementwise operations in one pass, and fused im2col."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ...array import Array
from ...ops.activation import NAMES
from ..steps import Activate, Add, Convolve, EpilogueOp, Multiply, SortShortcut, Step, YoloHead
from .emitter import Emitter, Launch
from .view import View

# The activations that kernels can apply to a vector of channels
VECTOR_ACTIVATIONS = frozenset({"linear", "leaky", "relu", "mish", "swish", "logistic"})
BINARY_OPS: dict[type, int] = {Add: 1, SortShortcut: 2, Multiply: 3}  # as nhwc.cuh numbers them


class EpiloguePass(NamedTuple):
    """The operations of one launch: an activation, a binary operation with another map, an activation."""

    pre: str
    binary: Add | SortShortcut | Multiply | None
    post: str

    @property
    def can_vectorize(self) -> bool:
        """Whether its activations can be vectorized."""
        return {self.pre, self.post} <= VECTOR_ACTIVATIONS


def passes(epilogue: Sequence[EpilogueOp]) -> list[EpiloguePass]:
    """Group the operations of an epilogue into passes, at least one."""
    one, rest = next_pass(epilogue)
    grouped = [one]
    while rest:
        one, rest = next_pass(rest)
        grouped.append(one)
    return grouped


def next_pass(epilogue: Sequence[EpilogueOp]) -> tuple[EpiloguePass, list[EpilogueOp]]:
    """Return the first pass and the operations that remain after it."""
    rest = list(epilogue)

    def activation() -> str:
        first = rest[0] if rest else None
        if not isinstance(first, Activate):
            return "linear"
        rest.pop(0)
        return first.kind

    pre, binary, post = activation(), None, "linear"
    if rest and not isinstance(first := rest[0], Activate):
        rest.pop(0)
        binary, post = first, activation()
    return EpiloguePass(pre, binary, post), rest


class PassArguments(NamedTuple):
    """A pass as kernels receive it: the other map, its (Co, Po, ldo), and (pre, binary, eps, slope, post)."""

    other: View | None
    sizes: tuple[int, int, int]
    codes: tuple[int, int, float, float, int]

    def can_vectorize(self, width: int) -> bool:
        """Return whether vectors of the other map can be read."""
        return self.other is None or self.other.shape[0] == 1 or self.other.can_vectorize(width)


def pass_arguments(emitter: Emitter, one: EpiloguePass, y: View) -> PassArguments:
    """Return the arguments of a pass on y."""
    eps, slope = (one.binary.eps, one.binary.slope) if isinstance(one.binary, SortShortcut) else (0.0, 0.0)
    binary = BINARY_OPS[type(one.binary)] if one.binary else 0
    codes = (NAMES.index(one.pre), binary, eps, slope, NAMES.index(one.post))
    if one.binary is None:
        return PassArguments(None, (*y.sizes, 0), codes)
    other = emitter.view(one.binary.other)
    return PassArguments(other, (*other.sizes, other.ld), codes)


def apply_epilogue(
    emitter: Emitter,
    epilogue: Sequence[EpilogueOp],
    x: View,
    y: View,
    bias: Array | None = None,
    step: Step | None = None,
) -> list[Launch]:
    """Return the launches of y = epilogue(x + bias), then of the head that is fused into `step`, if any.

    The last also writes the im2col matrix that `step` produces, if any.
    """
    schedule, launches = emitter.schedule, list[Launch]()
    head = step.head if isinstance(step, Convolve) else None
    todo = passes(epilogue) if epilogue or head is None else []
    for i, one in enumerate(todo):
        consumer = schedule.im2col_consumers.get(step) if step is not None and i == len(todo) - 1 else None
        (C, H, W), (Co, Po, ldo) = y.shape, (arguments := pass_arguments(emitter, one, y)).sizes
        vectorized = one.can_vectorize and arguments.can_vectorize(emitter.vector) and emitter.can_vectorize(x, y)
        if consumer is None:
            n = emitter.threads(y.pixels * C, vectorized)
            sizes: tuple[float, ...] = (n, C, H * W, Co, Po, x.ld, ldo, y.ld, *arguments.codes, vectorized)
            launches.append(emitter.launch("epilogue.epilogue", n, x, bias, arguments.other, y, *sizes))
        else:
            target = im2col_target(emitter, consumer, H, W)
            vectorized = vectorized and target.can_vectorize
            n = emitter.threads(target.positions * C, vectorized)
            out = None if step in schedule.dead_stores else y
            pointers = (x, bias, arguments.other, out, target.col)
            sizes = (n, C, H, W, Co, Po, x.ld, ldo, y.ld, *arguments.codes, *target.geometry, vectorized)
            launches.append(emitter.launch("epilogue.epilogue_im2col", n, *pointers, *sizes))
        x, bias = y, None
    return launches if head is None else [*launches, apply_head(emitter, head, x, y, bias)]


def apply_head(emitter: Emitter, head: YoloHead, x: View, y: View, bias: Array | None = None) -> Launch:
    """Return the launch of y = the activations of a YOLO head on x + bias."""
    C, n = x.shape[0], y.pixels * y.shape[0]
    sizes = (n, C, C // head.A, head.scale_x_y, head.new_coords, x.ld, y.ld)
    return emitter.launch("nhwc.yolo", n, x, bias, y, *sizes)


def apply_in_place(emitter: Emitter, epilogue: Sequence[EpilogueOp], y: View, step: Step | None = None) -> list[Launch]:
    """Return the launches of y = epilogue(y) and the head of `step`; none for an empty epilogue without a head."""
    head = step.head if isinstance(step, Convolve) else None
    return apply_epilogue(emitter, epilogue, y, y, step=step) if epilogue or head else []


class Im2colTarget(NamedTuple):
    """The im2col matrix that an epilogue writes. positions: pixels of the padded map; geometry: as kernels receive it."""

    col: Array
    positions: int
    geometry: tuple[int, ...]
    can_vectorize: bool


def im2col_target(emitter: Emitter, consumer: Convolve, H: int, W: int) -> Im2colTarget:
    """Return the im2col matrix of a convolution, to be written from a map of H x W."""
    (OH, OW), reach = consumer.conv_output_size, (consumer.size - 1) * consumer.dilation + 1
    x, (sy, sx), pad = consumer.xs[0], consumer.strides, consumer.pad
    C, first = x.shape[0], x.channel_offset - emitter.schedule.im2col_producers[consumer].y.channel_offset
    G, ldcol, col = C // consumer.groups, emitter.problem(consumer).ldcol, emitter.workspace(consumer, "im2col")
    HP, WP = max(H + pad, (OH - 1) * sy + reach), max(W + pad, (OW - 1) * sx + reach)
    geometry = (HP, WP, first, C, G, OH, OW, consumer.size, sy, sx, consumer.dilation, pad, ldcol)
    used = col[: (emitter.batch * OH * OW - 1) * ldcol + C * consumer.size**2]
    aligned = G % emitter.vector == 0 and first % emitter.vector == 0
    return Im2colTarget(used, emitter.batch * HP * WP, geometry, aligned)
