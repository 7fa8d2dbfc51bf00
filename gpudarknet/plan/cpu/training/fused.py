"""Fused passes, compiled by Numba if it is installed: one pass over memory where NumPy needs one for each operation.

They replace NumPy calls in the recorded commands; matrix products stay with BLAS. `compiled.py` has the loops.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from ..command_list import CommandList

RUN = 1 << 9  # elements of the runs that a contiguous map with few channels is processed in

# Activations that are linear on either side of 0: the slope below it.
SLOPES = {"linear": 1.0, "leaky": 0.1, "revleaky": 0.1, "relu": 0.0, "relie": 0.01}


@cache
def available() -> bool:
    """Return whether Numba is installed."""
    return find_spec("numba") is not None


def flat(a: np.ndarray) -> np.ndarray:
    """View the memory of an array (..., channels), whose channels are contiguous, from its first to its last element."""
    last = sum((n - 1) * stride for n, stride in zip(a.shape, a.strides, strict=True))
    return np.lib.stride_tricks.as_strided(a, (last // a.itemsize + 1,), (a.itemsize,))


def step(a: np.ndarray) -> int:
    """Return the distance of the pixels of a map (..., C), in elements."""
    return a.strides[-2] // a.itemsize


def record(commands: CommandList, kernel: Callable[..., None], *arguments: Any) -> None:
    """Record a call of a kernel."""
    commands.record(partial(kernel, *arguments))


class Runs:
    """How to walk over matrices (pixels, channels) together: in runs, which are several pixels if all matrices are contiguous.

    length: elements of a run. steps: for each matrix the distance of its pixels.
    """

    def __init__(self, *matrices: np.ndarray):
        P, C = matrices[0].shape
        self.repeats = max(1, min(P, RUN // C)) if all(m.flags.c_contiguous for m in matrices) else 1
        self.length, self.steps = self.repeats * C, tuple(map(step, matrices))


@cache
def kernels() -> Any:
    """Return the module of the compiled loops."""
    from . import compiled

    return compiled
