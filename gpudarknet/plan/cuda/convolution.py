"""Convolutions on a GPU, one emitter per algorithm (algorithms.py): kernels and cuBLAS gemms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

from ...array import Array
from ...backend.cublas import address
from ...ops.activation import NAMES
from ..steps import Activate, Convolve
from . import implicit_gemm
from .algorithms import IM2COL_BUDGETS, IMPLICIT_GEMMS, align_channels
from .emitter import Emitted, Emitter, Launch
from .epilogue import VECTOR_ACTIVATIONS, apply_epilogue, apply_in_place, im2col_target, next_pass, pass_arguments
from .implicit_gemm import PreparedConv, Strides
from .time_model import Cost
from .view import View

TILE_VECTOR = 4  # channels that the Winograd kernels vectorize, as in winograd.cu
DIRECT_KERNELS = {"map": "direct.convolve", "float32": "direct.convolve_float32", "uint8": "direct.convolve_uint8"}
InputFormat = Literal["map", "float32", "uint8"]  # a map, float32 (N, C, H, W), uint8 (N, H, W, C)


def convolve(emitter: Emitter, step: Convolve) -> Emitted:
    """Emit a convolution; the launches of a fused gemm belong to the last convolution of its group."""
    group = emitter.schedule.fused_gemms.get(step)
    if group is None:
        return EMITTERS[emitter.schedule.algorithms[step]](emitter, step)
    others = ", ".join(str(s.layers[0]) for s in group if s is not step)
    algorithm = f"gemm fused with layer{'s' * (len(group) > 2)} {others}"
    return Emitted(_fused_gemm(emitter, group) if step is group[-1] else [], algorithm)


class SmallChannelConv(NamedTuple):
    """A convolution of few channels as a function of its input, convolve(format, x, strides), and the rest of its epilogue.

    strides: elements of x from image to image, channel to channel and pixel to pixel. cost: of an input of so many bytes.
    """

    convolve: Callable[[InputFormat, Array, Strides], None]
    cost: Callable[[int], Cost]
    epilogue: Sequence[Launch]
    kernels: Mapping[str, str]


def small_channel_conv(emitter: Emitter, step: Convolve) -> SmallChannelConv:
    """Return a convolution of few channels, whose input may be the caller's."""
    if emitter.schedule.algorithms[step] == "image_gemm":
        (prepare, cost, epilogue), kernels = implicit_gemm.image_gemm(emitter, step), implicit_gemm.IMAGE_KERNELS
    else:
        (prepare, cost, epilogue), kernels = _direct(emitter, step), DIRECT_KERNELS
    prepared: dict[str, Callable[[Array], None]] = {}

    def convolve(format: InputFormat, x: Array, strides: Strides) -> None:
        if format not in prepared:  # x has the same strides in all calls
            prepared[format] = prepare(format, x, strides)
        prepared[format](x)

    return SmallChannelConv(convolve, cost, epilogue, kernels)


def _direct(emitter: Emitter, step: Convolve) -> PreparedConv:
    y, F, (weights, bias) = emitter.view(step.y), step.y.shape[0], emitter.weights.arrays(step)
    first = step.epilogue[0] if step.epilogue else None
    kind, rest = (first.kind, step.epilogue[1:]) if isinstance(first, Activate) else ("linear", step.epilogue)
    vectorized = kind in VECTOR_ACTIVATIONS and emitter.can_vectorize(y)
    n = emitter.threads(y.pixels * F, vectorized)
    geometry = (*step.xs[0].shape, *y.shape[1:], step.size, *step.strides, step.dilation, step.pad)
    sizes = (*geometry, y.ld, NAMES.index(kind), step.pooled, vectorized)

    def prepare(format: str, x: Array, strides: Strides) -> Callable[[Array], None]:
        return emitter.prepare(DIRECT_KERNELS[format], n, x, weights, bias, y, n, F, *strides, *sizes)

    def cost(x_bytes: int) -> Cost:
        flops = 2 * y.pixels * (4 if step.pooled else 1) * F * geometry[0] * step.size**2
        return Cost(x_bytes + weights.nbytes + bias.nbytes, y.nbytes, flops)

    return PreparedConv(prepare, cost, apply_in_place(emitter, rest, y, step))


