"""cuBLAS through a handle of our own: what CuPy's cannot do, write into a part of a larger map and be captured in a graph.

CuPy sets the stream of its handle before every call, which CUDA refuses while a graph is captured and which gives up the
workspace; and its `out=` must be contiguous. Here stream, workspace and mode are set once, and every matrix is an address
with a leading dimension. Matrices are row by row, as NumPy's:

    handle = cublas.Handle(stream.ptr, (workspace.data.ptr, WORKSPACE))
    handle.gemm("fp16", y, a, w, M, N, K, ldy, lda, ldw)           # y (M, N) = a (M, K) @ w (N, K).T
"""

from __future__ import annotations

import ctypes
import re
from ctypes import byref, c_float, c_int, c_longlong, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from .errors import BackendError

WORKSPACE = 32 << 20  # bytes, as NVIDIA recommends for Hopper; without one, every captured graph gets its own

# From cublas_api.h and library_types.h
NO_TRANSPOSE, TRANSPOSE = 0, 1
R_32F, R_16F = 0, 2
COMPUTE_32F, COMPUTE_32F_FAST_TF32 = 68, 77
DEFAULT_ALGORITHM = -1
NO_HALF_SUMS = 16  # CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION: parts of a sum are added as float32 too
STATUS = {
    1: "NOT_INITIALIZED", 3: "ALLOC_FAILED", 7: "INVALID_VALUE", 8: "ARCH_MISMATCH", 11: "MAPPING_ERROR",
    13: "EXECUTION_FAILED", 14: "INTERNAL_ERROR", 15: "NOT_SUPPORTED", 16: "LICENSE_ERROR",
}  # fmt: skip

# precision -> (how numbers are stored, how they are multiplied and added). COMPUTE_32F is true float32: TF32 only where asked
# for. PEDANTIC would beside that forbid tricks that only complex numbers know.
PRECISIONS = {"fp32": (R_32F, COMPUTE_32F), "tf32": (R_32F, COMPUTE_32F_FAST_TF32), "fp16": (R_16F, COMPUTE_32F)}

_MATRIX = [c_void_p, c_int, c_int]  # address, type, leading dimension
_STRIDED = [c_void_p, c_int, c_int, c_longlong]  # and how far apart the matrices of a batch are
_SIZES = [c_int, c_int, c_int, c_int, c_int]  # how a and b are taken, m, n, k
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
    """A cuBLAS handle on one stream. It lives as long as the process.

    stream: address of a CUDA stream. workspace: (address, bytes) on the device, which the caller keeps. library: what
    `load` gives. Raises BackendError, from every call.
    """

    def __init__(self, stream: int, workspace: tuple[int, int], library: Any = None):
        self.library = load() if library is None else library
        self._one, self._zero = c_float(1), c_float(0)
        self._handle = c_void_p()
        self._call("cublasCreate_v2", byref(self._handle))
        self._call("cublasSetStream_v2", self._handle, stream)
        self._call("cublasSetWorkspace_v2", self._handle, *workspace)  # after the stream, which would take it away
        self._call("cublasSetMathMode", self._handle, NO_HALF_SUMS)

    def gemm(
        self, precision: str, y: int, a: int, w: int, M: int, N: int, K: int, ldy: int, lda: int, ldw: int
    ) -> None:
        """Multiply: y (M, N) = a (M, K) @ w (N, K).T. y, a, w: addresses; ld: numbers from one row to the next."""
        # cuBLAS counts column by column: there our y is (N, M), a is (K, M), and w is (K, N), to be transposed.
        kind, compute = PRECISIONS[precision]
        self._call(
            "cublasGemmEx", self._handle, TRANSPOSE, NO_TRANSPOSE, N, M, K,
            byref(self._one), w, kind, ldw, a, kind, lda,
            byref(self._zero), y, kind, ldy, compute, DEFAULT_ALGORITHM,
        )  # fmt: skip

    def gemms(
        self, precision: str, count: int, y: int, a: int, w: int, M: int, N: int, K: int, ldy: int, lda: int, ldw: int,
        apart_y: int, apart_a: int, apart_w: int,
    ) -> None:  # fmt: skip
        """Multiply `count` times as `gemm` does; apart: numbers from one matrix to the next."""
        kind, compute = PRECISIONS[precision]
        self._call(
            "cublasGemmStridedBatchedEx", self._handle, TRANSPOSE, NO_TRANSPOSE, N, M, K,
            byref(self._one), w, kind, ldw, apart_w, a, kind, lda, apart_a,
            byref(self._zero), y, kind, ldy, apart_y, count, compute, DEFAULT_ALGORITHM,
        )  # fmt: skip

    def version(self) -> int:
        """Return cuBLAS's version: 120901 is 12.9.1."""
        found = c_int()
        self._call("cublasGetVersion_v2", self._handle, byref(found))
        return found.value

    def _call(self, name: str, *args: Any) -> None:
        function = getattr(self.library, name)
        function.argtypes, function.restype = ARGUMENTS[name], c_int
        status = function(*args)
        if status:
            raise BackendError(
                f"{name}: cuBLAS says {STATUS.get(status, 'unknown')} ({status}); predict(engine='reference') goes without it"
            )


@cache
def load() -> ctypes.CDLL:
    """Load libcublas: CuPy's own; else what this process has loaded; else what cuda.pathfinder finds; else by name.

    Raises BackendError, which says what was tried.
    """
    tried = []
    names = ("libcublas.so.13", "libcublas.so.12", "cublas64_13.dll", "cublas64_12.dll")
    for path in (*linked(), *loaded(), *found(), *names):
        try:
            library = ctypes.CDLL(path)
            library.cublasGemmEx  # noqa: B018  # AttributeError where a system does not look into what a module is linked to
            return library
        except (OSError, AttributeError) as e:
            tried.append(str(e).splitlines()[0])
    raise BackendError(f'cuBLAS: cannot be loaded ({"; ".join(tried)}); pip install "gpudarknet[cuda12]" brings it')


def linked() -> list[str]:
    """Return CuPy's module that is linked to cuBLAS: functions looked up in it are those of the library that CuPy uses.

    A process may hold several, for example cuBLAS 12 of a PyTorch beside the cuBLAS 13 of its CuPy.
    """
    try:
        from cupy_backends.cuda.libs import cublas

        return [cublas.__file__]
    except ImportError:
        return []


def loaded(maps: Path = Path("/proc/self/maps")) -> list[str]:
    """Return the libcublas files that this process has loaded, the newest first; on other systems than Linux none."""
    if not maps.exists():
        return []
    lines = maps.read_text(encoding="utf-8", errors="replace").splitlines()
    files = {line.split(maxsplit=5)[5] for line in lines if re.search(r"/libcublas\.so[.\d]*$", line)}
    return sorted(files, key=lambda file: ([int(n) for n in re.findall(r"\d+", Path(file).name)], file), reverse=True)


def found() -> list[str]:
    """Return the libcublas that cuda.pathfinder, which comes with CuPy 14, finds."""
    try:
        from cuda import pathfinder

        return [str(pathfinder.load_nvidia_dynamic_lib("cublas").abs_path)]
    except (ImportError, RuntimeError, OSError):  # its own errors are RuntimeErrors
        return []
