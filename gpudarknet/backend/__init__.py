"""Backends: CuPy with CUDA kernels on a GPU, NumPy everywhere else.

    from gpudarknet import backend
    be = backend.get("auto")        # "auto" | "cupy" | "numpy" | "onnxruntime" | "openvino" | "fastest"
    be.xp.zeros((2, 3))             # numpy or cupy

A `Backend` is always passed as an argument. It is neither global nor inferred from arrays, because the tests run the CUDA
kernels on NumPy arrays on machines without a GPU.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

from ..array import Array, Arrays, LaunchKernel
from ..errors import BackendError, BackendWarning, DataError, OutOfMemoryError
from . import blas, machine
from .cublas import Handle
from .interop import CONVERSION_ERRORS, conversion_error, first_line, host_array, on_gpu
from .threads import Task, thread_count, thread_pool, tune_malloc, worker_count

CHOICES = ("auto", "cupy", "numpy", "onnxruntime", "openvino", "fastest")
# Engines of other libraries: the packages they need, and the extra that installs those.
RUNTIMES = {"openvino": (("onnx", "openvino"), "openvino"), "onnxruntime": (("onnx", "onnxruntime"), "cpu")}
PACKAGES = (
    "numpy",
    "opencv-python",
    "opencv-python-headless",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "onnx",
    "onnxruntime",
    "openvino",
)
VARIABLE = "GPUDARKNET_BACKEND"
INSTALL = 'pip install "gpudarknet[cuda12]" (driver 525 or newer) or "gpudarknet[cuda13]" (driver 580 or newer)'
# Messages of CuPy's memory pool, the CUDA runtime and the driver when the device's memory is full.
OUT_OF_MEMORY = re.compile(
    r"Out of memory allocating ([\d,]+) bytes(?:.*limit set to: ([\d,]+) bytes)?"
    r"|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY"
)
NO_CUPY = "CuPy is not installed"
NO_DRIVER = (
    "there is no NVIDIA driver; on a machine with an NVIDIA GPU, install it or start the container with --gpus all"
)
NO_DEVICE = "the driver shows no CUDA device; check nvidia-smi and CUDA_VISIBLE_DEVICES"


class Program(Protocol):
    """A network compiled for one input shape and batch.

    engine: what computes it, as text: backend, version, precision.
    """

    engine: str

    def run(self, x: Any) -> list[Array]:
        """Return the heads' outputs for x (N, C, H, W)."""


class PendingRows(Protocol):
    """Boxes that a program may still be computing."""

    def read(self) -> np.ndarray:
        """Wait for the boxes; return rows as `Network.decode` does."""


class CompileProgram(Protocol):
    """Compile layers (`graph.Node`) for `batch` images of `shape` (C, H, W). heads: the layers whose outputs are returned.

    packed_weights: a cache for weights in the executor's own layouts; programs of one network share it.
    """

    def __call__(
        self, be: Backend, nodes: Sequence[Any], weights: Sequence[Arrays], heads: Sequence[int],
        shape: tuple[int, int, int], batch: int, precision: str, packed_weights: dict[Any, Any],
    ) -> Program: ...  # fmt: skip


