"""Products of matrices, by BLAS on the CPU and cuBLAS on a GPU."""

from __future__ import annotations

from typing import Any

from ..op import op


@op
def product(be: Any, a: Any, b: Any) -> Any:
    """Multiply matrices of one type: a (..., M, K), b (..., K, N) -> (..., M, N)."""
    return be.xp.matmul(a, b)


@product.kernel
def product_cuda(be: Any, a: Any, b: Any) -> Any:
    return be.xp.matmul(a, b)  # of float16, cuBLAS makes float16 with sums in float32
