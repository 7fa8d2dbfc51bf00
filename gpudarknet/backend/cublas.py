"""cuBLAS through our own handle, which can do what CuPy's cannot: write into a part of a larger map, and be captured in a graph.

CuPy sets its handle's stream before every call, which CUDA refuses during capture and which drops the workspace; and its `out=`
must be contiguous. Here stream, workspace and math mode are set once, and every matrix is an address with a leading dimension.
Matrices are row-major, as NumPy's:

    handle = cublas.Handle(stream.ptr, (workspace.data.ptr, WORKSPACE))
    handle.gemm("fp16", y, a, w, M, N, K, ldy, lda, ldw)           # y (M, N) = a (M, K) @ w (N, K).T
    y = cublas.matmul(be, a, b)                                    # arrays, on the caller's stream

`matmul` exists because CuPy's own multiplies a stack of float16 matrices as float32 copies, without tensor cores, and reads a
broadcast operand through arrays of pointers.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import byref, c_float, c_int, c_longlong, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..array import Array, ArrayBackend
from ..errors import BackendError, OutOfMemoryError

LARGEST_BATCH = 65_535  # matrices per call: cuBLAS kernels index them by the grid's z
WORKSPACE = 32 << 20  # bytes, as NVIDIA recommends for Hopper; without one, every captured graph allocates its own

# From cublas_api.h and library_types.h
R_32F, R_16F = 0, 2
COMPUTE_32F, COMPUTE_32F_FAST_TF32 = 68, 77
DEFAULT_ALGORITHM = -1
NO_HALF_REDUCTION = 16  # CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION: partial sums are added in float32 too
ALLOC_FAILED = 3
STATUS = {
    1: "NOT_INITIALIZED", 3: "ALLOC_FAILED", 7: "INVALID_VALUE", 8: "ARCH_MISMATCH", 11: "MAPPING_ERROR",
    13: "EXECUTION_FAILED", 14: "INTERNAL_ERROR", 15: "NOT_SUPPORTED", 16: "LICENSE_ERROR",
}  # fmt: skip

# precision -> (storage type, compute type). COMPUTE_32F is true float32, without TF32; PEDANTIC would also forbid algorithms for
# complex numbers.
PRECISIONS = {"fp32": (R_32F, COMPUTE_32F), "tf32": (R_32F, COMPUTE_32F_FAST_TF32), "fp16": (R_16F, COMPUTE_32F)}
TYPES = {"f": "fp32", "e": "fp16"}  # by dtype.char

_MATRIX = [c_void_p, c_int, c_int]  # address, type, leading dimension
_STRIDED = [c_void_p, c_int, c_int, c_longlong]  # and the stride of the matrices in a batch
_SIZES = [c_int, c_int, c_int, c_int, c_int]  # transa, transb, m, n, k
ARGUMENTS: dict[str, list[Any]] = {
    "cublasCreate_v2": [c_void_p],
    "cublasSetStream_v2": [c_void_p, c_void_p],
    "cublasSetWorkspace_v2": [c_void_p, c_void_p, c_size_t],
    "cublasSetMathMode": [c_void_p, c_int],
    "cublasGetVersion_v2": [c_void_p, c_void_p],
    "cublasGemmEx": [c_void_p, *_SIZES, c_void_p, *_MATRIX, *_MATRIX, c_void_p, *_MATRIX, c_int, c_int],
    "cublasGemmStridedBatchedEx": [
        c_void_p, *_SIZES, c_void_p, *_STRIDED, *_STRIDED, c_void_p, *_STRIDED, c_int, c_int, c_int,
    ],
}  # fmt: skip


class Handle:
    """A cuBLAS handle on one stream. It is never destroyed.

    stream: address of a CUDA stream. workspace: (address, bytes) on the device, kept alive by the caller. library: what `load`
    returns. Every call may raise BackendError.
    """

    def __init__(self, stream: int, workspace: tuple[int, int], library: Any = None):
        self.library = load() if library is None else library
        self._one, self._zero = c_float(1), c_float(0)
        self._handle = c_void_p()
        self._call("cublasCreate_v2", byref(self._handle))
        self.use(stream, workspace)
        self._call("cublasSetMathMode", self._handle, NO_HALF_REDUCTION)

    def use(self, stream: int, workspace: tuple[int, int]) -> None:
        """Set the stream and the workspace."""
        self._call("cublasSetStream_v2", self._handle, stream)
        self._call("cublasSetWorkspace_v2", self._handle, *workspace)  # after the stream, which resets it

    def gemm(
        self, precision: str, y: int, a: int, w: int, M: int, N: int, K: int, ldy: int, lda: int, ldw: int,
        transa: bool = False, transw: bool = True,
    ) -> None:  # fmt: skip
        """Multiply: y (M, N) = a (M, K) @ w (N, K).T. y, a, w: addresses; ld: elements from one row to the next.

        transa: a is stored as (K, M). transw=False: w is stored as (K, N).
        """
        # cuBLAS is column-major: to it y is (N, M), a is (K, M), and w is (K, N), to be transposed.
        kind, compute = PRECISIONS[precision]
        self._call(
            "cublasGemmEx", self._handle, int(transw), int(transa), N, M, K,
            byref(self._one), w, kind, ldw, a, kind, lda,
            byref(self._zero), y, kind, ldy, compute, DEFAULT_ALGORITHM,
        )  # fmt: skip

    def gemm_batched(
        self, precision: str, count: int, y: int, a: int, w: int, M: int, N: int, K: int, ldy: int, lda: int, ldw: int,
        stride_y: int, stride_a: int, stride_w: int, transa: bool = False, transw: bool = True,
    ) -> None:  # fmt: skip
        """Run `count` gemms (strided batched). stride: elements from one matrix to the next, 0 for a shared one."""
        kind, compute = PRECISIONS[precision]
        self._call(
            "cublasGemmStridedBatchedEx", self._handle, int(transw), int(transa), N, M, K,
            byref(self._one), w, kind, ldw, stride_w, a, kind, lda, stride_a,
            byref(self._zero), y, kind, ldy, stride_y, count, compute, DEFAULT_ALGORITHM,
        )  # fmt: skip

    def version(self) -> int:
        """Return cuBLAS's version: 120901 is 12.9.1."""
        version = c_int()
        self._call("cublasGetVersion_v2", self._handle, byref(version))
        return version.value

    def _call(self, name: str, *args: Any) -> None:
        function = getattr(self.library, name)
        function.argtypes, function.restype = ARGUMENTS[name], c_int
        status = function(*args)
        if status:
            message = f"{name}: CUBLAS_STATUS_{STATUS.get(status, 'UNKNOWN')} ({status})"
            if status == ALLOC_FAILED:
                raise OutOfMemoryError(f"{message}: device memory is full; close other programs that use it")
            raise BackendError(f"{message}; backend='numpy' works without cuBLAS")


