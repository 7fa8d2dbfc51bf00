"""Benchmark what every `predict` on a CPU pays for the thread pool, which limits BLAS and restores it; the aim is 20 us.

python -m pytest bench/test_threads.py
"""

from __future__ import annotations

from typing import Any

from gpudarknet.backend.threads import ThreadPool, thread_pool


def enter_and_leave(pool: ThreadPool) -> None:
    """Do what `predict` does around its computation."""
    with pool:
        pass


def test_limit_and_restore_blas(benchmark: Any) -> None:
    """One pass through the pool without work."""
    benchmark(enter_and_leave, thread_pool())
