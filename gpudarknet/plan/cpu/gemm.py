"""Matrix multiplication in blocks that BLAS multiplies without packing them first.

A gemm copies both matrices into a packed order before it multiplies. That pays off for large square ones; here one side is
often short (the 49 tiles of a 13 x 13 map), and packing the weights takes as long as using them. OpenBLAS on AVX-512 has
kernels without packing for products of at most 10^6 multiplications; NumPy's matmul runs a stack of such blocks in one call.
Measured on one core of a Zen 4: (16, 512) @ (512, 512) 64 -> 113 GFLOP/s, (49, 512) @ (512, 512) 88 -> 110, (1000, 64) @
(64, 64) 95 -> 111. On other CPUs blocks are slower.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from ...backend import blas, machine
from .command_list import CommandList

MAX_MULTIPLICATIONS = 10**6  # in a block
MAX_ROWS = 512  # in a block


def pack_weights(weights: np.ndarray) -> np.ndarray:
    """Pack weights (..., K, F) for `matmul`: -> (..., F/b, K, b), or unchanged if blocking does not help."""
    K, F = weights.shape[-2:]
    b = next((b for b in (64, 32, 16) if F % b == 0 and b * K * 16 <= MAX_MULTIPLICATIONS), 0)
    if not b or not blocking_helps():
        return np.ascontiguousarray(weights)
    return np.ascontiguousarray(weights.reshape(*weights.shape[:-1], F // b, b).swapaxes(-2, -3))


def matmul(commands: CommandList, x: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    """Record out (..., P, F) = x (..., P, K) @ weights as `pack_weights` returns them; rows of x and out may be strided."""
    if weights.ndim == x.ndim:
        commands.record(np.matmul, x, weights, out=out)
        return
    P, (count, K, b) = x.shape[-2], weights.shape[-3:]
    height = -(-P // -(-P // min(MAX_ROWS, MAX_MULTIPLICATIONS // (b * K))))
    full = P // height
    for start, stop, n in ((0, full * height, full), (full * height, P, 1)):
        if start < stop:
            rows = x[..., start:stop, :].reshape(*x.shape[:-2], n, 1, -1, K)
            blocks = out[..., start:stop, :].reshape(*out.shape[:-2], n, -1, count, b)
            commands.record(np.matmul, rows, weights[..., None, :, :, :], out=blocks.swapaxes(-2, -3))


@cache
def blocking_helps() -> bool:
    """Return whether BLAS has kernels without packing. Not measured: processes that chose differently would differ in bits."""
    return "AVX-512" in machine.cpu_features() and "openblas" in blas.name().lower()
