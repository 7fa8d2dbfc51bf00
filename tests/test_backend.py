"""Which array module is chosen, and what is said where it cannot be."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

from gpudarknet import backend
from gpudarknet.errors import BackendError, DataError


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(backend.VARIABLE, raising=False)
    backend.why_no_cupy.cache_clear()
    yield
    backend.why_no_cupy.cache_clear()


def fake_cupy(monkeypatch: pytest.MonkeyPatch, count: object = 1, kernel: object = None) -> None:
    """Put a module in the place of cupy whose device count or first kernel behaves as told."""

    def answer() -> int:
        if isinstance(count, Exception):
            raise count
        return count  # type: ignore[return-value]

    class RawKernel:
        def __init__(self, *args: object):
            pass

        def compile(self) -> None:
            if isinstance(kernel, Exception):
                raise kernel

    cupy = types.ModuleType("cupy")
    cupy.cuda = types.SimpleNamespace(runtime=types.SimpleNamespace(getDeviceCount=answer))  # type: ignore[attr-defined]
    cupy.RawKernel = RawKernel  # type: ignore[attr-defined]
    cupy.zeros = np.zeros  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", cupy)


def no_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)  # importing it raises


def test_auto_without_cuda_is_numpy_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_cupy(monkeypatch)
    be = backend.get("auto")
    assert (be.name, be.xp, be.launch) == ("numpy", np, None)
    assert capsys.readouterr() == ("", "")


def test_an_argument_beats_the_variable_which_beats_detection(monkeypatch: pytest.MonkeyPatch) -> None:
    no_cupy(monkeypatch)
    monkeypatch.setenv(backend.VARIABLE, "cupy")
    assert backend.get("numpy").name == "numpy"
    with pytest.raises(BackendError, match=r"^GPUDARKNET_BACKEND: 'cupy' cannot run here: "):
        backend.get("auto")
    monkeypatch.setenv(backend.VARIABLE, "numpy")
    assert backend.get().name == "numpy"
    monkeypatch.setenv(backend.VARIABLE, "torch")
    with pytest.raises(BackendError) as e:
        backend.get()
    assert str(e.value) == "GPUDARKNET_BACKEND: unknown backend 'torch'; choose one of auto, cupy, numpy, onnxruntime"


def test_a_backend_is_passed_through() -> None:
    be = backend.Backend("mine", np)
    assert backend.get(be) is be


class CUDARuntimeError(RuntimeError):
    """As CuPy names its own."""


WHY = {
    "no driver": (dict(count=CUDARuntimeError("cudaErrorUnknown: no driver")), "there is no working NVIDIA driver"),
    "old driver": (
        dict(count=CUDARuntimeError("cudaErrorInsufficientDriver: too old")),
        "the NVIDIA driver is too old",
    ),
    "no device": (
        dict(count=CUDARuntimeError("cudaErrorNoDevice: none")),
        "the driver shows no CUDA device; check nvidia-smi",
    ),
    "zero devices": (dict(count=0), "the driver shows no CUDA device; check nvidia-smi and CUDA_VISIBLE_DEVICES"),
    "no headers": (dict(kernel=RuntimeError("Failed to find CUDA headers")), "CuPy finds no CUDA headers"),
    "no compiler": (
        dict(kernel=RuntimeError("nvrtc is gone")),
        "a first kernel and gemm fail on the device (nvrtc is gone)",
    ),
}


@pytest.mark.parametrize("name", WHY)
def test_cupy_that_cannot_run_says_why(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault, message = WHY[name]
    fake_cupy(monkeypatch, **fault)
    with pytest.raises(BackendError) as e:
        backend.get("cupy")
    assert str(e.value).startswith(f"backend: 'cupy' cannot run here: {message}")
    assert "\n" not in str(e.value)
    assert backend.get("auto").name == "numpy"


def test_cupy_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    no_cupy(monkeypatch)
    with pytest.raises(BackendError) as e:
        backend.get("cupy")
    assert 'pip install "gpudarknet[cuda12]"' in str(e.value)


def test_cupy_that_runs_is_taken_by_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cupy(monkeypatch)
    assert backend.why_no_cupy() is None


def test_asarray_takes_lists_and_keeps_what_fits() -> None:
    be = backend.get("numpy")
    a = np.zeros((2, 3), np.float32)
    assert be.asarray(a, np.float32) is a
    assert be.asarray([[1, 2]], np.float32).dtype == np.float32
    assert be.asarray(a.T).flags.c_contiguous


def test_what_is_no_array_is_refused() -> None:
    with pytest.raises(DataError, match=r"^cannot use a list as an array: "):
        backend.get("numpy").asarray(["a", "b"], np.float32)


def test_diagnosis_names_backend_blas_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    no_cupy(monkeypatch)
    rows = dict(backend.diagnose())
    assert rows["backend"] == "numpy"
    assert rows["GPU"].startswith("not used: CuPy ")
    assert {"Python", "numpy", "BLAS", "threads"} <= rows.keys()
