"""Products of matrices in blocks that BLAS multiplies without packing them first.

A gemm copies both matrices into an order of its own before it multiplies. That pays for large square ones; here one side
is often narrow (the 49 tiles of a 13 x 13 map), and copying the weights takes as long as using them. OpenBLAS on AVX-512
has kernels without that copy for products of at most 10^6 multiplications; NumPy's matmul runs a stack of such blocks in
one call. Measured on one core of a Zen 4: (1024, 512) @ (512, 49) 68 -> 87 GFLOP/s, (256, 128) @ (128, 49) 56 -> 109,
the Winograd transforms 58 -> 97. Elsewhere blocks only cost, so a short race, once per process, decides.
"""

from __future__ import annotations

import time
from functools import cache

import numpy as np

LIMIT = 10**6  # multiplications in a block
WIDEST = 512  # columns in a block


def pack(weights: np.ndarray) -> np.ndarray:
    """Order weights (..., F, K) for `multiply`: -> (..., F/b, K, b), or as they are where blocks do not pay."""
    F, K = weights.shape[-2:]
    b = next((b for b in (32, 16) if F % b == 0 and b * K * 48 <= LIMIT), 0)
    if not b or not blocks_pay():
        return weights
    parts = weights.reshape(*weights.shape[:-2], F // b, b, K)
    return np.ascontiguousarray(parts.swapaxes(-1, -2))


def multiply(weights: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
    """out (..., F, L) = weights @ x (..., K, L), weights as `pack` has them; rows of x and out may lie apart."""
    if weights.ndim == x.ndim:
        np.matmul(weights, x, out=out)
        return
    (K, b), L = weights.shape[-2:], x.shape[-1]
    wide = min(WIDEST, LIMIT // (b * K))
    count = -(-L // wide)
    each = -(-L // count)
    stack = weights.swapaxes(-1, -2)[..., None, :, :]
    whole = L // each
    edges = [(0, whole * each, whole)] + ([(whole * each, L, 1)] if whole * each < L else [])
    for start, stop, n in edges:
        columns = x[..., start:stop].reshape(*x.shape[:-1], n, -1)
        columns = columns.swapaxes(-2, -3)[..., None, :, :, :]
        place = out[..., start:stop].reshape(*out.shape[:-2], -1, b, n, (stop - start) // n)
        np.matmul(stack, columns, out=place.swapaxes(-2, -3))


def transform(matrix: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
    """out (M, L) = matrix (M, K) @ x (K, L) for a small matrix, in blocks of columns where that pays."""
    L = x.shape[1]
    whole = L // WIDEST if blocks_pay() else 0
    if whole:
        columns = x[:, : whole * WIDEST].reshape(len(x), whole, WIDEST).transpose(1, 0, 2)
        place = out[:, : whole * WIDEST].reshape(len(out), whole, WIDEST).transpose(1, 0, 2)
        np.matmul(matrix, columns, out=place)
    if whole * WIDEST < L:
        np.matmul(matrix, x[:, whole * WIDEST :], out=out[:, whole * WIDEST :])


@cache
def blocks_pay() -> bool:
    """Race a product in blocks against the same in one gemm, for some milliseconds."""
    rng = np.random.default_rng(0)
    weights, x = rng.random((256, 128), np.float32), rng.random((128, 49), np.float32)
    stack = np.ascontiguousarray(weights.reshape(8, 32, 128).transpose(0, 2, 1)).transpose(0, 2, 1)
    out, fastest = np.empty((256, 49), np.float32), {True: np.inf, False: np.inf}
    for _ in range(12):
        for blocks, a, c in ((True, stack, out.reshape(8, 32, 49)), (False, weights, out)):
            start = time.perf_counter()
            for _ in range(4):
                np.matmul(a, x, out=c)
            fastest[blocks] = min(fastest[blocks], time.perf_counter() - start)
    return fastest[True] < fastest[False]
