"""Choose the array module: CuPy with CUDA kernels where there is a GPU, NumPy everywhere else.

    from gpudarknet import backend
    be = backend.get("auto")        # "auto" | "cupy" | "numpy" | "onnxruntime"
    be.xp.zeros((2, 3))             # numpy or cupy

A `Backend` is an argument, never a global: guessing it from the arrays could not say "NumPy arrays, but through the
kernels", which is what the tests on machines without a GPU do.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from ..errors import BackendError, BackendWarning, DataError, OutOfMemoryError
from .threads import Task, thread_pool, tune_malloc

CHOICES = ("auto", "cupy", "numpy", "onnxruntime")
VARIABLE = "GPUDARKNET_BACKEND"
INSTALL = 'pip install "gpudarknet[cuda12]" (driver 525 or newer) or "gpudarknet[cuda13]" (driver 580 or newer)'
CUDA_DEVICES = (2, 13)  # DLPack's types of memory: CUDA's, plain and managed; 1 and 3 are the host's, 3 pinned
UNUSABLE = (TypeError, ValueError, BufferError, RuntimeError)  # what arrays say that cannot be taken
# What CuPy's memory pool, CUDA's runtime and its driver say when a device's memory is full.
FULL = re.compile(
    r"Out of memory allocating ([\d,]+) bytes(?:.*limit set to: ([\d,]+) bytes)?"
    r"|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY"
)
NO_CUPY = "CuPy is not installed"
NO_DRIVER = "there is no NVIDIA driver; where there is an NVIDIA GPU, install its driver, or start the container with --gpus all"
NO_DEVICE = "the driver shows no CUDA device; check nvidia-smi and CUDA_VISIBLE_DEVICES"


class Program(Protocol):
    """A network compiled for one input shape and batch."""

    def run(self, x: Any) -> list[Any]:
        """Return the heads' outputs for x (N, C, H, W)."""


class CompileProgram(Protocol):
    """Compile layers (`graph.Node`) for `batch` images of `shape` (C, H, W). heads: the layers whose outputs are returned.

    packed_weights: a cache for weights in the executor's own layouts; programs of one network share it.
    """

    def __call__(
        self, be: Backend, nodes: Sequence[Any], weights: Sequence[dict[str, Any]], heads: Sequence[int],
        shape: tuple[int, int, int], batch: int, precision: str, packed_weights: dict[Any, Any],
    ) -> Program: ...  # fmt: skip


@dataclass(frozen=True)
class Executor:
    """Compiles networks into programs. precisions: those it computes in; it computes in the first when asked for another."""

    compile: CompileProgram
    precisions: tuple[str, ...] = ("fp32",)


_executors: dict[str, Executor] = {}


def register_executor(name: str, executor: Executor) -> None:
    """Register the executor that backends refer to by name. The modules that implement one call this when imported."""
    _executors[name] = executor


