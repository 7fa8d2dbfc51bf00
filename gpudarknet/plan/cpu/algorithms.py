"""Which way to convolve: by measurement where there is one, else by a rule that was fitted to measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..steps import Convolve
from .convolution import Phases, depthwise, direct, grouped, in_rows, packed, patches, with_bias
from .winograd import kernels, winograd


@dataclass(frozen=True)
class Method:
    """A way to convolve.

    fits: which steps it can do. prepare(kernel (F, C/groups, size, size), bias (F,)) -> what it wants instead.
    bind(step, x, y, prepared, last, team) -> phases of tasks.
    """

    fits: Callable[[Convolve], bool]
    prepare: Callable[[np.ndarray, np.ndarray], Any]
    bind: Callable[..., Phases]


def _is_direct(s: Convolve) -> bool:
    return (s.size, s.strides, s.pad, s.groups) == (1, (1, 1), 0, 1)


def _is_winograd(s: Convolve) -> bool:
    return (s.size, s.strides, s.dilation, s.pad, s.groups) == (3, (1, 1), 1, 1, 1)


METHODS: dict[str, Method] = {
    "patches": Method(lambda s: s.groups == 1, with_bias, patches),
    "grouped": Method(lambda s: s.groups > 1, in_rows, grouped),
    "depthwise": Method(lambda s: s.depthwise, in_rows, depthwise),
    "direct": Method(_is_direct, packed, direct),
    "winograd2": Method(_is_winograd, partial(kernels, m=2), partial(winograd, m=2)),
    "winograd4": Method(_is_winograd, partial(kernels, m=4), partial(winograd, m=4)),
}


def choose(step: Convolve, batch: int, choices: Mapping[str, str]) -> str:
    """Return the name of the method for a step: the measured one if there is one, else by rule."""
    found = choices.get(step.key(batch), "")
    if found in METHODS and METHODS[found].fits(step):
        return found
    if _is_direct(step):
        return "direct"
    if step.groups > 1:
        return "depthwise" if step.depthwise else "grouped"
    (C, H, W), F = step.xs[0].shape, step.y.shape[0]
    if not _is_winograd(step) or min(C, F) < 16:
        return "patches"
    # F(4x4) holds 4 times the weights, F(2x2) 16/9 times: of the largest ones only as many as small maps gain by
    if H * W > 400 or F * C <= 1 << 17:
        return "winograd4"
    return "patches" if H * W > 300 else "winograd2"
