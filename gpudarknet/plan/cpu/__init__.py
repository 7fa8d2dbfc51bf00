"""Run a plan with NumPy on all cores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...array import Arrays
from ...backend import Backend, Executor, register_executor
from ...graph import Node
from ...layers import Shape
from ..compile import compile
from ..tuning import load_tuning
from . import autotune
from .program import Program

__all__ = ["Program", "autotune"]


def compile_program(
    be: Backend, nodes: Sequence[Node], weights: Sequence[Arrays], heads: Sequence[int],
    shape: Shape, batch: int, precision: str, packed_weights: dict[Any, Any],
) -> Program:  # fmt: skip
    """Compile a network for the CPU, with the algorithms measured on this machine if available."""
    return Program(compile(nodes, weights, heads, shape, batch), load_tuning(autotune.device_name()), packed_weights)


register_executor("cpu", Executor(compile_program))