@dataclass(frozen=True)
class Backend:
    """An array module, and how to launch a kernel on its arrays.

    `launch(kernel, threads, *args, block=256)` runs `kernels/FILE.cu`'s kernel "FILE.NAME" on at least `threads` CUDA
    threads; it is None where there are no kernels, and ops then run their array-language definitions.
    `cublas(stream, workspace)` opens a `cublas.Handle`. `executor` names the registered executor that compiles networks for
    this backend; without one, networks run layer by layer.
    """

    name: str
    xp: ModuleType
    launch: Callable[..., None] | None = None
    cublas: Callable[[int, tuple[int, int]], Any] | None = None
    executor: str | None = None

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
        """Allocate an array without writing to it."""
        with self.guard():
            return self.xp.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
        """Allocate an array of zeros."""
        with self.guard():
            return self.xp.zeros(shape, dtype)

    def supported_precision(self, precision: str) -> str:
        """Return `precision` if the executor computes in it, else the executor's default."""
        known = self._executor().precisions
        return precision if precision in known else known[0]

    def compile_program(
        self, nodes: Sequence[Any], weights: Sequence[dict[str, Any]], heads: Sequence[int],
        shape: tuple[int, int, int], batch: int, precision: str, packed_weights: dict[Any, Any],
    ) -> Program:  # fmt: skip
        """Compile a network with this backend's executor; see `CompileProgram`. Raises BackendError."""
        return self._executor().compile(self, nodes, weights, heads, shape, batch, precision, packed_weights)

    def _executor(self) -> Executor:
        if self.executor not in _executors:
            raise BackendError(f"backend '{self.name}': executor '{self.executor}' is not registered")
        return _executors[self.executor]

    def guard(self) -> Guard:
        """Return a context whose work raises OutOfMemoryError where CuPy says that the device's memory is full."""
        return Guard(self)

    def strided(self, a: Any, begin: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
        """View a contiguous array from number `begin` on with any shape, and strides in numbers; places may overlap."""
        apart = tuple(s * a.itemsize for s in strides)
        if self.xp is np:  # a fifth of the time
            return np.ndarray(shape, a.dtype, a, begin * a.itemsize, apart)
        return self.xp.lib.stride_tricks.as_strided(a.reshape(-1)[begin:], shape, apart)

    def asarray(self, a: Any, dtype: Any = None) -> Any:
        """Bring anything array-like here, as a C-contiguous array: lists, NumPy, CuPy, and what has DLPack.

        An array that is already here, contiguous and of that type is returned as it is; others on the GPU are not copied if they
        are. What lies on another device is brought to the current one. Raises DataError for what is not an array, needs its
        gradient, or has numbers unknown here.
        """
        xp, given = self.xp, type(a).__name__
        if xp is np or not (isinstance(a, xp.ndarray) or on_gpu(a)):
            a = host_array(a)
        elif not isinstance(a, xp.ndarray):
            try:
                a = xp.asarray(a) if hasattr(a, "__cuda_array_interface__") else xp.from_dlpack(a)
            except UNUSABLE as e:
                raise DataError(_refusal(a, e)) from None
        try:
            with self.guard():
                if not isinstance(a, np.ndarray) and a.device.id != self.current_device():
                    a = a.copy()  # to the current device
                return xp.ascontiguousarray(xp.asarray(a, dtype=dtype))
        except (TypeError, ValueError) as e:
            raise DataError(f"cannot use a {given} as an array: {_line(e)}") from None

    def current_device(self) -> int | None:
        """Return the number of this thread's current GPU; None where arrays are the host's."""
        cuda = getattr(self.xp, "cuda", None)
        return None if cuda is None else int(cuda.Device().id)

    def use_device(self, device: int | None) -> AbstractContextManager[Any]:
        """Make a GPU the current one for a block; do nothing for None, the host."""
        return nullcontext() if device is None else self.xp.cuda.Device(device)

    def synchronize(self) -> None:
        """Wait until the current stream has done what it was given; NumPy has at once."""
        cuda = getattr(self.xp, "cuda", None)
        if cuda is not None:
            cuda.get_current_stream().synchronize()

    def tune_malloc(self) -> None:
        """Prepare for work that is the same again and again: training."""
        if self.xp is np and self.launch is None:
            tune_malloc()

    def run_parallel(self, tasks: Sequence[Task]) -> None:
        """Do tasks that write to places of their own: on NumPy side by side, a thread per core, BLAS on one thread in each.

        Tasks must not depend on the number of cores, since results would too.
        """
        if self.xp is np and self.launch is None:
            with np.errstate(all="ignore"):
                thread_pool().run_all(tasks)
        else:
            for task in tasks:
                task()

    def to_numpy(self, a: Any) -> np.ndarray:
        """Bring an array of this backend to the host, as NumPy."""
        if isinstance(a, np.ndarray):
            return a
        with self.guard():  # what is not contiguous is copied on the device first
            return a.get()


class Guard:
    """Says what CuPy says of full memory in one line: how much was asked for, how much is free, and what to do."""

    __slots__ = ("be",)

    def __init__(self, be: Backend):
        self.be = be

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, OutOfMemoryError):  # it has been said
            return
        if isinstance(error, (MemoryError, RuntimeError)) and (full := FULL.search(str(error))):
            facts = [f"{full[1]} bytes asked for"] if full[1] else []
            with suppress(Exception):  # after some errors the device says nothing more
                facts.append("{:,} free of {:,} on the device".format(*self.be.xp.cuda.runtime.memGetInfo()))
            facts += [f"CuPy is limited to {full[2]}"] if full[2] else []
            said = ": ".join(filter(None, ["CUDA is out of memory", ", ".join(facts)]))
            raise OutOfMemoryError(
                f"{said}; make batch, width or height smaller, or end other programs there"
            ) from error


