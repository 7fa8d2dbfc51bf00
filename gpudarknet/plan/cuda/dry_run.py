"""A GPU that is not there: how a plan would run on one, and the memory it would take, on a machine without.

be = dry.backend()
cuda.Program(plan, be, "fp16").describe()       # weights are packed on the host; nothing runs
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np

from ...backend import Backend

NAME = "no device"


class Nothing:
    """A device, a stream, an event, a cuBLAS handle: whatever is asked of it, nothing happens."""

    id = ptr = 0

    def __call__(self, *args: Any, **options: Any) -> Nothing:
        return self

    def __getattr__(self, name: str) -> Nothing:
        return self

    def __enter__(self) -> Nothing:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def backend() -> Backend:
    """Return a backend for which programs can be made, but not run. Its arrays are NumPy's, its memory has no end."""
    nothing: Any = Nothing()
    runtime = SimpleNamespace(memGetInfo=lambda: (sys.maxsize, sys.maxsize))
    cuda = SimpleNamespace(Device=nothing, Stream=nothing, Event=nothing, runtime=runtime,
                           get_current_stream=nothing)  # fmt: skip
    arrays = {
        name: getattr(np, name)
        for name in ("ndarray", "asarray", "ascontiguousarray", "empty", "zeros", "exp", "maximum")
    }
    pool = SimpleNamespace(free_bytes=lambda: 0)
    xp: Any = SimpleNamespace(**arrays, cuda=cuda, get_default_memory_pool=lambda: pool)
    return Backend(NAME, xp, nothing, nothing, "cuda")
