"""Products of matrices, by BLAS on the CPU and cuBLAS on a GPU."""

from __future__ import annotations

from typing import Any

from ..backend import cublas
from .base import op


@op
def matmul(be: Any, a: Any, b: Any) -> Any:
    """Multiply matrices of one type: a (..., M, K), b (..., K, N) -> (..., M, N)."""
    return be.xp.matmul(a, b)


@matmul.kernel
def matmul_cuda(be: Any, a: Any, b: Any) -> Any:
    ours = be.cublas is not None and a.dtype == b.dtype and a.dtype.char in cublas.TYPES
    return cublas.matmul(be, a, b) if ours else be.xp.matmul(a, b)
