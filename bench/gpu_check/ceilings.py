"""Measure the machine's roofline ceilings: copies to, from and on the device, and square gemms."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from gpudarknet.backend import Backend

from .case import Case, Context, Row, wait

SIDE = 8192  # of the gemm's matrices
BYTES = 1 << 28  # of the copies


def seconds(be: Backend, call: Callable[[], object], calls: int, rounds: int = 7) -> float:
    """Return the median time of a call, over rounds of `calls` calls with one synchronization each, after a warm-up."""
    times = []
    for _ in range(rounds + 1):
        wait(be)
        start = time.perf_counter()
        for _ in range(calls):
            call()
        wait(be)
        times.append((time.perf_counter() - start) / calls)
    return statistics.median(times[1:])


def copies(context: Context) -> Iterable[Case]:
    """List copies, and gemm in fp32 and fp16."""
    yield Case("copies", partial(copy_rates, context))
    for dtype in ("float32", "float16"):
        yield Case(f"gemm/{dtype}", partial(gemm, context, dtype))


def tf32(context: Context) -> Iterable[Case]:
    """List gemm in tf32, which CuPy's variable CUPY_TF32 enables for a process."""
    yield Case("gemm", partial(gemm, context, "float32"))


def copy_rates(context: Context) -> Row:
    """Measure copies on the device, to it and from it, in GB/s (on the device: bytes read plus written)."""
    be, numpy = context.be, context.backend == "numpy"
    host = np.ones((1 << 16 if context.small else BYTES) // 4, np.float32)
    a, b = be.asarray(host), be.empty(host.shape)

    def on_device() -> None:
        b[...] = a

    size, rounds = host.nbytes / 1e9, 2 if context.small else 7
    return {
        "on_device_gb_s": 2 * size / seconds(be, on_device, 10, rounds),
        "to_device_gb_s": size / seconds(be, lambda: be.xp.asarray(host.copy() if numpy else host), 1, rounds),
        "from_device_gb_s": size / seconds(be, lambda: be.to_numpy(a).copy() if numpy else be.to_numpy(a), 1, rounds),
        "bytes": host.nbytes,
        "note": "host memory is pageable, like users' arrays",
    }


def gemm(context: Context, dtype: str) -> Row:
    """Measure a square gemm of a storage type with the backend's BLAS."""
    be, n = context.be, 64 if context.small else SIDE
    rng = np.random.default_rng(0)
    a, b = (be.asarray(rng.random((n, n), dtype=np.float32) - 0.5).astype(dtype) for _ in range(2))
    c = be.xp.matmul(a, b)
    rows = slice(0, 4)
    want = be.to_numpy(a[rows]).astype(np.float64) @ be.to_numpy(b).astype(np.float64)
    error = float(np.abs(be.to_numpy(c[rows]) - want).max() / want.std())
    elapsed = seconds(be, lambda: be.xp.matmul(a, b), 5, 1 if context.small else 7)
    limit = 1e-2 if dtype == "float16" or os.environ.get("CUPY_TF32") == "1" else 1e-4
    failed = [] if error <= limit else [f"error {error:.2g} standard deviations"]
    return {"n": n, "tflop_s": 2e-12 * n**3 / elapsed, "error": error, "failed": failed}
