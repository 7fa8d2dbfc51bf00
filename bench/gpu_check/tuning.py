"""Autotune a network's convolutions, with the modelled time of each algorithm, and time the plan with the fastest ones."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np

from gpudarknet.plan import cuda
from gpudarknet.plan.cuda import autotune
from gpudarknet.plan.cuda.algorithms import select_algorithm
from gpudarknet.plan.cuda.stream import stream_context
from gpudarknet.plan.cuda.time_model import card_of_device
from gpudarknet.plan.tuning import DEFAULT

from .. import seeded
from .case import Case, Context, Row, Skipped
from .networks import compile_plan, seeded_network
from .speed import IMPLICIT, TOLERANCE, Workload, image_rate, replay_rate, synchronizer, workloads

SECONDS = 7.0  # for the measurements of a case
TIMING = (0.003, 2, 200)  # of a convolution: seconds of a round, rounds, and at most so many calls in a round


def tuned(context: Context) -> Iterable[Case]:
    """List the workloads to autotune."""
    for precision in ("fp16", "tf32"):
        for s in workloads(context, "yolov3", (416,), (precision,), (1, 64)):
            yield Case(f"yolov3/{s}", partial(tune, context, s))


def tune(context: Context, workload: Workload) -> Row:
    """Autotune a network's convolutions, and compare the autotuned plan and that of implicit GEMMs with the heuristic one."""
    network = seeded_network(workload.network, context, workload.size)
    be, precision = network.backend, workload.precision
    if be.cublas is None:
        raise Skipped("use gpudarknet plan -tune for the CPU's algorithms")
    plan, x = compile_plan(network, workload.batch), be.asarray(seeded.network_input(network, workload.batch))
    card = card_of_device(stream_context(be).properties.name)
    choices, measured, modelled = dict[str, str](), dict[str, Row](), dict[str, Row]()
    deadline, complete = time.monotonic() + SECONDS * context.time_scale, True
    for problem in autotune.problems(plan, be, precision):
        key = problem.step.key(plan.batch)
        times, model = dict[str, float](), dict[str, float | None]()
        for name, program in autotune.programs(problem, be):
            times[name] = program.stream_context.time(program.replay, *((0, 1, 1) if context.small else TIMING))
            model[name] = autotune.modelled_seconds(program, card) if card else None
        choices[key] = autotune.pick(times, select_algorithm(problem, {}))
        measured[key], modelled[key] = microseconds(times), microseconds(model)
        if time.monotonic() > deadline:
            complete = False
            break
    row: Row = {
        **workload.fields(),
        "card": card.name if card else None,
        "microseconds": measured,
        "modelled_us": modelled,
        "tuned_for": autotune.device_name(be, precision),
        "choices": choices,
        "complete": complete,
        "failed": [],
    }
    plans = {"heuristic": {}, IMPLICIT: {DEFAULT: "implicit_gemm"}, "autotuned": choices}
    want: list[np.ndarray] = []
    for kind, chosen in plans.items():
        program = cuda.Program(plan, be, precision, network.program_cache.packed_weights, chosen)
        outputs = [be.to_numpy(y) for y in program.run(x)]
        want = want or outputs
        rate = image_rate(lambda: program.run(x), synchronizer(context), workload.batch, context)  # noqa: B023
        difference = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(outputs, want, strict=True))
        row[kind] = {**rate, **replay_rate(program, context), "max_difference": difference}
        if not difference <= 2 * TOLERANCE[precision]:
            row["failed"].append(f"{kind}: {difference:.2g} of the largest value from the heuristic plan")
    return row


def microseconds(times: Mapping[str, float | None]) -> Row:
    """Convert seconds by name."""
    return {name: None if seconds is None else round(1e6 * seconds, 2) for name, seconds in times.items()}