def on_gpu(a: Any) -> bool:
    """Say whether an array of another library lies in CUDA's memory. Raises DataError for one that cannot be read."""
    try:
        if hasattr(a, "__cuda_array_interface__"):
            return True
        return hasattr(a, "__dlpack_device__") and a.__dlpack_device__()[0] in CUDA_DEVICES
    except UNUSABLE as e:
        raise DataError(_refusal(a, e)) from None


def host_array(a: Any) -> np.ndarray:
    """View, or copy from a device, any array-like object as NumPy: `__dlpack__` and `__cuda_array_interface__` too.

    Raises DataError for what is not an array, and for one that needs its gradient or has numbers which NumPy has not.
    """
    if isinstance(a, np.ndarray):
        return a
    device = on_gpu(a)
    try:
        if device:
            try:
                import cupy
            except ImportError:
                raise TypeError("it lies in GPU memory, and CuPy is not installed; copy it to the host first") from None
            return (cupy.asarray if hasattr(a, "__cuda_array_interface__") else cupy.from_dlpack)(a).get()
        if hasattr(a, "__dlpack__") and not hasattr(a, "__array__"):
            return np.from_dlpack(a)
        return np.asarray(a)
    except UNUSABLE as e:
        raise DataError(_refusal(a, e)) from None


def _refusal(a: Any, error: Exception) -> str:
    """Say why an array cannot be taken; of another library's, what mostly helps."""
    said = f"cannot use a {type(a).__name__} as an array: {_line(error)}"
    return said + ("; detach it, and convert bfloat16 to float32" if hasattr(a, "__dlpack_device__") else "")


def get(name: str | Backend = "auto") -> Backend:
    """Return a backend. An argument beats the variable GPUDARKNET_BACKEND, which beats detection.

    "auto" quietly gives NumPy on a machine without a GPU, or without CuPy; it warns where both are there and do not work,
    once. "onnxruntime" is NumPy whose networks predict with ONNX Runtime.
    Raises BackendError, which says why and what to install, when "cupy" or "onnxruntime" is asked for and cannot run.
    """
    if isinstance(name, Backend):
        return name
    asked, place = name, "backend"
    if name == "auto" and os.environ.get(VARIABLE):
        asked, place = os.environ[VARIABLE], VARIABLE
    if asked not in CHOICES:
        raise BackendError(f"{place}: unknown backend '{asked}'; choose one of {', '.join(CHOICES)}")
    if asked == "numpy":
        return Backend("numpy", np, executor="cpu")
    if asked == "onnxruntime":
        for package in ("onnx", "onnxruntime"):
            if importlib.util.find_spec(package) is None:
                raise BackendError(
                    f"{place}: 'onnxruntime' cannot run here: {package} is not installed; pip install \"gpudarknet[cpu]\""
                )
        return Backend("onnxruntime", np, executor="onnxruntime")
    why = why_no_cupy()
    if why is None:
        return _cupy()
    if asked == "cupy":
        raise BackendError(f"{place}: 'cupy' cannot run here: {why}")
    _warn_unused(why)
    return Backend("numpy", np, executor="cpu")


@cache
def _cupy() -> Backend:
    import cupy

    from . import cublas, cuda

    return Backend("cupy", cupy, cuda.launcher(), cublas.Handle, executor="cuda")


