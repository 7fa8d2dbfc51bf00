"""The source of kernels/*.cu, the parameters of each kernel, and the launcher that runs them through CuPy.

A kernel's name is "file.kernel". Its file is compiled once per storage type `T`: an array declared `T *` is float32 or float16 in
memory, arithmetic is float. Arguments are checked against the kernel's parameters, because CUDA checks nothing. Only `Launcher`
imports CuPy, so that tests can read kernels on any machine.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..array import Array, KernelArgument, LaunchKernel
from ..errors import BackendError
from .threads import get_num_threads

LOG = logging.getLogger("gpudarknet")
NOTICE_AFTER = 0.5  # seconds of waiting for compiled kernels
OPTIONS = ("--std=c++17",)
STORAGE = {"float32": "float", "float16": "half_t"}  # dtype of the arrays declared T * -> the C++ type T
STORAGE_TYPES = {np.dtype(dtype): T for dtype, T in STORAGE.items()}
SCALARS: dict[str, type] = {"int": np.int32, "float": np.float32}
ARRAYS = {"float": np.dtype(np.float32), "int": np.dtype(np.int32), "unsigned char": np.dtype(np.uint8)}
DEFAULT_SHARED = 48 << 10  # bytes of dynamic shared memory that a kernel gets without asking for more
LARGEST = 2**31 - 1  # kernels index with int
NULL = np.uintp(0)  # CuPy would pass None as no argument at all

KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\([\d, ]+\) )?(\w+)\s*\(([^)]*)\)')
INCLUDE = re.compile(r'#include "(\w+\.cuh)"')
MACRO = re.compile(r"#define (\w+)[ ]((?:[^\n]*\\\n)*[^\n]*)")  # without parameters
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


class Parameter(NamedTuple):
    """One parameter of a kernel: `const T *x` is ("x", "T", pointer=True, const=True)."""

    name: str
    type: str
    pointer: bool
    const: bool


def folder() -> Path:
    """Return the folder of the .cu files: next to the package in a checkout, inside it in an installed wheel."""
    inside = Path(__file__).parent.parent / "kernels"
    return inside if inside.is_dir() else inside.parent.parent / "kernels"


def files() -> list[str]:
    """Return the names of all kernel files, without ".cu"."""
    return sorted(path.stem for path in folder().glob("*.cu"))


@cache
def source(file: str, T: str = "float") -> str:
    """Return the text to compile for kernels/FILE.cu: common.cuh, the storage type, the file with what it includes.

    Headers are inlined, because CuPy's cache of compiled kernels hashes only this text: it would miss a change of an included
    file. #line keeps the compiler's messages right.
    """
    return f"{_text('common.cuh')}\nusing T = {T};\n{_text(f'{file}.cu')}"


@cache
def version(files: tuple[str, ...]) -> str:
    """Return a hash of kernel files with what they include; comments and white space do not count."""
    text = "\n".join(line for file in files for line in source(file).split("\n") if not line.startswith("#line"))
    return hashlib.sha256(" ".join(COMMENT.sub(" ", text).split()).encode()).hexdigest()[:8]


def _text(name: str) -> str:
    """Return the text of a file with its headers inlined."""
    lines = (folder() / name).read_text(encoding="utf-8").split("\n")
    for i, line in enumerate(lines):
        if header := INCLUDE.fullmatch(line):
            lines[i] = f'{_text(header[1])}\n#line {i + 2} "{name}"'
    return "\n".join([f'#line 1 "{name}"', *lines])


@cache
def parameters(file: str) -> dict[str, tuple[Parameter, ...]]:
    """Read the kernels of a file: name -> parameters. Macros among them are expanded."""
    text = COMMENT.sub(" ", _text(f"{file}.cu"))
    macros = {name: re.sub(r"\\\n", " ", value) for name, value in MACRO.findall(text)}

    def expand(inside: str) -> str:
        return re.sub(r"\w+", lambda word: expand(macros[word[0]]) if word[0] in macros else word[0], inside)

    kernels = {name: tuple(map(_parameter, expand(inside).split(","))) for name, inside in KERNEL.findall(text)}
    if len(kernels) != text.count("__global__"):
        raise ValueError(f'{file}.cu: every kernel must begin with: extern "C" __global__ void NAME(')
    return kernels


def _parameter(text: str) -> Parameter:
    *words, name = re.findall(r"\w+|\*", text.replace("__restrict__", ""))
    kind = " ".join(word for word in words if word not in ("const", "*"))
    return Parameter(name, kind, "*" in words, "const" in words)


def bind(kernel: str, args: Sequence[Any], array: Any) -> tuple[str, list[Any]]:
    """Check and cast the arguments of a kernel; return the storage type T and the arguments for the driver.

    `array` is the class of the backend's arrays. int parameters accept integers, float ones any number, pointers C-contiguous
    arrays of their type or None. Raises TypeError or ValueError, which mean a bug in this package, and BackendError for an array
    of 2^31 elements or more.
    """
    file, _, name = kernel.partition(".")
    wanted = parameters(file)[name]
    if len(args) != len(wanted):
        names = ", ".join(p.name for p in wanted)
        raise TypeError(f"{kernel} takes {len(wanted)} arguments ({names}), not {len(args)}")
    T, values = None, []
    for p, a in zip(wanted, args, strict=True):
        if p.pointer and isinstance(a, array):
            dtype = a.dtype
            if p.type == "T":
                T = T or STORAGE_TYPES.get(dtype)
            if (dtype != ARRAYS.get(p.type)) if p.type != "T" else (T is None or STORAGE_TYPES.get(dtype) != T):
                raise TypeError(f"{kernel}: {p.name} is {p.type} * (T = {T or 'unknown'}), not {dtype}")
            if not a.flags.c_contiguous:
                raise ValueError(f"{kernel}: {p.name} is not C-contiguous")
            if a.size > LARGEST:
                raise BackendError(f"{kernel}: {p.name} has {a.size:,} elements, 2^31 or more; use a smaller batch")
            values.append(a)
        elif p.pointer and a is None:
            values.append(NULL)
        elif not p.pointer and isinstance(a, (int, np.integer) if p.type == "int" else (int, float, np.number)):
            values.append(SCALARS[p.type](a))
        else:
            raise TypeError(f"{kernel}: {p.name} is {p.type}{' *' * p.pointer}, not {type(a).__name__}")
    return T or "float", values


def grid(kernel: str, threads: int, block: int) -> int:
    """Return how many blocks hold at least `threads` threads. Raises BackendError if an int cannot count them."""
    blocks = -(-threads // block)
    if blocks * block > LARGEST:
        raise BackendError(f"{kernel}: needs {threads:,} threads, 2^31 or more; use a smaller batch")
    return blocks


class PreparedLaunch:
    """A launch with arguments as `bind` returns them, packed for the driver; calling it launches on CuPy's current stream.

    Calls take the arrays at the indices `varying`, and may not overlap: the caller holds a lock.
    """

    def __init__(
        self,
        cupy: Any,
        function: Any,
        kernel: str,
        shape: tuple[int, int, int],
        values: Sequence[Any],
        varying: Sequence[int],
    ):
        file, _, name = kernel.partition(".")
        blocks, block, shared = shape
        self.function, self.shape = function, (blocks, 1, 1, block, 1, 1, shared)
        self.launch, self.current_stream = cupy.cuda.driver.launchKernel, cupy.cuda.get_current_stream
        self.varying = [
            (i, f"{kernel}: {parameters(file)[name][i].name}", values[i].dtype, values[i].size) for i in varying
        ]
        self.constant = [None if i in varying else value for i, value in enumerate(values)]  # keeps their memory
        self.cells = np.zeros(len(values), np.uint64)  # each begins with an argument
        for i, value in enumerate(values):
            raw = np.uintp(value.data.ptr) if isinstance(value, cupy.ndarray) else value
            self.cells[i : i + 1].view(raw.dtype)[0] = raw
        self.pointers = self.cells.ctypes.data + self.cells.itemsize * np.arange(len(values), dtype=np.uint64)
        self.arguments = self.pointers.ctypes.data

    def __call__(self, *arrays: Array) -> None:
        """Launch. Raises TypeError for an array that differs in type or size from that of `prepare`."""
        for (i, name, dtype, size), a in zip(self.varying, arrays, strict=True):
            if a.dtype != dtype or a.size != size or not a.flags.c_contiguous:
                raise TypeError(f"{name} must be a C-contiguous {dtype} array of {size} elements")
            self.cells[i] = a.data.ptr  # type: ignore[attr-defined]
        self.launch(self.function.ptr, *self.shape, self.current_stream().ptr, self.arguments, 0)


class Launcher:
    """launch(kernel, threads, *args, block=256, shared=0) for CuPy arrays, on CuPy's current stream.

    A file is compiled on the first launch of one of its kernels, or earlier by `compile`. CuPy caches compiled kernels on disk.
    """

    def __init__(self) -> None:
        import cupy

        self.cupy: Any = cupy
        self.lock = threading.Lock()
        self.modules: dict[tuple[int, str, str], Future[Any]] = {}  # (device, file, T) -> its RawModule
        self.functions: dict[tuple[str, str], Any] = {}  # (kernel, T) -> its RawKernel, for all devices

    def __call__(self, kernel: str, threads: int, *args: KernelArgument, block: int = 256, shared: int = 0) -> None:
        """Launch a kernel, as `Backend.launch` says."""
        T, values = bind(kernel, args, self.cupy.ndarray)
        if threads:
            function = self._function(kernel, T, shared)
            function((grid(kernel, threads, block),), (block,), values, shared_mem=shared)

    def prepare(
        self,
        kernel: str,
        threads: int,
        *args: KernelArgument,
        block: int = 256,
        shared: int = 0,
        varying: Sequence[int] = (),
    ) -> PreparedLaunch:
        """Return a launch of a kernel with these arguments on the current device; see `prepare` below."""
        T, values = bind(kernel, args, self.cupy.ndarray)
        function, shape = self._function(kernel, T, shared).kernel, (grid(kernel, threads, block), block, shared)
        return PreparedLaunch(self.cupy, function, kernel, shape, values, varying)

    def _function(self, kernel: str, T: str, shared: int) -> Any:
        function = self.functions.get((kernel, T))
        if function is None:
            file, _, name = kernel.partition(".")
            function = self.functions.setdefault((kernel, T), self.compile([file], T)[0].get_function(name))
        if shared > DEFAULT_SHARED and function.max_dynamic_shared_size_bytes < shared:  # of the current device
            function.max_dynamic_shared_size_bytes = shared
        return function

    def compile(self, files: Sequence[str], T: str) -> list[Any]:
        """Return the modules of files for the current device, compiling missing ones in parallel.

        NVRTC compiles several programs at once, and CuPy releases the GIL meanwhile. Waits for a file that another
        thread is already compiling. Logs a notice if this takes longer than reading CuPy's cache on disk.
        """
        device = self.cupy.cuda.runtime.getDevice()
        with self.lock:
            new = [key for file in files if (key := (device, file, T)) not in self.modules]
            if new:
                pool = ThreadPoolExecutor(min(len(new), get_num_threads()), "nvrtc")
                self.modules |= {key: pool.submit(self._compile, *key) for key in new}
                pool.shutdown(wait=False)
            wanted = {file: self.modules[device, file, T] for file in files}
        if wait(wanted.values(), NOTICE_AFTER).not_done:
            names = ", ".join(file for file, module in wanted.items() if not module.done())
            dtype = next(dtype for dtype, storage in STORAGE.items() if storage == T)
            LOG.info("compiling CUDA kernels %s for %s (once per machine, some seconds)", names, dtype)
        try:
            return [module.result() for module in wanted.values()]
        except BaseException:
            with self.lock:  # the next call tries again
                for key, module in list(self.modules.items()):
                    if module.done() and module.exception() is not None:
                        del self.modules[key]
            raise

    def _compile(self, device: int, file: str, T: str) -> Any:
        self.cupy.cuda.Device(device).use()  # a new thread starts on device 0
        module = self.cupy.RawModule(code=source(file, T), options=OPTIONS)
        module.compile()
        return module


def prepare(
    launch: LaunchKernel,
    kernel: str,
    threads: int,
    *args: KernelArgument,
    block: int = 256,
    shared: int = 0,
    varying: Sequence[int] = (),
) -> Callable[..., None]:
    """Return a function that launches a kernel with these arguments, which are checked and cast once.

    varying: the indices of arrays that change: the function takes them, of the same type and size, in this order.
    """
    if isinstance(launch, Launcher):
        return launch.prepare(kernel, threads, *args, block=block, shared=shared, varying=varying)

    def run(*arrays: Array) -> None:
        changed = dict(zip(varying, arrays, strict=True))
        launch(kernel, threads, *(changed.get(i, a) for i, a in enumerate(args)), block=block, shared=shared)

    return run


def launcher() -> Launcher:
    """Return launch(kernel, threads, *args, block=256, shared=0) for CuPy arrays, on CuPy's current stream."""
    return Launcher()
