"""The real CuPy on a CUDA device that is not there.

    import cuda_emulator
    cuda_emulator.install()          # before CuPy is imported
    import cupy

    python tests/cuda_emulator SCRIPT | -m MODULE ...    # with CUDA_EMULATOR_LOG=1 every call is printed

Kernels are compiled by g++ under the shim of tests/host_cuda, cuBLAS is the BLAS of NumPy. What differs from a GPU is chosen so
that faults show: work runs as late as events and streams allow (or at random, or at once: `configure(schedule=...)`), fresh
and freed memory is NaN, every address that a kernel or cuBLAS gets is looked up, and what CUDA refuses while a stream is
captured is refused. docs/cuda-emulator.md says what it finds and what it cannot.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import importlib.util
import os
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from . import patch
from .build import Build, Missing, build, check_machine, cupy, headers

HERE = Path(__file__).parent
ILLEGAL_ADDRESS = 700
OUT_OF_MEMORY = 2
SCHEDULES = {"late": 0, "eager": -1}
_installed: Installed | None = None


class Installed:
    """The emulator in this process. Its libraries stay loaded, so that whoever asks for one by name gets ours."""

    def __init__(self, built: Build, cuda: int):
        os.environ |= built.environment
        # Processes that this one starts import sitecustomize.py, which calls install() as well.
        paths = [str(HERE / "child"), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
        names = ("libcuda.so.1", f"libnvrtc.so.{cuda}", f"libcublasLt.so.{cuda}", f"libcublas.so.{cuda}")
        self.library, _, _, cublas = (ctypes.CDLL(str(built.lib / name), ctypes.RTLD_GLOBAL) for name in names)
        cublas.emulator_sgemm(ctypes.c_void_p(sgemm()))
        for name in ("counters", "message"):
            getattr(self.library, f"emulator_{name}").restype = ctypes.c_char_p
        self.library.emulator_set.argtypes = [ctypes.c_char_p, ctypes.c_long]
        self.library.emulator_get.argtypes, self.library.emulator_get.restype = [ctypes.c_char_p], ctypes.c_long
        self.library.emulator_fail.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int]
        self.library.emulator_part.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]


def why_not() -> str | None:
    """Say why the emulator cannot run here; None if it can."""
    try:
        check_machine()
        headers(cupy())
    except Missing as e:
        return str(e)
    return None


def install() -> None:
    """Put the emulator in CUDA's place, for this process and those that it starts. CuPy must not have been imported yet.

    Raises Missing, or RuntimeError where CuPy is already here.
    """
    global _installed
    if _installed is not None:
        return
    if "cupy" in sys.modules:
        raise RuntimeError("the CUDA emulator must be installed before CuPy is imported")
    wheel = cupy()
    _installed = Installed(build(wheel), wheel.cuda)
    patch.redirect(wheel.module("cuda/api/runtime"), _installed.library)
    sys.modules["cupy.cuda.thrust"] = thrust()
    if os.environ.get("CUDA_EMULATOR_LOG"):
        configure(verbose=1)
    if told := os.environ.get("CUDA_EMULATOR_FAIL"):  # for processes that are started: CALL:NTH:STATUS
        call, nth, status = told.split(":")
        library().emulator_fail(call.encode(), int(nth), int(status))
    sys.meta_path.insert(0, AfterImport())


class AfterImport:
    """Calls `track_pool` as soon as CuPy has been imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "cupy" or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("cupy")
        assert spec is not None and spec.loader is not None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            track_pool(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


class Given:
    """What CuPy's pool gave for an array; the emulator learns when it goes back."""

    def __init__(self, memory: Any, size: int, stream: int):
        self.memory, self.size, self.stream = memory, size, stream
        library().emulator_part(memory.ptr, size, True, stream)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at the end of the process
            library().emulator_part(self.memory.ptr, self.size, False, self.stream)


def track_pool(module: ModuleType) -> None:
    """Tell the emulator which parts of its memory CuPy's pool gives to arrays, and when they go back."""
    cuda = module.cuda

    def allocate(size: int) -> Any:
        memory = module.get_default_memory_pool().malloc(size)
        if size == 0:
            return memory
        given = Given(memory, size, cuda.get_current_stream().ptr)
        return cuda.MemoryPointer(cuda.UnownedMemory(memory.ptr, size, given, memory.device_id), 0)

    cuda.set_allocator(allocate)


def thrust() -> ModuleType:
    """Return what stands for CuPy's module of Thrust, which is machine code of GPUs: every function says so."""
    module = ModuleType("cupy.cuda.thrust")
    module.available = True  # type: ignore[attr-defined]
    module.get_build_version = lambda: 0  # type: ignore[attr-defined]

    def refused(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def function(*args: Any) -> None:
            raise NotImplementedError(
                f"thrust.{name} is not emulated: CuPy's sort, argsort, lexsort, unique and median run only on a real GPU"
            )

        return function

    module.__getattr__ = refused  # type: ignore[method-assign]
    return module


@cache
def sgemm() -> int | None:
    """Return the address of cblas_sgemm in the OpenBLAS that NumPy's wheels bring; None: cublas.cpp multiplies by itself."""
    import numpy

    for path in glob.glob(str(Path(numpy.__file__).parent.parent / "numpy.libs" / "libscipy_openblas64_*.so")):
        function = getattr(ctypes.CDLL(path), "scipy_cblas_sgemm64_", None)
        if function is not None:
            return ctypes.cast(function, ctypes.c_void_p).value
    return None


# ---- for tests


def library() -> Any:
    """Return the emulator's library. Raises RuntimeError where it is not installed."""
    if _installed is None:
        raise RuntimeError("the CUDA emulator is not installed in this process")
    return _installed.library


def installed() -> bool:
    """Return whether CUDA is emulated in this process."""
    return _installed is not None


def configure(**settings: int) -> None:
    """Change settings: devices, memory (bytes of each), driver_version (12090; 0: no driver), peer_access, schedule, verbose.

    schedule: SCHEDULES["late"] runs work when something waits for it, SCHEDULES["eager"] at once, a number above 0 at random.
    """
    for name, value in settings.items():
        if not library().emulator_set(name.encode(), value):
            raise ValueError(f"the CUDA emulator has no setting {name}")


@contextlib.contextmanager
def configured(**settings: int) -> Iterator[None]:
    """Change settings for a block."""
    before = {name: library().emulator_get(name.encode()) for name in settings}
    configure(**settings)
    try:
        yield
    finally:
        configure(**before)


def counters() -> Counter[str]:
    """Return how often each function of CUDA was called, and "launches", "launches of NAME", "gemms", "gemms fp16" (fp32,
    tf32), "bytes host to device" and the like, "waits" of the host, "allocations", "captures", "graph launches"."""
    lines = library().emulator_counters().decode().splitlines()
    return Counter({name: int(value) for name, value in (line.split("\t") for line in lines)})


@contextlib.contextmanager
def counting() -> Iterator[Counter[str]]:
    """Count what a block does: the counter is filled when it ends."""
    before, result = counters(), Counter[str]()
    yield result
    result.update(counters() - before)


@contextlib.contextmanager
def failing(call: str, nth: int = 1, status: int = OUT_OF_MEMORY) -> Iterator[None]:
    """Let the nth call of a function of CUDA from now on answer with an error; raises AssertionError if it never came.

    After ILLEGAL_ADDRESS every call fails, until `reset`.
    """
    library().emulator_fail(call.encode(), nth, status)
    before = counters()[call]
    try:
        yield
        assert counters()[call] - before >= nth, f"{call} was called less than {nth} times"
    finally:
        library().emulator_fail(call.encode(), 0, 0)


def reset() -> str | None:
    """Finish or drop all work; forget injected and sticky errors. Returns the sticky error in words, None if there was none."""
    return library().emulator_message().decode() if library().emulator_reset() else None


@contextlib.contextmanager
def guarded_allocations() -> Iterator[None]:
    """Give every array of a block pages of its own, so that one number beyond its end is caught, in place of CuPy's pool."""
    import cupy

    cupy.cuda.set_allocator(None)
    try:
        yield
    finally:
        track_pool(cupy)
