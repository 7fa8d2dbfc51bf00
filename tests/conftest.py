"""The fixture `be`: every numeric test runs on each backend that this machine can offer.

"cuda" is a GPU, or with --cuda-emulator the real CuPy on an emulated one (cuda_emulator/); without either, such tests are
left out.
"""

from __future__ import annotations

import os

import cuda_emulator
import host_cuda
import numpy as np
import pytest

from gpudarknet import backend
from gpudarknet.backend import Backend


def pytest_addoption(parser):
    parser.addoption(
        "--cuda-emulator", action="store_true", help="run tests of CUDA with the real CuPy on an emulated device"
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "cuda: runs on a GPU, real or emulated")
    if config.getoption("--cuda-emulator") and cuda_emulator.why_not() is None:
        cuda_emulator.install()  # before anything imports CuPy


LONG = ("test_sanitize", "test_nvrtc", "test_gpu_check_emulated")  # files of tests that take up to minutes each


def pytest_collection_modifyitems(config, items):
    """Mark what runs on a device, and leave it out where there is none; say why if an emulated one was asked for.

    The longest tests come first, so that no process is left alone with one at the end.
    """
    items.sort(key=lambda item: item.path.stem not in LONG)
    for item in items:
        params = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if any(isinstance(value, str) and value == "cuda" for value in params) or "emulator" in getattr(
            item, "fixturenames", ()
        ):
            item.add_marker("cuda")
    emulated = config.getoption("--cuda-emulator")
    why = cuda_emulator.why_not() if emulated else backend.why_no_cupy()
    if why is None:
        return
    cuda = [item for item in items if item.get_closest_marker("cuda")]
    if emulated:
        for item in cuda:
            item.add_marker(pytest.mark.skip(reason=f"no CUDA emulator: {why}"))
    else:
        config.hook.pytest_deselected(items=cuda)
        items[:] = [item for item in items if not item.get_closest_marker("cuda")]


@pytest.fixture(autouse=True)
def cuda_is_in_order():
    """Fail a test on an emulated device that leaves an error of CUDA behind."""
    yield
    if cuda_emulator.installed():
        error = cuda_emulator.reset()
        assert error is None, error


@pytest.fixture
def emulator():
    """The emulated CUDA, for tests that count what is done on it or let it fail."""
    if not cuda_emulator.installed():
        pytest.skip("needs --cuda-emulator")
    return cuda_emulator


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
        return backend.get("numpy")
    if name == "host-cuda":
        if host_cuda.COMPILER is None:
            missing = "host-cuda needs g++ (or set CXX to a C++17 compiler)"
            pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
        return HOST_CUDA
    return backend.get("cupy")
