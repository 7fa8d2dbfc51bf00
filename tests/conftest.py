"""The fixture `be`: a test that takes it runs on each available backend.

"cuda" is a GPU, or with --cuda-emulator the real CuPy on an emulated one (cuda_emulator/); without either, such tests are
deselected.
"""

from __future__ import annotations

import signal

import cuda_emulator
import nhwc_maps
import numpy as np
import pytest
import threadpoolctl
from backends import backend_for, plan_backend

from gpudarknet import backend


def pytest_addoption(parser):
    parser.addoption(
        "--cuda-emulator", action="store_true", help="run CUDA tests with the real CuPy on an emulated device"
    )
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_configure(config):
    config.addinivalue_line("markers", "cuda: runs on a GPU, real or emulated")
    config.addinivalue_line(
        "markers", "slow: takes many seconds and repeats under harder conditions what other tests check"
    )
    if hasattr(config, "workerinput"):  # processes of pytest-xdist share the cores
        threadpoolctl.threadpool_limits(1, user_api="blas")
    if config.getoption("--cuda-emulator") and cuda_emulator.why_not() is None:
        cuda_emulator.install()  # before anything imports CuPy


def pytest_collection_modifyitems(config, items):
    """Mark tests that need a device; deselect them without one, or skip them if the emulator is requested but unavailable.

    Slow tests come first, so that none runs alone at the end of a parallel run; without --slow they are deselected.
    """
    slow = [item for item in items if item.get_closest_marker("slow")]
    others = [item for item in items if not item.get_closest_marker("slow")]
    items[:] = [*slow, *others] if config.getoption("--slow") else others
    if not config.getoption("--slow"):
        config.hook.pytest_deselected(items=slow)
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


@pytest.fixture(autouse=True, scope="session")
def default_signals():
    """Handle the signals that stop a training; a shell's background process ignores Ctrl-C, and one under nohup SIGHUP."""
    for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def cuda_is_in_order():
    """Fail a test that leaves a CUDA error behind on the emulated device."""
    yield
    if cuda_emulator.installed():
        error = cuda_emulator.reset()
        assert error is None, error


@pytest.fixture
def emulator():
    """The CUDA emulator, for tests that count its operations or inject errors."""
    if not cuda_emulator.installed():
        pytest.skip("needs --cuda-emulator")
    return cuda_emulator


@pytest.fixture(params=["numpy", "host-cuda", "cuda"])
def be(request):
    """A backend: references on NumPy, kernels on the CPU (host_cuda/), kernels on a GPU."""
    return backend_for(request.param)


@pytest.fixture(params=["host-cuda", "cuda"])
def kernels(request):
    """A backend with CUDA kernels."""
    return backend_for(request.param)


@pytest.fixture(params=["host-cuda", "cuda"])
def device(request):
    """A backend for plans: kernels and a cuBLAS made of NumPy, with poisoned memory; a GPU, with streams and graphs."""
    return plan_backend() if request.param == "host-cuda" else backend_for("cuda")


@pytest.fixture(params=[np.float32, np.float16], ids=["float32", "float16"])
def dtype(request):
    """What kernels store."""
    return request.param


@pytest.fixture(params=nhwc_maps.SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def shape(request):
    """N, H, W, C of a map."""
    return request.param


@pytest.fixture(params=nhwc_maps.PLACES)
def place(request):
    """Where in a wider map a map is."""
    return request.param


@pytest.fixture
def rng(shape):
    return np.random.default_rng(shape)
