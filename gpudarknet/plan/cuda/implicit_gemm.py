"""Convolutions by kernels/implicit_gemm.cu and image_gemm.cu: one launch on tensor cores, with the epilogue, without im2col."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ...array import Array, KernelArgument
from ..steps import Convolve
from .algorithms import IMPLICIT_GEMMS, align_channels
from .emitter import Emitted, Emitter, Launch
from .epilogue import EpiloguePass, apply_in_place, next_pass, pass_arguments
from .tiles import IMAGE_TILE, TILES, Tile
from .time_model import Cost
from .view import View

IMAGE_KERNELS = {
    "map": "image_gemm.image_gemm_map",
    "float32": "image_gemm.image_gemm_float32",
    "uint8": "image_gemm.image_gemm_uint8",
}


Strides = tuple[int, int, int]  # elements of an input from image to image, channel to channel, pixel to pixel


class PreparedConv(NamedTuple):
    """A convolution of few channels: prepare(format, x, strides) returns its launch as a function of x.

    cost: of an input of so many bytes. epilogue: the launches of what the kernel does not apply.
    """

    prepare: Callable[[str, Array, Strides], Callable[[Array], None]]
    cost: Callable[[int], Cost]
    epilogue: list[Launch]


class FusedEpilogue(NamedTuple):
    """The part of an epilogue that the kernel applies, as its arguments, and the launches of the rest."""

    arguments: tuple[KernelArgument | View, ...]
    rest: list[Launch]


def fused_epilogue(emitter: Emitter, step: Convolve, y: View, bias: Array) -> FusedEpilogue:
    """Fuse the first pass of a convolution's epilogue, and its YOLO head if no other pass is in between."""
    one, rest = next_pass(step.epilogue)
    arguments = pass_arguments(emitter, one, y)
    other = arguments.other
    if not one.can_vectorize or not (other is None or other.shape[0] == 1 or other.is_aligned(emitter.vector)):
        one, rest = EpiloguePass("linear", None, "linear"), list(step.epilogue)
        arguments = pass_arguments(emitter, one, y)
    head = step.head if step.head is not None and not rest else None
    activations = (0, 1.0, 0) if head is None else (y.shape[0] // head.A, head.scale_x_y, head.new_coords)
    flags = (*activations, step.pooled, y.ld, y.is_aligned(emitter.vector))
    launches = apply_in_place(emitter, rest, y, step) if head is None else []
    return FusedEpilogue((bias, arguments.other, y, *arguments.sizes, *arguments.codes, *flags), launches)


def kernel_name(tile: Tile, ragged: int) -> str:
    """Return the kernel of a tile."""
    return f"implicit_gemm.implicit_gemm_{tile.name}" + "_ragged" * ragged


TILE_KERNELS = tuple(kernel_name(tile, ragged) for tile in TILES.values() for ragged in range(1 + tile.ragged))


def implicit_gemm(emitter: Emitter, step: Convolve) -> Emitted:
    """Emit a convolution with the tile and the splits of K that its algorithm names."""
    x, y, (weights, bias) = emitter.view(step.xs[0]), emitter.view(step.y), emitter.weights.arrays(step)
    (tile, splits), product = IMPLICIT_GEMMS[emitter.schedule.algorithms[step]], emitter.problem(step).product
    sums = emitter.workspace(step, "partial_sums").view(np.float32) if splits > 1 else None
    counters = emitter.split_counters if splits > 1 else None
    C, epilogue = x.shape[0] // step.groups, fused_epilogue(emitter, step, y, bias)
    geometry = (C, align_channels(C), *x.shape[1:], *_window(step), x.ld, weights.shape[1], step.groups, splits)
    arguments = (x, weights, sums, counters, product.M, product.N, *geometry, *epilogue.arguments)
    launch = emitter.launch(
        kernel_name(tile, product.ragged), tile.threads * product.tiles(tile) * splits, *arguments,
        block=tile.threads, shared=tile.shared_bytes, gemm=product.gemm(tile, splits),
    )  # fmt: skip
    split = f", K in {splits} splits" if splits > 1 else ""
    return Emitted([launch, *epilogue.rest], f"implicit gemm {tile.name}{split}")


def image_gemm(emitter: Emitter, step: Convolve) -> PreparedConv:
    """Return a convolution of few channels."""
    y, (weights, bias), product = emitter.view(step.y), emitter.weights.arrays(step), emitter.problem(step).product
    epilogue = fused_epilogue(emitter, step, y, bias)
    block, shared = IMAGE_TILE.threads, IMAGE_TILE.shared_bytes

    def prepare(format: str, x: Array, strides: Strides) -> Callable[[Array], None]:
        geometry = (product.M, product.N, *strides, *step.xs[0].shape, *_window(step), weights.shape[1])
        threads, arguments = block * product.tiles(IMAGE_TILE), (x, weights, *geometry, *epilogue.arguments)
        return emitter.prepare(IMAGE_KERNELS[format], threads, *arguments, block=block, shared=shared)

    def cost(x_bytes: int) -> Cost:
        return Cost(x_bytes + weights.nbytes + bias.nbytes, y.nbytes, gemm=product.gemm(IMAGE_TILE, 1))

    return PreparedConv(prepare, cost, epilogue.rest)


def _window(step: Convolve) -> tuple[int, ...]:
    return *step.conv_output_size, step.size, *step.strides, step.dilation, step.pad
