"""The programs of one network: compiled when first needed, kept while the weights stay."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from ..graph import Node
from ..layers import Shape
from .compile import compile
from .cpu import Prepared, Program
from .tune import read_choices

KEPT = 4  # programs: shapes and batches in use at a time
_lock = threading.Lock()  # one for all engines, so that networks can be copied and sent to other processes


class Engine:
    """Runs a network by plans on the CPU, one per input shape and batch. The prepared weights are shared."""

    def __init__(self) -> None:
        self.programs: dict[tuple[Shape, int], Program] = {}
        self.prepared: dict[tuple[int, str], Prepared] = {}

    def forget(self) -> None:
        """Drop everything that was made from the weights: they have changed."""
        with _lock:
            self.programs.clear()
            self.prepared.clear()

    def program(
        self, nodes: Sequence[Node], weights: Sequence[dict[str, Any]], heads: Sequence[int], shape: Shape, batch: int
    ) -> Program:
        """Return the program for `batch` images of `shape` (C, H, W)."""
        with _lock:
            found = self.programs.pop((shape, batch), None)
            if found is None:
                plan = compile(nodes, weights, heads, shape, batch)
                found = Program(plan, read_choices(), self.prepared)
            self.programs[shape, batch] = found  # the latest stands last
            while len(self.programs) > KEPT:
                del self.programs[next(iter(self.programs))]
            return found

    def __getstate__(self) -> dict[str, Any]:
        return {"programs": {}, "prepared": {}}
