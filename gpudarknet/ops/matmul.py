"""Matrix multiplication: BLAS on the CPU, cuBLAS on a GPU."""

from __future__ import annotations

from typing import Any

from ..backend import cublas
from .base import op


@op
def matmul(be: Any, a: Any, b: Any) -> Any:
    """Multiply matrices of one dtype: a (..., M, K), b (..., K, N) -> (..., M, N)."""
    return be.xp.matmul(a, b)


@matmul.kernel
def matmul_cuda(be: Any, a: Any, b: Any) -> Any:
    supported = be.cublas is not None and a.dtype == b.dtype and a.dtype.char in cublas.TYPES
    return cublas.matmul(be, a, b) if supported else be.xp.matmul(a, b)