@cache
def why_no_cupy() -> str | None:
    """Say why the CuPy backend cannot run here and what would help; None when it can."""
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as e:
        detail = NO_CUPY if e.name == "cupy" else f"CuPy does not import ({_line(e)})"
        return f"{detail}; {INSTALL}"
    runtime = cupy.cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except Exception as e:
        if "Insufficient" in str(e):  # which the runtime also says where there is no driver at all
            known = runtime.driverGetVersion()
            have = f"it has CUDA {_cuda(known)}, CuPy {_cuda(runtime.runtimeGetVersion())}"
            old = f"the NVIDIA driver is too old for this CuPy: {have}; update the driver or install a CuPy for it"
            return old if known else NO_DRIVER
        if "NoDevice" in str(e):
            return NO_DEVICE
        if "DriverMismatch" in str(e):
            return f"the NVIDIA driver was replaced while it was in use ({_line(e)}); restart the machine"
        return f"there is no working NVIDIA driver ({_line(e)}); install it, nvidia-smi must list a GPU"
    if count == 0:
        return NO_DEVICE
    try:
        cupy.RawKernel('extern "C" __global__ void probe() {}', "probe").compile()
        cupy.zeros((2, 2), np.float32) @ cupy.zeros((2, 2), np.float32)
    except Exception as e:
        if "header" in str(e).lower():
            return f"CuPy finds no CUDA headers, so it cannot compile kernels; {INSTALL} brings them"
        if any(word in str(e).lower() for word in ("out of memory", "unavailable")):
            return f"the GPU is taken by other programs ({_line(e)}); end some, nvidia-smi lists them"
        return f"a first kernel and gemm fail on the device ({_line(e)}); {INSTALL}"
    return None


def _cuda(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def gpus() -> list[str]:
    """Return the names of the NVIDIA GPUs that the driver shows; it is asked itself, so CuPy need not be there."""
    count, device, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
            return []
    except (OSError, AttributeError):  # no driver, or something else of that name
        return []
    found = []
    for k in range(count.value):
        failed = driver.cuDeviceGet(ctypes.byref(device), k) or driver.cuDeviceGetName(name, len(name), device)
        found.append("NVIDIA GPU" if failed else name.value.decode(errors="replace"))
    return found


@cache
def _warn_unused(why: str) -> None:
    """Warn, once, where a GPU lies idle although CuPy was installed for it."""
    if not why.startswith(NO_CUPY) and (names := gpus()):
        warnings.warn(
            f"backend: 'auto' takes NumPy, often 100 times slower, and leaves the {names[0]} idle: {why};"
            " backend='numpy' says that this is meant",
            BackendWarning, stacklevel=3,
        )  # fmt: skip


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def diagnose() -> list[tuple[str, str]]:
    """Describe this machine for `gpudarknet info`: (what, value) rows about Python, backend, GPU, BLAS and threads."""
    rows = [("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    for package in ("numpy", "opencv-python", "opencv-python-headless", "cupy-cuda12x", "cupy-cuda13x", "onnxruntime"):
        try:
            rows.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            continue
    rows.append((VARIABLE, os.environ.get(VARIABLE) or "not set"))
    try:
        rows.append(("backend", get("auto").name))
    except BackendError as e:
        rows.append(("backend", str(e)))
    why = why_no_cupy()
    if why is None:
        cupy = importlib.import_module("cupy")
        device = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
        rows.append(("GPU", f"{device['name'].decode()}, {device['totalGlobalMem'] / 2**30:.0f} GiB, "
                            f"sm_{device['major']}{device['minor']}"))  # fmt: skip
    else:
        rows.append(("GPU", ", ".join([*gpus(), f"not used: {why}"])))
    return rows + blas()


def blas() -> list[tuple[str, str]]:
    """Describe the BLAS under NumPy and the threads it may use, as (what, value) rows."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    info = np.show_config(mode="dicts")
    found = info.get("Build Dependencies", {}).get("blas", {}) if isinstance(info, dict) else {}
    limits = [f"{k}={os.environ[k]}" for k in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
              if k in os.environ]  # fmt: skip
    return [
        ("BLAS", f"{found.get('name', 'unknown')} {found.get('version', '')}".strip()),
        ("threads", f"{cores} cores usable" + (f", limited by {', '.join(limits)}" if limits else "")),
    ]
