"""libcublas computed by NumPy: C functions with the parameters of cuBLAS's header, on addresses of this process.

Matrices are column-major, as in cuBLAS: op(A) is (m, k), op(B) is (k, n), C is (m, n), and element (i, j) of a matrix is at
i + j * ld. Arguments that cuBLAS rejects with INVALID_VALUE are rejected.

    be = Backend("host-cuda", numpy, host_cuda.launcher(), FakeCublas().open, "cuda")
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import c_float, c_int, c_longlong, c_size_t, c_void_p
from typing import Any

import numpy as np

from gpudarknet.backend import cublas

INVALID_VALUE = 7
A, AT = c_void_p, c_int  # an address, a type or any other enum
HEADER = {
    "cublasCreate_v2": [("handle", A)],
    "cublasSetStream_v2": [("handle", A), ("stream", A)],
    "cublasSetWorkspace_v2": [("handle", A), ("workspace", A), ("bytes", c_size_t)],
    "cublasSetMathMode": [("handle", A), ("mode", AT)],
    "cublasGetVersion_v2": [("handle", A), ("version", A)],
    "cublasGemmEx": [
        ("handle", A), ("transa", AT), ("transb", AT), ("m", c_int), ("n", c_int), ("k", c_int), ("alpha", A),
        ("A", A), ("Atype", AT), ("lda", c_int), ("B", A), ("Btype", AT), ("ldb", c_int), ("beta", A),
        ("C", A), ("Ctype", AT), ("ldc", c_int), ("compute", AT), ("algo", AT),
    ],
    "cublasGemmStridedBatchedEx": [
        ("handle", A), ("transa", AT), ("transb", AT), ("m", c_int), ("n", c_int), ("k", c_int), ("alpha", A),
        ("A", A), ("Atype", AT), ("lda", c_int), ("strideA", c_longlong),
        ("B", A), ("Btype", AT), ("ldb", c_int), ("strideB", c_longlong), ("beta", A),
        ("C", A), ("Ctype", AT), ("ldc", c_int), ("strideC", c_longlong), ("batchCount", c_int),
        ("compute", AT), ("algo", AT),
    ],
}  # fmt: skip
TYPES = {0: np.float32, 2: np.float16}


class FakeCublas:
    """calls: (name, its arguments by name) in order. fails: name -> the status that it returns instead of working."""

    def __init__(self, log: Callable[[str], None] = lambda name: None) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.fails: dict[str, int] = {}
        self.workspace = 0
        self.log = log
        for name, parameters in HEADER.items():
            prototype = ctypes.CFUNCTYPE(c_int, *(kind for _, kind in parameters))
            setattr(self, name, prototype(self._function(name)))

    def open(self, stream: int, workspace: tuple[int, int]) -> cublas.Handle:
        """What `Backend.cublas` is."""
        return cublas.Handle(stream, workspace, self)

    def _function(self, name: str) -> Callable[..., int]:
        def run(*args: Any) -> int:
            given = dict(zip((p for p, _ in HEADER[name]), args, strict=True))
            self.calls.append((name, given))
            self.log(name)
            if name in self.fails:
                return self.fails[name]
            if name == "cublasCreate_v2":
                c_void_p.from_address(given["handle"]).value = 0xB1A5
            elif given["handle"] != 0xB1A5:
                return 1
            elif name == "cublasSetStream_v2":
                self.workspace = 0
            elif name == "cublasSetWorkspace_v2":
                self.workspace = given["bytes"]
            elif name == "cublasGetVersion_v2":
                c_int.from_address(given["version"]).value = 120901
            elif "Gemm" in name:
                return gemm(**given)
            return 0

        return run


def matrix(address: int, kind: int, rows: int, columns: int, ld: int) -> np.ndarray:
    """View memory as a column-by-column matrix."""
    dtype = np.dtype(TYPES[kind])
    memory = (ctypes.c_uint8 * (((columns - 1) * ld + rows) * dtype.itemsize)).from_address(address)
    size = dtype.itemsize
    return np.lib.stride_tricks.as_strided(np.frombuffer(memory, dtype), (rows, columns), (size, ld * size))


def tf32(a: np.ndarray) -> np.ndarray:
    """Round float32 to 10 bits after the point."""
    bits = np.ascontiguousarray(a).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def gemm(
    transa: int, transb: int, m: int, n: int, k: int, lda: int, ldb: int, ldc: int, compute: int, algo: int,
    Atype: int, Btype: int, Ctype: int, strideA: int = 0, strideB: int = 0, strideC: int = 0, batchCount: int = 1,
    **at: int,
) -> int:  # fmt: skip
    shape_a, shape_b = (k, m) if transa else (m, k), (n, k) if transb else (k, n)
    sensible = min(m, n, k, batchCount) > 0 and {transa, transb} <= {0, 1} and algo == -1 and Atype == Btype == Ctype
    if not sensible or compute not in (68, 77) or (compute == 77 and Atype != 0):
        return INVALID_VALUE
    if lda < shape_a[0] or ldb < shape_b[0] or ldc < m:
        return INVALID_VALUE
    alpha, beta = (c_float.from_address(at[name]).value for name in ("alpha", "beta"))
    size = np.dtype(TYPES[Atype]).itemsize
    for i in range(batchCount):
        a = matrix(at["A"] + i * strideA * size, Atype, *shape_a, lda).astype(np.float32)
        b = matrix(at["B"] + i * strideB * size, Btype, *shape_b, ldb).astype(np.float32)
        c = matrix(at["C"] + i * strideC * size, Ctype, m, n, ldc)
        if compute == 77:
            a, b = tf32(a), tf32(b)
        product = alpha * ((a.T if transa else a) @ (b.T if transb else b))
        with np.errstate(over="ignore"):
            c[...] = product if beta == 0 else product + beta * c.astype(np.float32)
    return 0
