"""Products of matrices in blocks that BLAS multiplies without packing them first.

A gemm copies both matrices into an order of its own before it multiplies. That pays for large square ones; here one side
is often short (the 49 tiles of a 13 x 13 map), and copying the weights takes as long as using them. OpenBLAS on AVX-512
has kernels without that copy for products of at most 10^6 multiplications; NumPy's matmul runs a stack of such blocks in
one call. Measured on one core of a Zen 4: (16, 512) @ (512, 512) 64 -> 113 GFLOP/s, (49, 512) @ (512, 512) 88 -> 110,
(1000, 64) @ (64, 64) 95 -> 111. Elsewhere blocks only cost, so a short race, once per process, decides.
"""

from __future__ import annotations

import time
from functools import cache

import numpy as np

from .command_list import Tape

LIMIT = 10**6  # multiplications in a block
TALLEST = 512  # rows in a block


def pack(weights: np.ndarray) -> np.ndarray:
    """Order weights (..., K, F) for `multiply`: -> (..., F/b, K, b), or as they are where blocks do not pay."""
    K, F = weights.shape[-2:]
    b = next((b for b in (64, 32, 16) if F % b == 0 and b * K * 16 <= LIMIT), 0)
    if not b or not blocks_pay():
        return np.ascontiguousarray(weights)
    return np.ascontiguousarray(weights.reshape(*weights.shape[:-1], F // b, b).swapaxes(-2, -3))


def multiply(tape: Tape, x: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    """Record out (..., P, F) = x (..., P, K) @ weights, which are as `pack` has them; rows of x and out may lie apart."""
    if weights.ndim == x.ndim:
        tape(np.matmul, x, weights, out=out)
        return
    P, (count, K, b) = x.shape[-2], weights.shape[-3:]
    each = -(-P // -(-P // min(TALLEST, LIMIT // (b * K))))
    whole = P // each
    for start, stop, n in ((0, whole * each, whole), (whole * each, P, 1)):
        if start < stop:
            rows = x[..., start:stop, :].reshape(*x.shape[:-2], n, 1, -1, K)
            place = out[..., start:stop, :].reshape(*out.shape[:-2], n, -1, count, b)
            tape(np.matmul, rows, weights[..., None, :, :, :], out=place.swapaxes(-2, -3))


@cache
def blocks_pay() -> bool:
    """Race a product in blocks against the same in one gemm, for some milliseconds."""
    rng = np.random.default_rng(0)
    x, weights = rng.random((49, 128), np.float32), rng.random((128, 256), np.float32)
    stack = np.ascontiguousarray(weights.reshape(128, 8, 32).swapaxes(0, 1))
    out, fastest = np.empty((49, 256), np.float32), {True: np.inf, False: np.inf}
    place = out.reshape(49, 8, 32).swapaxes(0, 1)
    for _ in range(12):
        for blocks, w, y in ((True, stack, place), (False, weights, out)):
            start = time.perf_counter()
            for _ in range(4):
                np.matmul(x, w, out=y)
            fastest[blocks] = min(fastest[blocks], time.perf_counter() - start)
    return fastest[True] < fastest[False]
