"""Benchmark the convolution algorithms on this machine: `gpudarknet plan x.cfg -tune`.

Tuning never runs implicitly. Without measurements `select_algorithm` uses a rule.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import numpy as np

from ...backend import machine
from ...backend.threads import Stage
from ...layers.convolutional import fold_batch_norm
from ..steps import Activate, Convolve, Plan
from .algorithms import ALGORITHMS
from .command_list import command_queue
from .epilogue import bind_epilogue

SECONDS = 0.25  # for each convolution


def device_name() -> str:
    """Return the conditions under which a measurement is valid: processor, NumPy and its BLAS, number of threads."""
    parts = (machine.processor(), f"numpy {np.__version__}", *machine.numpy_blas(), f"{command_queue().size} threads")
    return ", ".join(filter(None, parts))


def measure(plan: Plan) -> Iterator[tuple[str, dict[str, float]]]:
    """Benchmark every distinct convolution of a plan; yield its key and the seconds by algorithm."""
    seen = set()
    for step in plan.steps:
        if isinstance(step, Convolve) and (key := step.key(plan.batch)) not in seen:
            seen.add(key)
            yield key, benchmark(step, plan.batch)


def benchmark(step: Convolve, batch: int) -> dict[str, float]:
    """Return the shortest time in seconds of each algorithm for a step, on random maps. Algorithms are interleaved."""
    rng, queue = np.random.default_rng(0), command_queue()
    (C, H, W), (F, OH, OW) = step.xs[0].shape, step.y.shape
    x, y = rng.random((batch, H, W, C), np.float32), np.empty((batch, OH, OW, F), np.float32)
    ops = [op for op in step.epilogue if isinstance(op, Activate)]
    w = fold_batch_norm(step.w)
    best: dict[str, float] = {}
    with queue:
        epilogue = partial(bind_epilogue, ops, y, lambda m: y)
        packed = {name: a.pack_weights(w["kernel"], w["bias"]) for name, a in ALGORITHMS.items() if a.supports(step)}

        def record() -> dict[str, list[Stage]]:
            return {
                name: [
                    queue.record_stage(tasks)
                    for tasks in ALGORITHMS[name].make_tasks(step, x, y, weights, epilogue, queue.size)
                ]
                for name, weights in packed.items()
            }

        candidates = queue.record_until_stable(record)
        end = time.perf_counter() + SECONDS * (len(candidates) > 1)
        while True:
            for name, stages in candidates.items():
                start = time.perf_counter()
                queue.run(stages)
                best[name] = min(best.get(name, np.inf), time.perf_counter() - start)
            if time.perf_counter() >= end:
                return best
