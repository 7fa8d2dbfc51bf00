"""A null device: shows on a machine without a GPU how a plan would run on one, and the memory it would need.

be = dry_run.backend()
cuda.Program(plan, be, "fp16").describe(find_card("H100"))      # packs weights on the host; launches nothing
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np

from ...backend import Backend
from .tiles import H100

NAME = "no device"


class NullObject:
    """A device, stream, event or cuBLAS handle whose methods do nothing."""

    id = ptr = 0

    def __call__(self, *args: Any, **options: Any) -> NullObject:
        """Do nothing; what it returns does nothing either."""
        return self

    def __getattr__(self, name: str) -> NullObject:
        return self

    def __enter__(self) -> NullObject:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def backend() -> Backend:
    """Return a backend for programs that are compiled, but not run. Its arrays are NumPy's, its memory is unlimited."""
    null: Any = NullObject()
    properties = dict(
        name=H100.name.encode(), major=9, minor=0, multiProcessorCount=132, sharedMemPerBlockOptin=H100.shared_memory
    )
    runtime = SimpleNamespace(
        memGetInfo=lambda: (sys.maxsize, sys.maxsize), getDeviceProperties=lambda device: properties
    )
    cuda = SimpleNamespace(Device=null, Stream=null, Event=null, runtime=runtime,
                           get_current_stream=null)  # fmt: skip
    arrays = {
        name: getattr(np, name)
        for name in ("ndarray", "asarray", "ascontiguousarray", "empty", "zeros", "exp", "maximum")
    }
    pool = SimpleNamespace(free_bytes=lambda: 0)
    xp: Any = SimpleNamespace(**arrays, cuda=cuda, get_default_memory_pool=lambda: pool)
    return Backend(NAME, xp, null, null, "cuda")
