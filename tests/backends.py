"""The backends that tests run on: by name, for a plan on a GPU, and a layer's forward on one."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import host_cuda
import numpy as np
import pytest
from fake_cublas import FakeCublas

from gpudarknet import backend
from gpudarknet.backend import Backend
from gpudarknet.layers import ForwardContext, Layer

NUMPY = Backend("numpy", np)
LIBRARY = FakeCublas()


class Poisoned(Backend):
    """The CUDA kernels on NumPy arrays; uninitialized elements are NaN (-1 in integers)."""

    def empty(self, shape, dtype=np.float32):
        a = np.empty(shape, dtype)
        a.view(np.uint8).fill(host_cuda.POISON) if a.ndim else a.fill(np.nan)
        return a


HOST_CUDA = Poisoned("host-cuda", np, host_cuda.launcher())


def backend_for(name: str) -> Backend:
    if name == "numpy":
        return backend.get("numpy")
    if name == "host-cuda":
        if host_cuda.COMPILER is None:
            missing = "host-cuda needs g++ (or set CXX to a C++17 compiler)"
            pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
        return HOST_CUDA
    return backend.get("cupy")


@cache
def plan_backend() -> Backend:
    """NumPy arrays through the kernels and a fake cuBLAS; memory that nobody has written holds NaN."""
    return Poisoned("host-cuda", np, backend_for("host-cuda").launch, LIBRARY.open, "cuda")


def forward(
    be: Any, one: Layer, w: dict[str, np.ndarray], *xs: np.ndarray, ctx: ForwardContext | None = None
) -> np.ndarray:
    """Run a layer on a backend; return its output."""
    on = {name: be.asarray(a) for name, a in w.items()}
    y, _ = one.forward(be, on, *(be.asarray(x) for x in xs), ctx=ctx or ForwardContext())
    y = be.to_numpy(y)
    assert y.shape[1:] == one.shape(*(x.shape[1:] for x in xs))  # type: ignore[arg-type]
    assert y.dtype == np.float32
    return y