def _small_channel(emitter: Emitter, step: Convolve) -> Emitted:
    x, conv = emitter.view(step.xs[0]), small_channel_conv(emitter, step)
    run = partial(conv.convolve, "map", x.a, (x.sizes[1] * x.ld, 1, x.ld))
    conv_launch = Launch(run, conv.kernels["map"], conv.cost(x.nbytes))
    return Emitted([conv_launch, *conv.epilogue], emitter.schedule.algorithms[step].replace("_", " "))


def _depthwise(emitter: Emitter, step: Convolve) -> Emitted:
    x, y, (weights, bias) = emitter.view(step.xs[0]), emitter.view(step.y), emitter.weights.arrays(step)
    vectorized = emitter.can_vectorize(x, y)
    n = emitter.threads(y.pixels * y.shape[0], vectorized)
    geometry = (*x.shape, *y.shape[1:], step.size, *step.strides, step.dilation, step.pad)
    flops = 2 * y.pixels * y.shape[0] * step.size**2
    conv = emitter.launch("direct.depthwise", n, x, weights, y, n, *geometry, x.ld, y.ld, vectorized, flops=flops)
    return Emitted([conv, *apply_epilogue(emitter, step.epilogue, y, y, bias, step)], "depthwise")


def _gemm_1x1(emitter: Emitter, step: Convolve) -> Emitted:
    x, y, (_, bias) = emitter.view(step.xs[0]), emitter.view(step.y), emitter.weights.arrays(step)
    batched = emitter.schedule.algorithms[step] == "gemm_1x1_batched"
    images = emitter.batch if batched else 1
    gemm = _gemm(emitter, step, address(y.a), y.ld, address(x.a), x.ld, y.pixels, images)
    algorithm = "batched gemm" if batched else "gemm"
    return Emitted([gemm, *apply_epilogue(emitter, step.epilogue, y, y, bias, step)], algorithm)


def _fused_gemm(emitter: Emitter, group: tuple[Convolve, ...]) -> list[Launch]:
    """Return the launches of convolutions of the same map: one gemm into a common output, then an epilogue per part."""
    first, last, x = group[0], group[-1], emitter.view(group[0].xs[0])
    output, weights = emitter.workspace(last, "fused_output"), emitter.weights.arrays(first)[0]
    ld, start, consumers = len(weights), 0, emitter.schedule.im2col_consumers
    addresses = address(output), address(x.a), address(weights)
    gemm = emitter.gemm(*addresses, x.pixels, ld, x.shape[0], ld, x.ld, weights.shape[1])
    if len(group) == 2 and not any(s in consumers or len(s.epilogue) > 1 for s in group):
        return [gemm, _split_epilogue(emitter, first, last, output, ld)]
    launches = [gemm]
    for step in group:
        y = emitter.view(step.y)
        a = output[start:][: (y.pixels - 1) * ld + y.shape[0]]
        part = replace(y, a=a, ld=ld, channel_offset=start)
        launches += apply_epilogue(emitter, step.epilogue, part, y, emitter.weights.arrays(step)[1], step)
        start += align_channels(y.shape[0])
    return launches


def _split_epilogue(emitter: Emitter, first: Convolve, second: Convolve, output: Array, ld: int) -> Launch:
    """Return the launch of both epilogues of a gemm that is two convolutions."""
    views = emitter.view(first.y), emitter.view(second.y)
    biases = (emitter.weights.arrays(s)[1] for s in (first, second))
    kinds = [next_pass(s.epilogue)[0].pre for s in (first, second)]
    C1, C2 = (v.shape[0] for v in views)
    vectorized = set(kinds) <= VECTOR_ACTIVATIONS and emitter.can_vectorize(*views)
    n = emitter.threads(views[0].pixels * (C1 + C2), vectorized)
    sizes = (n, C1, C2, align_channels(C1), ld, *(v.ld for v in views), *map(NAMES.index, kinds), vectorized)
    return emitter.launch("epilogue.epilogue_split", n, output, *biases, *views, *sizes)