class Uploader(Protocol):
    """Copies images to a device."""

    def upload(self, images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> Any:
        """Return program input for uint8 images (H, W, C), each to be resized to (width, height)."""


@dataclass(frozen=True)
class Executor:
    """Compiles networks into programs.

    precisions: those it supports; the first replaces all others, except bf16, which is never replaced. why_no_bf16: returns why
    it cannot compute in bf16 on this machine, if that is among them. uploader: returns a backend's `Uploader`, for programs that
    run asynchronously and resize images themselves. own_threads: a program has threads of its own, in a fixed number.
    """

    compile: CompileProgram
    precisions: tuple[str, ...] = ("fp32",)
    uploader: Callable[[Backend], Uploader] | None = None
    why_no_bf16: Callable[[], str | None] = lambda: None
    own_threads: bool = False


_executors: dict[str, Executor] = {}


def register_executor(name: str, executor: Executor) -> None:
    """Register the executor that backends refer to by `name`. Modules that implement one call this when imported."""
    _executors[name] = executor


@dataclass(frozen=True)
class Backend:
    """An array module, and the functions that launch kernels on its arrays.

    `launch(kernel, threads, *args, block=256, shared=0)` runs kernel "FILE.NAME" of `kernels/FILE.cu` on at least `threads`
    CUDA threads, in blocks of `block` with `shared` bytes of dynamic shared memory; if it is None, ops run their
    reference implementations in `xp`.
    `cublas(stream, workspace)` opens a `cublas.Handle`. `executor` names the registered executor that compiles networks for
    this backend; without one, networks run layer by layer.
    """

    name: str
    xp: ModuleType
    launch: LaunchKernel | None = None
    cublas: Callable[[int, tuple[int, int]], Handle] | None = None
    executor: str | None = None

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Array:
        """Allocate an uninitialized array."""
        with self.guard():
            return self.xp.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Array:
        """Allocate an array of zeros."""
        with self.guard():
            return self.xp.zeros(shape, dtype)

    def guard(self) -> MemoryGuard:
        """Return a context that turns CuPy's and CUDA's out-of-memory errors into OutOfMemoryError."""
        return MemoryGuard(self)

    def strided(self, a: Array, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
        """View a contiguous array with any shape and strides; offset and strides are in elements, which may overlap."""
        byte_strides = tuple(s * a.itemsize for s in strides)
        if self.xp is np:  # five times faster than as_strided
            return np.ndarray(shape, a.dtype, a, offset * a.itemsize, byte_strides)
        return self.xp.lib.stride_tricks.as_strided(a.reshape(-1)[offset:], shape, byte_strides)

    def asarray(self, a: Any, dtype: DTypeLike | None = None) -> Array:
        """Convert any array-like object to a C-contiguous array of this backend: lists, NumPy, CuPy, DLPack.

        A contiguous array on this device and of this type is not copied, whichever library it is from; arrays on other devices
        are copied to the current one. Raises DataError for objects that are not arrays, need their gradient, or have a type
        unknown here.
        """
        xp, kind = self.xp, type(a).__name__
        if xp is not np and isinstance(a, xp.ndarray) and a.dtype == dtype and a.flags.c_contiguous and self._here(a):
            return a
        if xp is np or not (isinstance(a, xp.ndarray) or on_gpu(a)):
            a = host_array(a)
        elif not isinstance(a, xp.ndarray):
            try:
                a = xp.asarray(a) if hasattr(a, "__cuda_array_interface__") else xp.from_dlpack(a)
            except CONVERSION_ERRORS as e:
                raise DataError(conversion_error(a, e)) from None
        try:
            with self.guard():
                if not isinstance(a, np.ndarray) and not self._here(a):
                    a = a.copy()  # to the current device
                return xp.ascontiguousarray(xp.asarray(a, dtype=dtype))
        except (TypeError, ValueError) as e:
            raise DataError(f"cannot use a {kind} as an array: {first_line(e)}") from None

    def _here(self, a: Any) -> bool:
        return bool(a.device.id == self.current_device())

    def current_device(self) -> int | None:
        """Return the index of this thread's current GPU; None if arrays are in host memory."""
        cuda = getattr(self.xp, "cuda", None)
        return None if cuda is None else int(cuda.Device().id)

    def available_device(self, device: int | None) -> int | None:
        """Return a GPU's index if this machine has it, else that of the current one; None if arrays are in host memory."""
        current = self.current_device()
        known = current is not None and device is not None and device < self.xp.cuda.runtime.getDeviceCount()
        return device if known else current

    def use_device(self, device: int | None) -> AbstractContextManager[object]:
        """Return a context in which a GPU is current; None is the host and changes nothing."""
        return nullcontext() if device in (None, self.current_device()) else self.xp.cuda.Device(device)

    def synchronize(self) -> None:
        """Wait for the current stream; NumPy is always synchronous."""
        cuda = getattr(self.xp, "cuda", None)
        if cuda is not None:
            cuda.get_current_stream().synchronize()

    def tune_malloc(self) -> None:
        """Make malloc keep freed memory, for repetitive work such as training."""
        if self.xp is np and self.launch is None:
            tune_malloc()

    def run_parallel(self, tasks: Sequence[Task]) -> None:
        """Run independent tasks: on NumPy in parallel, one thread per core, each with single-threaded BLAS.

        Tasks must not depend on the number of cores; otherwise results would.
        """
        if self.xp is np and self.launch is None:
            with np.errstate(all="ignore"):
                thread_pool().run_all(tasks)
        else:
            for task in tasks:
                task()

    def supported_precision(self, precision: str) -> str:
        """Return `precision` if the executor computes in it, else the executor's default. Raises BackendError for bf16."""
        executor = self._executor()
        if precision == "bf16":
            known = precision in executor.precisions
            why = executor.why_no_bf16() if known else f"the backend {self.name} does not compute in it; use openvino"
            if why:
                raise BackendError(f"precision bf16: {why}")
        return precision if precision in executor.precisions else executor.precisions[0]

    def program_threads(self) -> tuple[int, int] | None:
        """Return the process and the number of threads that a program compiled now belongs to; None if it adapts to both."""
        return (os.getpid(), thread_count()[0]) if self._executor().own_threads else None

    def compile_program(
        self, nodes: Sequence[Any], weights: Sequence[Arrays], heads: Sequence[int],
        shape: tuple[int, int, int], batch: int, precision: str, packed_weights: dict[Any, Any],
    ) -> Program:  # fmt: skip
        """Compile a network with this backend's executor; see `CompileProgram`. Raises BackendError."""
        return self._executor().compile(self, nodes, weights, heads, shape, batch, precision, packed_weights)

    @property
    def uploads_images(self) -> bool:
        """Whether its programs run asynchronously and resize images themselves; others run synchronously and take arrays."""
        return self.executor is not None and self._executor().uploader is not None

    def reader_threads(self) -> int:
        """Return how many threads may decode and write images while a network computes; on a CPU, it needs the others."""
        return thread_count()[0] if self.uploads_images else 1

    def upload(self, images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> Any:
        """Start the upload to the current device; see `Uploader.upload`. Only if `uploads_images`."""
        uploader = self._executor().uploader
        assert uploader is not None
        return uploader(self).upload(images, sizes)

    def __reduce__(self) -> tuple[Callable[[str], Backend], tuple[str]]:
        """Pickle it by name; see `restore`. Raises BackendError for one that `get` does not return."""
        name = self.executor if self.executor == "fastest" else self.name
        if name not in CHOICES:
            raise BackendError(f"backend '{self.name}': cannot be pickled; only those that backend.get returns can be")
        return restore, (name,)

    def __deepcopy__(self, memo: object) -> Backend:
        return self

    def _executor(self) -> Executor:
        if self.executor not in _executors:
            raise BackendError(f"backend '{self.name}': executor '{self.executor}' is not registered")
        return _executors[self.executor]

    def to_numpy(self, a: Array) -> np.ndarray:
        """Return an array of this backend as a NumPy array."""
        if isinstance(a, np.ndarray):
            return a
        with self.guard():  # a non-contiguous array is first copied on the device
            return a.get()


class MemoryGuard:
    """Raises OutOfMemoryError in place of CuPy's errors: one line with the bytes requested and free, and what to do."""

    __slots__ = ("be",)

    def __init__(self, be: Backend):
        self.be = be

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, OutOfMemoryError):  # already translated
            return
        if isinstance(error, (MemoryError, RuntimeError)) and (match := OUT_OF_MEMORY.search(str(error))):
            facts = [f"{match[1]} bytes requested"] if match[1] else []
            with suppress(Exception):  # after some errors the device does not answer
                facts.append("{:,} free of {:,} on the device".format(*self.be.xp.cuda.runtime.memGetInfo()))
            facts += [f"CuPy's limit is {match[2]}"] if match[2] else []
            message = ": ".join(filter(None, ["CUDA is out of memory", ", ".join(facts)]))
            raise OutOfMemoryError(
                f"{message}; reduce batch, width or height, or end other programs on the device"
            ) from error


def get(name: str | Backend = "auto") -> Backend:
    """Return a backend. An argument takes precedence over the environment variable GPUDARKNET_BACKEND, and that over detection.

    "auto" returns NumPy on a machine without a GPU or without CuPy; if both are present and do not work, it warns once.
    "onnxruntime" and "openvino" are NumPy, with networks that predict with ONNX Runtime or OpenVINO. "fastest" is CuPy on a
    machine with a GPU; else a network predicts with the engine that `gpudarknet plan -tune` measured as its fastest or, without a
    measurement, with OpenVINO if that is installed and can run it, else NumPy. The name is the choice without measurements.
    Raises BackendError, with the reason and what to install, if the one that is requested cannot run.
    """
    if isinstance(name, Backend):
        return name
    requested, source = name, "backend"
    if name == "auto" and os.environ.get(VARIABLE):
        requested, source = os.environ[VARIABLE], VARIABLE
    if requested not in CHOICES:
        raise BackendError(f"{source}: unknown backend '{requested}'; choose one of {', '.join(CHOICES)}")
    if requested == "numpy":
        return Backend("numpy", np, executor="cpu")
    if requested in RUNTIMES:
        if missing := missing_package(requested):
            raise BackendError(
                f"{source}: '{requested}' cannot run here: {missing} is not installed; {install_command(requested)}"
            )
        return Backend(requested, np, executor=requested)
    why = why_no_cupy()
    if why is None:
        return _cupy()
    if requested == "cupy":
        raise BackendError(f"{source}: 'cupy' cannot run here: {why}")
    _warn_idle_gpu(why, requested)
    if requested == "fastest":
        return Backend("numpy" if missing_package("openvino") else "openvino", np, executor="fastest")
    return Backend("numpy", np, executor="cpu")


def missing_package(runtime: str) -> str | None:
    """Return the first package that an engine needs and that is not installed; None if it can run."""
    packages = RUNTIMES[runtime][0] if runtime in RUNTIMES else ()
    return next((name for name in packages if importlib.util.find_spec(name) is None), None)


def install_command(runtime: str) -> str:
    """Return the command that installs an engine."""
    return f'pip install "gpudarknet[{RUNTIMES[runtime][1]}]"'


def version(package: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    from importlib import metadata  # with email and zipfile, which nothing else needs

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def restore(name: str) -> Backend:
    """Return the backend of a pickle: the one of this name or, if it cannot run here, the one that GPUDARKNET_BACKEND names.

    Raises BackendError if neither can.
    """
    try:
        return get(name)
    except BackendError as e:
        if os.environ.get(VARIABLE):
            return get("auto")
        raise BackendError(f"{e}; or set {VARIABLE}=numpy to unpickle it there") from None


@cache
def _cupy() -> Backend:
    import cupy

    from . import cublas, cuda

    return Backend("cupy", cupy, cuda.launcher(), cublas.Handle, executor="cuda")


@cache
def why_no_cupy() -> str | None:
    """Return why the CuPy backend cannot run here and how to fix it; None if it can."""
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as e:
        detail = NO_CUPY if e.name == "cupy" else f"CuPy does not import ({first_line(e)})"
        return f"{detail}; {INSTALL}"
    except OSError as e:  # it creates its cache when it is imported
        return f"CuPy does not import ({first_line(e)}); set CUPY_CACHE_DIR to a folder that can be written"
    runtime = cupy.cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except Exception as e:
        if "Insufficient" in str(e):  # the runtime reports this without any driver, too
            version = runtime.driverGetVersion()
            if not version:
                return NO_DRIVER
            versions = f"it supports CUDA {_cuda(version)}, CuPy uses {_cuda(runtime.runtimeGetVersion())}"
            return f"the NVIDIA driver is too old for this CuPy: {versions}; update the driver or install a CuPy for it"
        if "NoDevice" in str(e):
            return NO_DEVICE
        if "DriverMismatch" in str(e):
            return f"the NVIDIA driver was replaced while it was in use ({first_line(e)}); restart the machine"
        return f"there is no working NVIDIA driver ({first_line(e)}); install one, nvidia-smi must list a GPU"
    if count == 0:
        return NO_DEVICE
    try:
        cupy.RawKernel('extern "C" __global__ void probe() {}', "probe").compile()
        cupy.zeros((2, 2), np.float32) @ cupy.zeros((2, 2), np.float32)
    except Exception as e:
        if "header" in str(e).lower():
            return f"CuPy finds no CUDA headers, so it cannot compile kernels; {INSTALL} includes them"
        if any(word in str(e).lower() for word in ("out of memory", "unavailable")):
            return f"the GPU is in use by other programs ({first_line(e)}); end some, nvidia-smi lists them"
        return f"a test kernel and gemm fail on the device ({first_line(e)}); {INSTALL}"
    return None


def _cuda(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


@cache
def _warn_idle_gpu(why: str, requested: str) -> None:
    """Warn once if a GPU stays idle although CuPy is installed."""
    if not why.startswith(NO_CUPY) and (names := machine.gpus()):
        used = "NumPy" if requested == "auto" else "the CPU"
        warnings.warn(
            f"backend: '{requested}' uses {used}, often 100 times slower, and leaves the {names[0]} idle: {why};"
            " pass backend='numpy' if this is intended",
            BackendWarning, stacklevel=3,
        )  # fmt: skip


def diagnose() -> list[tuple[str, str]]:
    """Describe this machine for `gpudarknet info`: (name, value) rows about Python, backend, GPU, BLAS and threads."""
    rows = [("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    rows += [(package, number) for package in PACKAGES if (number := version(package))]
    rows.append((VARIABLE, os.environ.get(VARIABLE) or "not set"))
    for row, name in (("backend", "auto"), ("backend fastest", "fastest")):
        try:
            rows.append((row, get(name).name))
        except BackendError as e:
            rows.append((row, str(e)))
    rows.append(("faster", faster() or "nothing known; the fastest engine is in use"))
    why = why_no_cupy()
    if why is None:
        cupy = importlib.import_module("cupy")
        device = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
        rows.append(("GPU", f"{device['name'].decode()}, {device['totalGlobalMem'] / 2**30:.0f} GiB, "
                            f"sm_{device['major']}{device['minor']}"))  # fmt: skip
    else:
        rows.append(("GPU", ", ".join([*machine.gpus(), f"not used: {why}"])))
    try:
        count, source = worker_count()
        threads = f"{count} ({source})"
    except BackendError as e:
        threads = str(e)
    cores, limit = machine.available_cores()
    processor = ": ".join(filter(None, (machine.processor(), ", ".join(machine.cpu_features()))))
    return [
        *rows,
        ("BLAS", blas.describe()),
        ("CPU", processor),
        ("cores", f"{cores} ({limit})"),
        ("threads", threads),
    ]


def faster() -> str | None:
    """Return what would predict faster on this machine, and the command that gets it; None if it is installed and in use."""
    name = get("fastest").name
    if name == "cupy":
        return None
    if names := machine.gpus():
        return f"cupy on the {names[0]}: {why_no_cupy()}"
    if name == "numpy":
        return f'openvino, on many CPUs: {install_command("openvino")}, then backend="fastest"'
    if os.environ.get(VARIABLE) in (name, "fastest"):
        return None
    return f'{name}, which is installed: backend="fastest", or {VARIABLE}=fastest'
