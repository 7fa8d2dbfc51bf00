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
    """A backend: the definitions on NumPy, the kernels on a CPU (tests/host_cuda), the kernels on a GPU."""
    if request.param == "numpy":
        return Backend("numpy", np)
    if request.param == "host-cuda":
        return require_host_cuda()
    why = backend.why_no_cupy()
    if why is not None:
        pytest.skip(f"no GPU: {why}")
    return backend.get("cupy")


def require_host_cuda() -> Backend:
    if host_cuda.COMPILER is None:
        missing = "host-cuda needs g++, which is not installed (or set CXX to a C++17 compiler)"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    return HOST_CUDA
