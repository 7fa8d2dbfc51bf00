"""Run the kernels' real source on a CPU: a launch() like that of cuda.launcher(), for NumPy arrays.

    be = Backend("host-cuda", numpy, launch=host_cuda.launcher())

Every launch works on copies of its arrays that end at an unreadable page, so that any access beyond the end is caught,
reads included. It runs twice, the second time with threads and blocks in reverse order: a missing barrier, a race, or a
nondeterministic sum shows as a difference. Errors raise KernelError.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import itertools
import mmap
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gpudarknet.backend import cuda
from gpudarknet.io.atomic import atomic_write

HERE = Path(__file__).parent
BUILD = HERE / "build"  # shared libraries, named by the hash of what they were made from
COMPILER = os.environ.get("CXX") or shutil.which("g++")
SANITIZE = bool(os.environ.get("HOST_CUDA_SANITIZE"))  # see tests/test_sanitize.py
FLAGS = ["-std=c++17", "-O1", "-g1", "-fPIC", "-shared", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-Wall", "-Werror",
         "-Wno-unused", "-Wno-sign-compare", "-Wno-unknown-pragmas", "-Wno-maybe-uninitialized",
         "-Wno-unknown-warning-option"]  # fmt: skip
if SANITIZE:
    FLAGS += ["-DSANITIZE", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

PAGE = mmap.PAGESIZE
POISON = 0xFF  # NaN in float32 and float16, -1 in int32
CTYPES: dict[str, Any] = {"int": ctypes.c_int, "float": ctypes.c_float}
mprotect = ctypes.CDLL(None, use_errno=True).mprotect
mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class KernelError(Exception):
    """A kernel does what CUDA does not allow, or is not deterministic."""


def launcher(edit: Callable[[str], str] = lambda text: text) -> Callable[..., None]:
    """Return launch(kernel, threads, *args, block=256, shared=0); `edit` may change the source before it is compiled."""

    @cache
    def compiled(file: str, T: str) -> ctypes.CDLL:
        return load(file, T, edit(cuda.source(file, T)))

    def launch(kernel: str, threads: int, *args: Any, block: int = 256, shared: int = 0) -> None:
        T, values = cuda.bind(kernel, args, np.ndarray)
        if threads == 0:
            return
        file, _, name = kernel.partition(".")
        names = [p.name for p in cuda.parameters(file)[name]]
        arguments = dict(zip(names, values, strict=True))
        run(compiled(file, T), kernel, (cuda.grid(kernel, threads, block), block, shared), arguments)

    return launch


def run(library: ctypes.CDLL, kernel: str, size: tuple[int, int, int], arguments: dict[str, Any]) -> None:
    """Run one launch in both orders on guarded copies; copy the result back if they agree.

    size: blocks, threads in each, bytes of dynamic shared memory.
    """
    function = getattr(library, f"run_{kernel.partition('.')[2]}")
    arrays = {name: a for name, a in arguments.items() if isinstance(a, np.ndarray)}
    scalars = {name: a.item() for name, a in arguments.items() if name not in arrays}
    if SANITIZE:  # the sanitizer guards the arrays themselves, and ends the process
        scalars |= {name: a.ctypes.data for name, a in arrays.items()}
        function(*size, False, *(scalars[name] for name in arguments))
        return
    results = []
    for backwards in (False, True):
        copies = [Guarded(group) for group in overlapping(arrays)]
        passed = scalars | {name: at for copy in copies for name, at in copy.addresses.items()}
        if function(*size, backwards, *(passed[name] for name in arguments)):
            message, bad_address = library.host_message().decode(), library.host_fault() or 0
            if message.endswith(" touches "):
                message += next(
                    filter(None, (c.describe(bad_address) for c in copies)), f"address {bad_address}, in no array"
                )
            raise KernelError(f"{kernel}: {message}")
        for copy in copies:
            if not copy.intact():
                raise KernelError(f"{kernel}: writes outside {' or '.join(copy.arrays)}")
        results.append(copies)
        if not backwards:
            for what, number in read_counters(library).items():
                counters.update({what: number, f"{what} of {kernel.partition('.')[2]}": number})
    for forwards, backwards in zip(*results, strict=True):
        if not np.array_equal(forwards.data, backwards.data):
            raise KernelError(f"{kernel}: {' or '.join(forwards.arrays)} depends on the order in which threads run")
        if not np.array_equal(forwards.data, forwards.original):
            forwards.original[:] = forwards.data


counters: Counter[str] = Counter()


def read_counters(library: ctypes.CDLL) -> dict[str, int]:
    """Return what the last launch did, by the names in mma.h."""
    name, values = ctypes.c_char_p(), {}
    for i in itertools.count():
        value = library.host_counter(i, ctypes.byref(name))
        if name.value is None:
            return values
        values[name.value.decode()] = value
    raise AssertionError


@contextlib.contextmanager
def counting() -> Iterator[Counter[str]]:
    """Count what the warps of a block's launches do; the counter is filled when the block ends.

    Instructions of a warp: "mma", "ldmatrix", "cp.async", and of nhwc.cuh's functions, load_cg and store_cg "loads" and "stores".
    "ldmatrix bank conflicts" and "cp.async bank conflicts": passes over shared memory beyond those that the data needs. "cp.async
    sectors", "load sectors", "store sectors": of 32 bytes of global memory. Each also by kernel: "mma of implicit_gemm_64x64".
    """
    before, result = counters.copy(), Counter[str]()
    yield result
    result.update(counters - before)


class Guarded:
    """A copy of the memory of some arrays between two unreadable pages, as close to the second as possible.

    Like CUDA's allocations it starts at a multiple of 16 bytes. The rest of its pages is filled with POISON, which `intact`
    checks.
    """

    def __init__(self, arrays: dict[str, np.ndarray]):
        first = min(a.ctypes.data for a in arrays.values())
        size = max(a.ctypes.data + a.nbytes for a in arrays.values()) - first
        capacity = -(-max(size, 1) // PAGE) * PAGE
        pages = np.frombuffer(mmap.mmap(-1, capacity + 2 * PAGE), np.uint8)
        start = capacity - -(-size // 16) * 16
        self.head, self.data, self.tail = np.split(pages[PAGE:-PAGE], [start, start + size])
        self.original = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(first))
        self.arrays, self.base, self.end = arrays, pages.ctypes.data, pages.ctypes.data + pages.size
        self.addresses = {name: self.data.ctypes.data + a.ctypes.data - first for name, a in arrays.items()}
        self.head[:] = self.tail[:] = POISON
        self.data[:] = self.original
        for edge in (self.base, self.end - PAGE):
            if mprotect(edge, PAGE, 0):
                raise OSError(ctypes.get_errno(), "mprotect")

    def intact(self) -> bool:
        return bool((self.head == POISON).all() and (self.tail == POISON).all())

    def describe(self, address: int) -> str | None:
        """Name the element at an address on these pages."""
        if not self.base <= address < self.end:
            return None
        name, at = min(self.addresses.items(), key=lambda item: abs(item[1] - address))
        a = self.arrays[name]
        return f"{name}[{(address - at) // a.itemsize}], but {name} has {a.size} elements"


def overlapping(arrays: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Group arrays that share memory, so that they share it in their copies too."""
    groups: list[dict[str, np.ndarray]] = []
    end = 0
    for name, a in sorted(arrays.items(), key=lambda item: item[1].ctypes.data):
        if not groups or a.ctypes.data >= end:
            groups.append({})
        groups[-1][name] = a
        end = max(end, a.ctypes.data + a.nbytes)
    return groups


