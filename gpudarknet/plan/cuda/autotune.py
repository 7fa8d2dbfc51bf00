"""Time the convolution algorithms on a GPU and choose the fastest: `gpudarknet plan x.cfg -tune`.

Tuning never runs implicitly: a network has 15 to 40 different convolutions with up to a dozen candidates each, and every one is a
program, captured and replayed; together that takes seconds. Without measurements a rule chooses (algorithms.py). The choices
are stored with the CPU's, by GPU, cuBLAS, precision and a hash of the kernels.

A benchmark runs one convolution alone. It does not measure what im2col fusion and horizontally fused gemms save, so an algorithm
other than the rule's is chosen only if it is faster by MIN_SPEEDUP.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ...backend import Backend
from ...backend import cuda as kernels
from ...errors import BackendError
from ..steps import Activate, Convolve, FeatureMap, Plan
from .algorithms import ALGORITHMS, ConvProblem, implicit_gemms, select_algorithm, supported
from .canonicalize import canonicalize
from .cost_report import total
from .program import Program
from .schedule import eliminate_dead_steps
from .stream import stream_context
from .time_model import Card

# The files that convolutions launch kernels of: a change of one can make another algorithm the fastest
KERNEL_FILES = ("direct", "epilogue", "epilogue_pool", "image_gemm", "implicit_gemm", "nhwc", "winograd")
IMPLICIT_GEMMS = 6  # of a convolution that are benchmarked: those that the time model finds fastest
MIN_SECONDS = 0.01  # of a round
ROUNDS = 3
MAX_CALLS = 200  # of a round
MIN_SPEEDUP = 1 / 0.9  # over the rule's algorithm


def gpu_name(be: Backend) -> str:
    """Return the name of the current device; without one, the backend's."""
    context = stream_context(be)
    return be.name if context.cuda is None else context.properties.name


def device_name(be: Backend, precision: str) -> str:
    """Return the conditions under which a measurement is valid: GPU, cuBLAS, precision and kernels."""
    version = stream_context(be).handle.version()
    return conditions(f"{gpu_name(be)}, cuBLAS {version // 10000}.{version // 100 % 100}.{version % 100}", precision)


def conditions(device: str, precision: str) -> str:
    """Return the conditions of measurements on a device; without its version of cuBLAS only shipped ones apply."""
    used = tuple(file for file in kernels.files() if file in KERNEL_FILES)
    return f"{device}, {precision}, kernels {kernels.version(used)}"


def measure(plan: Plan, be: Backend, precision: str) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Benchmark each distinct convolution of a plan with a choice; yield its key, the choice, seconds by algorithm."""
    for problem in problems(plan, be, precision):
        times = {name: seconds(program) for name, program in programs(problem, be)}
        yield problem.step.key(plan.batch), pick(times, select_algorithm(problem, {})), times


def problems(plan: Plan, be: Backend, precision: str) -> Iterator[ConvProblem]:
    """Yield each distinct convolution of a plan that several algorithms can solve."""
    seen = set()
    for step in eliminate_dead_steps(canonicalize(plan, be)):
        if isinstance(step, Convolve) and (key := step.key(plan.batch)) not in seen:
            seen.add(key)
            problem = ConvProblem(step, plan.batch, precision, stream_context(be).properties)
            if len(candidates(problem)) > 1:
                yield problem


def candidates(problem: ConvProblem) -> list[str]:
    """Return the names of the algorithms to benchmark."""
    likely = implicit_gemms(problem)[:IMPLICIT_GEMMS]
    return [name for name in supported(problem) if name in likely or ALGORITHMS[name].weight_layout != "implicit_gemm"]


def pick(times: dict[str, float], rule: str) -> str:
    """Return the fastest algorithm, or the rule's unless that is clearly slower."""
    best = min(times, key=times.__getitem__)
    return best if rule not in times or times[best] * MIN_SPEEDUP < times[rule] else rule


def programs(problem: ConvProblem, be: Backend) -> Iterator[tuple[str, Program]]:
    """Yield a program of the convolution alone for each candidate, after a first run, except those that run out of memory."""
    step, batch = problem.step, problem.batch
    x, y = FeatureMap(step.xs[0].shape), FeatureMap(step.y.shape)
    alone = replace(step, xs=(x,), y=y, epilogue=[a for a in step.epilogue if isinstance(a, Activate)])
    # The input is an output too: so it stays live, and is a map like those between steps.
    plan = Plan(batch, x, {}, 0, 0, 0, outputs=(y, x), steps=[alone])
    images = be.empty((batch, *x.shape))
    images[:] = be.asarray(np.random.default_rng(0).random(x.shape, np.float32))
    packed_weights = dict[Any, Any]()
    for algorithm in candidates(problem):
        try:
            program = Program(plan, be, problem.precision, packed_weights, {step.key(batch): algorithm})
            program.run(images)  # captures it, and fills its input
        except BackendError:
            continue
        yield algorithm, program


def seconds(program: Program) -> float:
    """Return the shortest time of a replay in seconds."""
    return program.stream_context.time(program.replay, MIN_SECONDS, ROUNDS, MAX_CALLS)


def modelled_seconds(program: Program, card: Card) -> float | None:
    """Return the modelled time of a replay on a card; None if a step is a fallback layer. The program may be a dry run's."""
    return total(t for t in program.launch_times(card) if t.in_graph).modelled
