"""The compiled programs of one network, and the packed weights they share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ..backend import Program
from ..errors import BackendError
from ..layers import Shape

CAPACITY = 4  # programs: input shapes, batches and precisions in use at once
Key = tuple[Shape, int, str, object]  # input shape (C, H, W), batch, precision, Backend.program_threads


class ProgramCache:
    """The most recently used programs, one per input shape, batch and precision.

    packed_weights: weights in the layouts that the programs use; programs of one network share them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.programs: dict[Key, Program] = {}
        self.packed_weights: dict[Any, Any] = {}

    def clear(self) -> None:
        """Drop everything derived from the weights, because they have changed."""
        with self._lock:
            self.programs, self.packed_weights = {}, {}  # another thread may still run a program; it keeps its weights

    def get(self, key: Key, compile: Callable[[dict[Any, Any]], Program]) -> Program:
        """Return the program for a key; if there is none, call `compile(packed_weights)`.

        If that raises BackendError, drop the other programs, whose arenas may occupy the memory it needs, and retry once.
        """
        with self._lock:
            program = self.programs.pop(key, None)
            if program is None:
                try:
                    program = compile(self.packed_weights)
                except BackendError:
                    if not self.programs:
                        raise
                    self.programs.clear()
                    program = compile(self.packed_weights)
            self.programs[key] = program  # the most recently used is last
            while len(self.programs) > CAPACITY:
                del self.programs[next(iter(self.programs))]
            return program