def _im2col_gemm(emitter: Emitter, step: Convolve) -> Emitted:
    y, bias = emitter.view(step.y), emitter.weights.arrays(step)[1]
    if not step.pooled:
        gemms = _im2col_gemms(emitter, step, 0, y.pixels, y.a, y.ld)
        launches = [*gemms.launches, *apply_epilogue(emitter, step.epilogue, y, y, bias, step)]
        return Emitted(launches, gemms.algorithm)
    (F, OH, OW), launches, algorithm = y.shape, list[Launch](), ""
    (kind, _, _), rest = next_pass(step.epilogue)  # after a max pool there are activations only
    output, images, ld = emitter.workspace(step, "conv_output"), emitter.problem(step).maxpool_images, align_channels(F)
    for first in range(0, emitter.batch, images):
        count = min(images, emitter.batch - first)
        pixels = count * OH * OW
        out = output[: (4 * pixels - 1) * ld + F]
        gemms = _im2col_gemms(emitter, step, 4 * OH * OW * first, 4 * pixels, out, ld)
        algorithm = gemms.algorithm
        result = y.images(first, count)
        launches += [*gemms.launches, _maxpool_epilogue(emitter, step, kind, out, ld, bias, result, not rest)]
    return Emitted([*launches, *apply_in_place(emitter, rest, y, step)], algorithm)


def _maxpool_epilogue(
    emitter: Emitter, step: Convolve, kind: str, x: Array, ldx: int, bias: Array, y: View, last: bool
) -> Launch:
    """Return the launch of a 2 x 2 max pool, bias and activation; if it is the step's last, with fused im2col."""
    consumer, (C, H, W) = emitter.schedule.im2col_consumers.get(step) if last else None, y.shape
    vectorized = kind in VECTOR_ACTIVATIONS and emitter.can_vectorize(y)
    if consumer is None:
        n = emitter.threads(y.pixels * C, vectorized)
        sizes = (n, C, W, ldx, y.ld, NAMES.index(kind), vectorized)
        return emitter.launch("epilogue_pool.maxpool_epilogue", n, x, bias, y, *sizes)
    target = im2col_target(emitter, consumer, H, W)
    vectorized = vectorized and target.can_vectorize
    n = emitter.threads(target.positions * C, vectorized)
    out = None if step in emitter.schedule.dead_stores else y
    geometry = (n, C, H, W, ldx, y.ld, NAMES.index(kind), *target.geometry, vectorized)
    return emitter.launch("epilogue_pool.maxpool_epilogue_im2col", n, x, bias, out, target.col, *geometry)


def _im2col_gemms(emitter: Emitter, step: Convolve, start: int, pixels: int, out: Array, ld: int) -> Emitted:
    """Emit a convolution without bias: out (pixels, F) are the pixels of its output from `start` on."""
    x, (OH, OW) = emitter.view(step.xs[0]), step.conv_output_size
    problem, algorithm = emitter.problem(step), emitter.schedule.algorithms[step]
    (C, H, W), ldcol, size = x.shape, problem.ldcol, emitter.dtype.itemsize
    G, col, launches = C // step.groups, emitter.workspace(step, "im2col"), list[Launch]()
    rows, producer = min(problem.im2col_rows(algorithm), pixels), emitter.schedule.im2col_producers.get(step)
    chunks, images = range(0, pixels, rows), emitter.batch if algorithm == "im2col_batched_gemm" else 1
    geometry = (H, W, OH, OW, step.size, *step.strides, step.dilation, step.pad)
    vectorized = emitter.can_vectorize(x) and G % emitter.vector == 0
    for first in chunks:
        count = min(rows, pixels - first)
        if producer is None:
            n = emitter.threads(count * step.size * C, vectorized)
            chunk = col[: (count - 1) * ldcol + C * step.size**2]
            sizes = (n, start + first, C, G, *geometry, x.ld, ldcol, vectorized)
            part = replace(x, pixels=min(x.pixels, count * step.strides[0] * step.strides[1]))  # what the rows need
            launches.append(emitter.launch("nhwc.im2col", n, part, chunk, *sizes))
        at = address(out) + first * ld * size
        launches.append(_gemm(emitter, step, at, ld, address(col), ldcol, count, images))
    im2col = "im2col" if producer is None else f"im2col by layer {producer.layers[-1]}"
    gemm = "batched gemm" if images > 1 else "gemm"
    return Emitted(launches, f"{im2col}, {gemm}{_in_chunks(chunks)}")


def _in_chunks(chunks: Sequence[int]) -> str:
    return f" in {len(chunks)} chunks" if len(chunks) > 1 else ""


