"""The convolution algorithms of the CPU, and the choice among them: measured, else by a rule fitted to measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..steps import Convolve
from .command_list import TaskStages
from .convolution import (
    PackedWeights,
    depthwise,
    gemm_1x1,
    grouped_gemm,
    im2col_gemm,
    pack_gemm_1x1,
    pack_grouped,
    pack_im2col,
)
from .epilogue import EpilogueFactory
from .winograd import pack_winograd, winograd


@dataclass(frozen=True)
class ConvAlgorithm:
    """An algorithm for convolutions.

    supports: whether it can run a step. pack_weights(kernel (F, C/groups, size, size), bias (F,)): weights in its layout.
    make_tasks(step, x, y, packed weights, epilogue, workers) -> stages of tasks.
    """

    supports: Callable[[Convolve], bool]
    pack_weights: Callable[[np.ndarray, np.ndarray], PackedWeights]
    make_tasks: Callable[[Convolve, np.ndarray, np.ndarray, PackedWeights, EpilogueFactory, int], TaskStages]


def _is_1x1(s: Convolve) -> bool:
    return (s.size, s.strides, s.pad, s.groups) == (1, (1, 1), 0, 1)


def _is_winograd(s: Convolve) -> bool:
    return (s.size, s.strides, s.dilation, s.pad, s.groups) == (3, (1, 1), 1, 1, 1)


ALGORITHMS: dict[str, ConvAlgorithm] = {
    "im2col_gemm": ConvAlgorithm(lambda s: s.groups == 1, pack_im2col, im2col_gemm),
    "grouped_gemm": ConvAlgorithm(lambda s: s.groups > 1, pack_grouped, grouped_gemm),
    "depthwise": ConvAlgorithm(lambda s: s.depthwise, pack_grouped, depthwise),
    "gemm_1x1": ConvAlgorithm(_is_1x1, pack_gemm_1x1, gemm_1x1),
    "winograd_f2": ConvAlgorithm(_is_winograd, partial(pack_winograd, m=2), partial(winograd, m=2)),
    "winograd_f4": ConvAlgorithm(_is_winograd, partial(pack_winograd, m=4), partial(winograd, m=4)),
}


def select_algorithm(step: Convolve, batch: int, measured: Mapping[str, str]) -> str:
    """Return the name of the algorithm for a step: the measured one if available, else by rule."""
    name = measured.get(step.key(batch), "")
    if name in ALGORITHMS and ALGORITHMS[name].supports(step):
        return name
    if _is_1x1(step):
        return "gemm_1x1"
    if step.groups > 1:
        return "depthwise" if step.depthwise else "grouped_gemm"
    (C, H, W), F = step.xs[0].shape, step.y.shape[0]
    if not _is_winograd(step) or min(C, F) < 16:
        return "im2col_gemm"
    # F(4x4) has 4 times the weights of the kernel, F(2x2) 16/9 times; on small maps, reading large ones costs more than it saves.
    if H * W > 400 or F * C <= 1 << 17:
        return "winograd_f4"
    return "im2col_gemm" if H * W > 300 else "winograd_f2"
