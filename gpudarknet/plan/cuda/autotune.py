"""Measure the ways to convolve on a GPU, and remember the fastest, as tune.py does for the CPU: `gpudarknet plan x.cfg -tune`.

Nobody who runs a network waits for this: a network has 15 to 40 different convolutions, each of them up to six ways, and every
way is a program of its own, captured and replayed; together some seconds. Without measurements a rule chooses (ways.py). The
choices lie beside the CPU's, by GPU, cuBLAS and precision.

A race sees a convolution alone. What patches save where the step before writes them, and what a gemm saves that does two
convolutions, it does not see; so another way than the rule's is taken only where it is clearly faster (CLEARLY).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ...backend import Backend
from ...errors import BackendError
from ..steps import Activate, Convolve, FeatureMap, Plan
from .algorithms import Case, choose, possible
from .canonicalize import as_convolutions
from .program import Program
from .schedule import living
from .stream import stream_context

SECONDS = 0.01  # for each of ROUNDS
ROUNDS = 3
MOST = 200  # replays in a round
CLEARLY = 0.9  # of the time that the rule's way takes


def device(be: Backend, precision: str) -> str:
    """Name what a measurement holds for: the GPU, cuBLAS and the precision."""
    own = stream_context(be)
    name = be.name
    if own.cuda is not None:
        name = own.cuda.runtime.getDeviceProperties(own.cuda.Device().id)["name"].decode()
    version = own.handle.version()
    return f"{name}, cuBLAS {version // 10000}.{version // 100 % 100}.{version % 100}, {precision}"


def measure(plan: Plan, be: Backend, precision: str) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Time the ways to make each different convolution of a plan that has several; yield its key, the choice, seconds by way."""
    seen = set()
    for step in living(as_convolutions(plan, be)):
        if isinstance(step, Convolve) and (key := step.key(plan.batch)) not in seen:
            seen.add(key)
            case = Case(step, plan.batch, 2 if precision == "fp16" else 4)
            if len(possible(case)) > 1:
                times = race(case, be, precision)
                yield key, fastest(times, choose(case, precision, {})), times


def fastest(times: dict[str, float], rule: str) -> str:
    """Return the fastest way, but the rule's unless it is clearly slower."""
    best = min(times, key=times.__getitem__)
    return best if rule not in times or times[best] < CLEARLY * times[rule] else rule


def race(case: Case, be: Backend, precision: str) -> dict[str, float]:
    """Return the least seconds that each way takes; one for which memory does not suffice is left out."""
    step = case.step
    x, y = FeatureMap(step.xs[0].shape), FeatureMap(step.y.shape)
    alone = replace(step, xs=(x,), y=y, epilogue=[a for a in step.epilogue if isinstance(a, Activate)])
    # The input is an output too: so it stays, and is a map like those between steps.
    plan = Plan(case.batch, x, (y, x), [alone], offsets={}, arena_size=0, peak_live=0, flops=0)
    numbers = np.random.default_rng(0).random((case.batch, *x.shape), np.float32)
    there, prepared, times = be.asarray(numbers), dict[Any, Any](), dict[str, float]()
    for way in possible(case):
        try:
            program = Program(plan, be, precision, prepared, {step.key(case.batch): way})
            program.run(there)  # captures it, and fills its input
            times[way] = program.stream_context.time(program.replay, SECONDS, ROUNDS, MOST)
        except BackendError:
            continue
    return times
