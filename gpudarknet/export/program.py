"""Run networks with ONNX Runtime, an optional executor for CPUs: load_network(..., backend="onnxruntime")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..array import Arrays
from ..backend import Backend, Executor, register_executor
from ..backend.threads import thread_count
from ..graph import Node
from ..layers import Shape
from .model import INPUT, build_model


class Program:
    """Runs layers for `batch` images of `shape` (C, H, W), like `plan.Program`. Needs the extra `cpu`.

    Raises CfgError for layers that have no ONNX lowering or keep state between images.
    """

    def __init__(
        self, nodes: Sequence[Node], weights: Sequence[Arrays], heads: Sequence[int], shape: Shape, batch: int
    ):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        count, source = thread_count()
        if source != "affinity":  # by default there is one thread per physical core
            options.intra_op_num_threads = count
        model = build_model(nodes, weights, heads, shape, batch=batch).SerializeToString()
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(self, x: np.ndarray) -> list[np.ndarray]:
        """Return the heads' outputs for x (N, C, H, W); the caller owns them."""
        return self.session.run(None, {INPUT: x})


def compile_program(
    be: Backend, nodes: Sequence[Node], weights: Sequence[Arrays], heads: Sequence[int],
    shape: Shape, batch: int, precision: str, packed_weights: dict[Any, Any],
) -> Program:  # fmt: skip
    """Compile a network for ONNX Runtime."""
    return Program(nodes, weights, heads, shape, batch)


register_executor("onnxruntime", Executor(compile_program))