class Matrices:
    """A stack of matrices as cuBLAS reads it: an address, a leading dimension, and whether it is transposed.

    strides: for each axis of the stack, bytes from one matrix to the next.
    """

    def __init__(self, be: ArrayBackend, a: Array, stack: tuple[int, ...]):
        rows, columns = a.shape[-2:]
        layout = _leading(rows, columns, *(s // a.itemsize for s in a.strides[-2:]))
        if layout is None or min(a.strides) < 0:  # neither rows nor columns are contiguous, or a stride is negative
            a, layout = be.xp.ascontiguousarray(a), (columns, False)
        self.array = a  # alive until the call is queued
        self.address, (self.ld, self.transposed) = address(a), layout
        own, strides = a.shape[:-2], a.strides[:-2]
        self.strides = [0] * (len(stack) - len(own)) + [0 if n == 1 else s for n, s in zip(own, strides, strict=True)]


def _leading(rows: int, columns: int, row: int, column: int) -> tuple[int, bool] | None:
    """Return the leading dimension of a matrix with these strides, and whether it is column-major; None if it has none."""
    if (column == 1 or columns == 1) and (row >= columns or rows == 1):
        return (columns if rows == 1 else row), False
    if (row == 1 or rows == 1) and (column >= rows or columns == 1):
        return (rows if columns == 1 else column), True
    return None


def matmul(be: ArrayBackend, a: Array, b: Array) -> Array:
    """Multiply as xp.matmul does, on the current device and stream: a (..., M, K), b (..., K, N) -> (..., M, N).

    Both are float32 or both float16; sums are float32. float32 is multiplied in full precision, or in TF32 if CUPY_TF32=1.
    Transposed views and broadcast operands are read in place.
    """
    if a.ndim == 1:
        return matmul(be, a[None], b)[..., 0, :]
    if b.ndim == 1:
        return matmul(be, a, b[:, None])[..., 0]
    (M, K), (rows, N) = a.shape[-2:], b.shape[-2:]
    if rows != K:
        raise ValueError(f"matmul: {a.shape} and {b.shape} do not fit")
    stack = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    y = (be.empty if K else be.zeros)((*stack, M, N), a.dtype)
    if not (y.size and K):
        return y
    precision = "tf32" if a.dtype == np.float32 and _tf32() else TYPES[a.dtype.char]
    left, right = Matrices(be, a, stack), Matrices(be, b, stack)
    sizes = (M, N, K, N, left.ld, right.ld)
    trans = (left.transposed, right.transposed)
    outer, (count, *strides) = _axes(stack, y.strides, left.strides, right.strides)
    stride_y, stride_a, stride_b = (s // y.itemsize for s in strides)
    with borrow_handle(be) as handle:
        for offsets in outer:
            for first in range(0, count, LARGEST_BATCH):
                y0, a0, b0 = (
                    m + o + first * s
                    for m, o, s in zip((address(y), left.address, right.address), offsets, strides, strict=True)
                )
                if count == 1:
                    handle.gemm(precision, y0, a0, b0, *sizes, *trans)
                else:
                    n = min(count - first, LARGEST_BATCH)
                    handle.gemm_batched(precision, n, y0, a0, b0, *sizes, stride_y, stride_a, stride_b, *trans)
    return y


def _axes(stack: tuple[int, ...], *strides: Sequence[int]) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
    """Split a stack of matrices into calls: return where each begins, and (count, strides) of the matrices in a call.

    strides: for each array, bytes between matrices along each axis; entries beyond the axes are ignored.
    """
    axes: list[tuple[int, ...]] = []  # (length, strides), from the outside
    for n, *steps in zip(stack, *strides, strict=False):
        if n == 1:
            continue
        if axes and all(s == n * t for s, t in zip(axes[-1][1:], steps, strict=True)):
            axes[-1] = (axes[-1][0] * n, *steps)  # merge with the axis outside
        else:
            axes.append((n, *steps))
    longest = max(range(len(axes)), key=lambda k: axes[k][0], default=0)
    inner = axes.pop(longest) if axes else (1, *(0 for _ in strides))
    begins = [
        tuple(sum(i * axis[1 + k] for i, axis in zip(index, axes, strict=True)) for k in range(len(strides)))
        for index in np.ndindex(*(axis[0] for axis in axes))
    ]
    return begins, inner


def _tf32() -> bool:
    """Return whether CUPY_TF32 enables TF32, as CuPy reads it."""
    return os.environ.get("CUPY_TF32", "0") not in ("", "0")


def address(a: Array) -> int:
    """Return the address of a CuPy or NumPy array in its device's memory."""
    return int(a.data.ptr if hasattr(a.data, "ptr") else a.ctypes.data)


class PooledHandle:
    """A handle that threads borrow, set to the stream of the last borrower."""

    def __init__(self, be: ArrayBackend):
        self.be = be
        self.handle: Handle | None = None
        self.workspace: Array | None = None
        self.borrower: tuple[int, Any] | None = None

    def use(self, stream: Any) -> Handle:
        """Return the handle, set to this stream, the current one of this thread.

        The workspace comes from the memory pool, which reuses memory of a stream only for later work of that stream: gemms still
        running on another stream keep theirs, and nothing has to wait.
        """
        borrower = (threading.get_ident(), stream)  # CUDA's per-thread default streams share one address
        if self.borrower != borrower:
            self.borrower, self.workspace = None, self.be.empty((WORKSPACE,), np.uint8)
            at = getattr(stream, "ptr", 0), (address(self.workspace), WORKSPACE)
            if self.handle is None:
                assert self.be.cublas is not None
                self.handle = self.be.cublas(*at)
            else:
                self.handle.use(*at)
            self.borrower = borrower  # keeps the stream alive, so that no other can get its address
        assert self.handle is not None
        return self.handle


_idle: dict[tuple[Any, int], list[PooledHandle]] = {}


@contextmanager
def borrow_handle(be: ArrayBackend) -> Iterator[Handle]:
    """Lend a handle of the current device, set to the current stream.

    Each is used by one thread at a time; their number is the most threads that ever multiplied at once. Plans have their own.
    """
    cuda = getattr(be.xp, "cuda", None)
    idle = _idle.setdefault((be.cublas, be.current_device() or 0), [])
    stream = None if cuda is None else cuda.get_current_stream()
    try:
        pooled = idle.pop()
    except IndexError:
        pooled = PooledHandle(be)
    try:
        yield pooled.use(stream)
    finally:
        idle.append(pooled)


@cache
def load() -> ctypes.CDLL:
    """Load libcublas: CuPy's own; else the one this process has loaded; else the one cuda.pathfinder finds; else by name.

    Raises BackendError that lists what was tried.
    """
    tried = []
    names = ("libcublas.so.13", "libcublas.so.12", "cublas64_13.dll", "cublas64_12.dll")
    for path in (*linked_library(), *loaded_libraries(), *pathfinder_library(), *names):
        try:
            library = ctypes.CDLL(path)
            library.cublasGemmEx  # noqa: B018  # AttributeError where symbols of linked libraries are not visible
            return library
        except (OSError, AttributeError) as e:
            tried.append(str(e).splitlines()[0])
    raise BackendError(f'cuBLAS: cannot be loaded ({"; ".join(tried)}); pip install "gpudarknet[cuda12]" installs it')


def linked_library() -> list[str]:
    """Return CuPy's module that is linked to cuBLAS: functions looked up in it are those of the library that CuPy uses.

    A process may hold several, for example cuBLAS 12 of PyTorch and cuBLAS 13 of CuPy.
    """
    try:
        from cupy_backends.cuda.libs import cublas

        return [cublas.__file__]
    except ImportError:
        return []


def loaded_libraries(maps: Path = Path("/proc/self/maps")) -> list[str]:
    """Return the libcublas files that this process has loaded, newest first; none except on Linux."""
    if not maps.exists():
        return []
    lines = maps.read_text(encoding="utf-8", errors="replace").splitlines()
    files = {line.split(maxsplit=5)[5] for line in lines if re.search(r"/libcublas\.so[.\d]*$", line)}
    return sorted(files, key=lambda file: ([int(n) for n in re.findall(r"\d+", Path(file).name)], file), reverse=True)


def pathfinder_library() -> list[str]:
    """Return the libcublas that cuda.pathfinder, which comes with CuPy 14, finds."""
    try:
        from cuda import pathfinder

        return [str(pathfinder.load_nvidia_dynamic_lib("cublas").abs_path)]
    except (ImportError, RuntimeError, OSError):  # its own errors are RuntimeErrors
        return []
