"""Run a plan on a GPU: cuBLAS and the kernels of `kernels/`, recorded as one CUDA graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...backend import Backend, Executor, register_executor
from ...graph import Node
from ...layers import Shape
from ..compile import compile
from ..tuning import load_tuning
from . import autotune
from .program import Program

__all__ = ["Program", "autotune"]


def compile_program(
    be: Backend, nodes: Sequence[Node], weights: Sequence[dict[str, Any]], heads: Sequence[int],
    shape: Shape, batch: int, precision: str, packed_weights: dict[Any, Any],
) -> Program:  # fmt: skip
    """Compile a network for the GPU, with the algorithms measured on it if available."""
    choices = load_tuning(autotune.device_name(be, precision))
    return Program(compile(nodes, weights, heads, shape, batch), be, precision, packed_weights, choices)


register_executor("cuda", Executor(compile_program, ("fp32", "tf32", "fp16")))
