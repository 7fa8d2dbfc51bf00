"""Run a plan on a GPU: cuBLAS and the kernels of `kernels/`, captured as one CUDA graph.

canonicalize.py recurrent.py   rewrite layers as steps that run on a GPU (steps.py defines more)
schedule.py                    decides algorithms (algorithms.py, tiles.py; autotune.py measures), fusions, and the arena
emitter.py                     the basis of emitters: views (view.py), packed weights (weights.py), launches
steps.py convolution.py        emitters: a step becomes launches
  implicit_gemm.py epilogue.py layers.py
program.py                     runs, replays and describes the launches
detect.py                      decodes the heads' boxes at the end of the graph
input.py upload.py stream.py   the caller's input, image uploads, and the CUDA stream of all plans
dry_run.py                     a null device, to describe plans without a GPU
training/                      kernels of a compiled training step
time_model.py cost_report.py   the cost of launches, and their time on named GPUs
"""

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
from .upload import uploader

__all__ = ["Program", "autotune"]


def compile_program(
    be: Backend, nodes: Sequence[Node], weights: Sequence[Arrays], heads: Sequence[int],
    shape: Shape, batch: int, precision: str, packed_weights: dict[Any, Any],
) -> Program:  # fmt: skip
    """Compile a network for the GPU, with the algorithms measured on it if available."""
    choices = load_tuning(autotune.device_name(be, precision))
    return Program(compile(nodes, weights, heads, shape, batch), be, precision, packed_weights, choices)


register_executor("cuda", Executor(compile_program, ("fp32", "tf32", "fp16"), uploader))