def load(file: str, T: str, text: str) -> ctypes.CDLL:
    """Compile `text`, the source of kernels/FILE.cu or an edited copy of it, under the shim."""
    kernels = cuda.parameters(file)
    functions = "".join(entry_point(name, parameters) for name, parameters in kernels.items())
    shim = "\n".join(f'#line 1 "{name}"\n{(HERE / name).read_text(encoding="utf-8")}' for name in ("shim.h", "mma.h"))
    library = ctypes.CDLL(str(build(f"{file}-{T}", f"{shim}\n{text}\n{functions}")))
    library.host_counter.restype = ctypes.c_long
    library.host_counter.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)]
    library.host_message.restype, library.host_fault.restype = ctypes.c_char_p, ctypes.c_void_p
    for name, parameters in kernels.items():
        types = [ctypes.c_void_p if p.pointer else CTYPES[p.type] for p in parameters]
        getattr(library, f"run_{name}").argtypes = [*[ctypes.c_int] * 3, ctypes.c_bool, *types]
    return library


def entry_point(name: str, parameters: tuple[cuda.Parameter, ...]) -> str:
    """Write the C function through which Python launches a kernel."""
    declared = ", ".join(f"{'const ' * p.const}{p.type} {'*' * p.pointer}{p.name}" for p in parameters)
    passed = ", ".join(p.name for p in parameters)
    return (
        f'extern "C" int run_{name}(int blocks_, int block_, int shared_, bool backwards_, {declared}) '
        f"{{ return host::launch(blocks_, block_, shared_, backwards_, [&] {{ {name}({passed}); }}); }}\n"
    )


def build(name: str, text: str) -> Path:
    """Compile C++ text to a shared library, once; raise KernelError with the compiler's messages."""
    key = hashlib.sha256("\0".join([str(COMPILER), *FLAGS, text]).encode()).hexdigest()[:16]
    library = BUILD / f"{name}-{key}.so"
    if not library.exists():
        with locked(BUILD / f"{name}.lock"):
            if not library.exists():  # another process may just have made it
                with atomic_write(library) as tmp:
                    command = [str(COMPILER), *FLAGS, "-x", "c++", "-", "-o", str(tmp)]
                    done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
                    if done.returncode:
                        raise KernelError(f"{name}: {COMPILER} says\n{done.stderr}")
    return library


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time through, so that parallel tests do not compile the same text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
