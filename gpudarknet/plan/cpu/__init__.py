"""Run a plan with NumPy on all cores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...array import Arrays
from ...backend import Backend, Executor, register_executor
from ...graph import Node
from ...layers import Shape
from ...summary import flops
from ..compile import compile
from ..tuning import load_tuning
from . import autotune
from .command_list import command_queue
from .program import ImageParallelProgram, Program

__all__ = ["ImageParallelProgram", "Program", "autotune"]

MIN_BALANCE = 0.75  # share of the workers that are busy, on average, if each computes whole images
MIN_REUSE = 200  # uses of a weight per image below which reading the weights once per image costs more than it saves


def compile_program(
    be: Backend, nodes: Sequence[Node], weights: Sequence[Arrays], heads: Sequence[int],
    shape: Shape, batch: int, precision: str, packed_weights: dict[Any, Any],
) -> Program | ImageParallelProgram:  # fmt: skip
    """Compile a network for the CPU, with the algorithms measured on this machine if available."""
    choices = load_tuning(autotune.device_name())
    if batch > 1 and suits_image_parallelism(nodes, weights, batch):
        return ImageParallelProgram(compile(nodes, weights, heads, shape, 1), batch, choices, packed_weights)
    return Program(compile(nodes, weights, heads, shape, batch), choices, packed_weights)


def suits_image_parallelism(nodes: Sequence[Node], weights: Sequence[Arrays], batch: int) -> bool:
    """Return whether a batch is computed faster by one worker per image than by all workers on each layer."""
    workers = command_queue().size
    balance = batch / (workers * -(-batch // workers))
    if balance < MIN_BALANCE or any(n.layer.stateful for n in nodes):
        return False
    elements = sum(a.size for own in {id(own): own for own in weights}.values() for a in own.values())
    return flops(nodes) >= 2 * MIN_REUSE * elements


register_executor("cpu", Executor(compile_program))