def _gemm(emitter: Emitter, step: Convolve, y: int, ldy: int, a: int, lda: int, M: int, images: int) -> Launch:
    """Return the gemm y (M, F) = a (M, K) @ weights (F, K).T, batched over groups of channels or images; y, a: addresses."""
    weights, groups = emitter.weights.arrays(step)[0], step.groups
    w, ldw, F = address(weights), weights.shape[1], step.y.shape[0]
    K = step.xs[0].shape[0] // groups * step.size**2
    if groups > 1:
        N = F // groups
        strides = (N, K, N * ldw)
        return emitter.gemm(y, a, w, M, N, K, ldy, lda, ldw, groups, strides)
    if step.pooled or step.y.base is None:
        F = align_channels(F)  # zeros into the padding between pixels: tensor cores like multiples of 8, heads have 255
    if images > 1:
        rows = M // images
        strides = (rows * ldy, rows * lda, 0)
        return emitter.gemm(y, a, w, rows, F, K, ldy, lda, ldw, images, strides)
    return emitter.gemm(y, a, w, M, F, K, ldy, lda, ldw)


def _winograd(emitter: Emitter, step: Convolve) -> Emitted:
    x, y, problem = emitter.view(step.xs[0]), emitter.view(step.y), emitter.problem(step)
    weights, bias = emitter.weights.arrays(step)
    (C, H, W), F, (OH, OW), (TH, TW) = x.shape, y.shape[0], step.conv_output_size, problem.tiles
    (one, rest), ldc, ldf, launches = next_pass(step.epilogue), align_channels(C), align_channels(F), list[Launch]()
    inputs, outputs = (emitter.workspace(step, f"winograd_{name}") for name in ("input", "output"))
    arguments, images = pass_arguments(emitter, one, y), problem.winograd_images
    chunks = range(0, emitter.batch, images)
    for first in chunks:
        count = min(images, emitter.batch - first)
        tiles = count * TH * TW
        v, m = inputs[: (16 * tiles - 1) * ldc + C], outputs[: (16 * tiles - 1) * ldf + F]
        source, result = x.images(first, count), y.images(first, count)
        vectorized = source.can_vectorize(TILE_VECTOR)
        n = tiles * C // (TILE_VECTOR if vectorized else 1)
        sizes: tuple[float, ...] = (n, tiles, C, H, W, TH, TW, x.ld, ldc, vectorized)
        launches.append(emitter.launch("winograd.winograd_input_transform", n, source, v, *sizes))
        launches.append(_winograd_gemm(emitter, address(m), address(v), weights, tiles, ldf, C, ldc))
        (Co, Po, ldo), other = arguments.sizes, arguments.other
        pointers = (m, bias, other.images(first, count) if other else None, result)
        vectorized = one.can_vectorize and arguments.can_vectorize(TILE_VECTOR) and result.can_vectorize(TILE_VECTOR)
        n = tiles * F // (TILE_VECTOR if vectorized else 1)
        lds = (ldf, ldo, y.ld)
        sizes = (n, tiles, F, OH, OW, TH, TW, Co, Po, *lds, *arguments.codes, step.pooled, vectorized)
        launches.append(emitter.launch("winograd.winograd_output_transform", n, *pointers, *sizes))
    return Emitted([*launches, *apply_in_place(emitter, rest, y, step)], f"winograd{_in_chunks(chunks)}")


def _winograd_gemm(emitter: Emitter, y: int, a: int, weights: Array, tiles: int, F: int, C: int, lda: int) -> Launch:
    """Return the batched gemm of the 16 positions in a tile."""
    ldw = weights.shape[2]
    strides = (tiles * F, tiles * lda, F * ldw)
    return emitter.gemm(y, a, address(weights), tiles, F, C, F, lda, ldw, 16, strides)


EMITTERS: dict[str, Callable[[Emitter, Convolve], Emitted]] = {
    "direct": _small_channel,
    "depthwise": _depthwise,
    "gemm_1x1": _gemm_1x1,
    "gemm_1x1_batched": _gemm_1x1,
    "im2col_gemm": _im2col_gemm,
    **dict.fromkeys(IM2COL_BUDGETS, _im2col_gemm),
    "im2col_batched_gemm": _im2col_gemm,
    "winograd_f2": _winograd,
    "image_gemm": _small_channel,
    **dict.fromkeys(IMPLICIT_GEMMS, implicit_gemm.implicit_gemm),
}
