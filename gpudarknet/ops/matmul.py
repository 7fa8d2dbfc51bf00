"""Matrix multiplication: BLAS on the CPU, cuBLAS on a GPU."""

from __future__ import annotations

from ..array import Array, ArrayBackend, KernelBackend
from ..backend import cublas
from .base import op


@op
def matmul(be: ArrayBackend, a: Array, b: Array) -> Array:
    """Multiply matrices of one dtype: a (..., M, K), b (..., K, N) -> (..., M, N)."""
    return be.xp.matmul(a, b)


@matmul.kernel
def matmul_cuda(be: KernelBackend, a: Array, b: Array) -> Array:
    supported = be.cublas is not None and a.dtype == b.dtype and a.dtype.char in cublas.TYPES
    return cublas.matmul(be, a, b) if supported else be.xp.matmul(a, b)
