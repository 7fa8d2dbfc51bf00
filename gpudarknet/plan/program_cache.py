"""The programs of one network: compiled when first needed, kept while the weights stay."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from .. import export
from ..backend import Backend
from ..errors import BackendError
from ..graph import Node
from ..layers import Shape
from . import cuda
from .compile import compile
from .cpu.program import Prepared, Program
from .cuda import autotune
from .steps import Plan
from .tuning import read_choices

KEPT = 4  # programs: shapes and batches in use at a time
_lock = threading.Lock()  # one for all engines, so that networks can be copied and sent to other processes


class ProgramCache:
    """Runs a network by plans, one per input shape, batch and precision. The prepared weights are shared."""

    def __init__(self) -> None:
        self.programs: dict[tuple[Shape, int, str], Program | cuda.Program | export.Program] = {}
        self.prepared: dict[tuple[int, str], Prepared] = {}

    def clear(self) -> None:
        """Drop everything that was made from the weights: they have changed."""
        with _lock:
            self.programs, self.prepared = {}, {}  # another thread may be in a program, which keeps its weights

    def program(
        self,
        nodes: Sequence[Node],
        weights: Sequence[dict[str, Any]],
        heads: Sequence[int],
        shape: Shape,
        batch: int,
        be: Backend | None = None,
        precision: str = "fp32",
    ) -> Program | cuda.Program | export.Program:
        """Return the program for `batch` images of `shape` (C, H, W): on CUDA if `be` has cuBLAS, else on NumPy.

        A backend called onnxruntime has its own programs.
        """
        on_cuda = be is not None and be.cublas is not None
        key = (shape, batch, precision if on_cuda else "fp32")
        with _lock:
            found = self.programs.pop(key, None)
            if found is None and be is not None and be.name == "onnxruntime":
                found = export.Program(nodes, weights, heads, shape, batch)
            elif found is None:
                plan = compile(nodes, weights, heads, shape, batch)
                if be is not None and on_cuda:
                    found = self._on_cuda(plan, be, precision)
                else:
                    found = Program(plan, read_choices(), self.prepared)
            self.programs[key] = found  # the latest stands last
            while len(self.programs) > KEPT:
                del self.programs[next(iter(self.programs))]
            return found

    def _on_cuda(self, plan: Plan, be: Backend, precision: str) -> cuda.Program:
        choices = read_choices(autotune.device(be, precision))
        try:
            return cuda.Program(plan, be, precision, self.prepared, choices)
        except BackendError:
            if not self.programs:
                raise
            self.programs.clear()  # the arenas of other shapes and batches may be what is in the way
            return cuda.Program(plan, be, precision, self.prepared, choices)

    def __getstate__(self) -> dict[str, Any]:
        return {"programs": {}, "prepared": {}}
