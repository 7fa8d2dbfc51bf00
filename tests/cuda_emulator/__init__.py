"""The real CuPy on an emulated CUDA device.

    import cuda_emulator
    cuda_emulator.install()          # before CuPy is imported
    import cupy

    python tests/cuda_emulator SCRIPT | -m MODULE ...    # CUDA_EMULATOR_LOG=1 prints every call

Kernels are compiled by g++ with the shim of tests/host_cuda; cuBLAS is NumPy's BLAS. Unlike a GPU, the emulator makes bugs show:
work runs as late as events and streams allow (or at random, or at once: `configure(schedule=...)`), new and freed memory is NaN,
every address passed to a kernel or cuBLAS is checked, and what CUDA refuses during capture is refused. docs/cuda-emulator.md
describes what it finds and what it cannot.
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
    """The emulator in this process. Its libraries stay loaded, so that loading one by name returns ours."""

    def __init__(self, built: Build, cuda: int):
        os.environ |= built.environment
        # Child processes import sitecustomize.py, which also calls install().
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
        self.library.emulator_suballocation.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]


def why_not() -> str | None:
    """Return why the emulator cannot run here; None if it can."""
    try:
        check_machine()
        headers(cupy())
    except Missing as e:
        return str(e)
    return None


def install() -> None:
    """Replace CUDA by the emulator, in this process and its children, before CuPy is imported.

    Raises Missing, or RuntimeError if CuPy is already imported.
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
    if injected := os.environ.get("CUDA_EMULATOR_FAIL"):  # for child processes: CALL:NTH:STATUS
        call, nth, status = injected.split(":")
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


class Allocation:
    """An array's memory from CuPy's pool; tells the emulator when it is allocated and freed."""

    def __init__(self, memory: Any, size: int, stream: int):
        self.memory, self.size, self.stream = memory, size, stream
        library().emulator_suballocation(memory.ptr, size, True, stream)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at interpreter exit
            library().emulator_suballocation(self.memory.ptr, self.size, False, self.stream)


def track_pool(module: ModuleType) -> None:
    """Tell the emulator what CuPy's pool allocates and frees."""
    cuda = module.cuda

    def allocate(size: int) -> Any:
        memory = module.get_default_memory_pool().malloc(size)
        if size == 0:
            return memory
        allocation = Allocation(memory, size, cuda.get_current_stream().ptr)
        return cuda.MemoryPointer(cuda.UnownedMemory(memory.ptr, size, allocation, memory.device_id), 0)

    cuda.set_allocator(allocate)


def thrust() -> ModuleType:
    """Return a stub for CuPy's Thrust module, which is GPU machine code: its functions raise."""
    module = ModuleType("cupy.cuda.thrust")
    module.available = True  # type: ignore[attr-defined]
    module.get_build_version = lambda: 0  # type: ignore[attr-defined]

    def stub(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def function(*args: Any) -> None:
            raise NotImplementedError(
                f"thrust.{name} is not emulated: CuPy's sort, argsort, lexsort, unique and median run only on a real GPU"
            )

        return function

    module.__getattr__ = stub  # type: ignore[method-assign]
    return module


@cache
def sgemm() -> int | None:
    """Return the address of cblas_sgemm in the OpenBLAS of NumPy's wheels; None: cublas.cpp multiplies itself."""
    import numpy

    for path in glob.glob(str(Path(numpy.__file__).parent.parent / "numpy.libs" / "libscipy_openblas64_*.so")):
        function = getattr(ctypes.CDLL(path), "scipy_cblas_sgemm64_", None)
        if function is not None:
            return ctypes.cast(function, ctypes.c_void_p).value
    return None


# ---- for tests


def library() -> Any:
    """Return the emulator's library. Raises RuntimeError if it is not installed."""
    if _installed is None:
        raise RuntimeError("the CUDA emulator is not installed in this process")
    return _installed.library


def installed() -> bool:
    """Return whether CUDA is emulated in this process."""
    return _installed is not None


def configure(**settings: int) -> None:
    """Change settings: devices, memory (bytes of each), driver_version (12090; 0: no driver), peer_access, and those below.

    verbose: print every call. shared: the most bytes of dynamic shared memory that a block can have (227 KiB). compute: whether
    kernels and gemms run; without them, the host's own time can be measured.
    schedule: SCHEDULES["late"] runs work when something waits for it, SCHEDULES["eager"] at once, a seed above 0 at random.
    """
    for name, value in settings.items():
        if not library().emulator_set(name.encode(), value):
            raise ValueError(f"the CUDA emulator has no setting {name}")


@contextlib.contextmanager
def configured(**settings: int) -> Iterator[None]:
    """Change settings within a block."""
    before = {name: library().emulator_get(name.encode()) for name in settings}
    configure(**settings)
    try:
        yield
    finally:
        configure(**before)


def counters() -> Counter[str]:
    """Return the number of calls of each CUDA function, and of what they do.

    These are "launches", "launches of NAME", "gemms", "gemms fp16" (fp32, tf32), "bytes host to device" and the like, "waits"
    of the host, "allocations", "captures", "graph launches", and what warps do, as `host_cuda.counting` says.
    """
    lines = library().emulator_counters().decode().splitlines()
    return Counter({name: int(value) for name, value in (line.split("\t") for line in lines)})


@contextlib.contextmanager
def counting() -> Iterator[Counter[str]]:
    """Count what a block does; the counter is filled when the block ends."""
    before, result = counters(), Counter[str]()
    yield result
    result.update(counters() - before)


@contextlib.contextmanager
def failing(call: str, nth: int = 1, status: int = OUT_OF_MEMORY) -> Iterator[None]:
    """Make the nth call of a CUDA function from now on return an error. Raises AssertionError if it was not reached.

    After ILLEGAL_ADDRESS every call fails until `reset`.
    """
    library().emulator_fail(call.encode(), nth, status)
    before = counters()[call]
    try:
        yield
        assert counters()[call] - before >= nth, f"{call} was called less than {nth} times"
    finally:
        library().emulator_fail(call.encode(), 0, 0)


def reset() -> str | None:
    """Finish or drop all work; clear injected and sticky errors. Returns the sticky error's message, None without one."""
    return library().emulator_message().decode() if library().emulator_reset() else None


@contextlib.contextmanager
def guarded_allocations() -> Iterator[None]:
    """Allocate every array of a block on its own pages instead of from CuPy's pool, to catch accesses just past its end."""
    import cupy

    cupy.cuda.set_allocator(None)
    try:
        yield
    finally:
        track_pool(cupy)
