"""Autotune a network's convolutions, and time the plan with the fastest algorithms."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial

import numpy as np

from gpudarknet.plan import cuda
from gpudarknet.plan.cuda import autotune

from .. import seeded
from .case import Case, Context, Row, Skipped
from .networks import compile_plan, seeded_network
from .speed import TOLERANCE, Workload, image_rate, replay_rate, synchronizer, workloads

SECONDS = 4.0  # for the measurements of a case


def tuned(context: Context) -> Iterable[Case]:
    """List the workloads to autotune."""
    for precision in ("fp16", "fp32"):
        for s in workloads(context, "yolov3", (416,), (precision,), (1, 8)):
            yield Case(f"yolov3/{s}", partial(tune, context, s))


def tune(context: Context, workload: Workload) -> Row:
    """Autotune a network's convolutions, and compare the autotuned plan with the heuristic one."""
    network = seeded_network(workload.network, context, workload.size)
    be, precision = network.backend, workload.precision
    if be.cublas is None:
        raise Skipped("use gpudarknet plan -tune for the CPU's algorithms")
    plan, x = compile_plan(network, workload.batch), be.asarray(seeded.network_input(network, workload.batch))
    choices: dict[str, str] = {}
    microseconds: Row = {}
    deadline, complete = time.monotonic() + SECONDS * context.time_scale, True
    for key, choices[key], times in autotune.measure(plan, be, precision):
        microseconds[key] = {name: round(1e6 * seconds, 2) for name, seconds in times.items()}
        if time.monotonic() > deadline:
            complete = False
            break
    row: Row = {
        **workload.fields(),
        "microseconds": microseconds,
        "tuned_for": autotune.device_name(be, precision),
        "choices": choices,
        "complete": complete,
        "failed": [],
    }
    outputs = []
    for kind, chosen in (("heuristic", {}), ("autotuned", choices)):
        program = cuda.Program(plan, be, precision, network.program_cache.packed_weights, chosen)
        outputs.append([be.to_numpy(y) for y in program.run(x)])
        rate = image_rate(lambda: program.run(x), synchronizer(context), workload.batch, context)  # noqa: B023
        row[kind] = rate | replay_rate(program, context)
    row["max_difference"] = max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(*outputs, strict=True))
    if not row["max_difference"] <= 2 * TOLERANCE[precision]:
        row["failed"].append(f"{row['max_difference']:.2g} of the largest value between heuristic and autotuned plan")
    return row
