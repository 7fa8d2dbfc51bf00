"""The fixture `be`: every numeric test runs on each backend that this machine can offer."""

from __future__ import annotations

import os

import host_cuda
import numpy as np
import pytest

from gpudarknet import backend
from gpudarknet.backend import Backend


class Poisoned(Backend):
    """NumPy arrays through the CUDA kernels; what nobody has written to is NaN (-1 in integers)."""

    def empty(self, shape, dtype=np.float32):
        a = np.empty(shape, dtype)
        a.view(np.uint8).fill(host_cuda.POISON) if a.ndim else a.fill(np.nan)
        return a


HOST_CUDA = Poisoned("host-cuda", np, host_cuda.launcher())


@pytest.fixture(params=["numpy", "host-cuda", "cuda"])
def be(request):
    """A backend: the definitions on NumPy, the kernels on a CPU (host_cuda/), the kernels on a GPU."""
    return backend_for(request.param)


@pytest.fixture(params=["host-cuda", "cuda"])
def kernels(request):
    """A backend with kernels."""
    return backend_for(request.param)


def backend_for(name: str) -> Backend:
    if name == "numpy":
        return Backend("numpy", np)
    if name == "host-cuda":
        if host_cuda.COMPILER is None:
            missing = "host-cuda needs g++ (or set CXX to a C++17 compiler)"
            pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
        return HOST_CUDA
    why = backend.why_no_cupy()
    if why is not None:
        pytest.skip(f"no GPU: {why}")
    return backend.get("cupy")
