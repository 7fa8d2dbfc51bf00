"""Measure every convolution algorithm for one network, and time the plan that follows the fastest."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial

import numpy as np

from gpudarknet.plan import cuda
from gpudarknet.plan.cuda import autotune

from .. import seeded
from .case import Case, Context, Row, Skipped
from .networks import opened, planned
from .speed import TOLERANCE, Subject, image_rate, replayed, subjects, wait_for

SECONDS = 4.0  # for the measurements of a case


def tuned(context: Context) -> Iterable[Case]:
    """List what is tuned."""
    for precision in ("fp16", "fp32"):
        for s in subjects(context, "yolov3", (416,), (precision,), (1, 8)):
            yield Case(f"yolov3/{s}", partial(tune, context, s))


def tune(context: Context, subject: Subject) -> Row:
    """Measure a network's convolutions, and compare the plan that follows the measurements with the one by rule."""
    network = opened(subject.network, context, subject.size)
    be, precision = network.backend, subject.precision
    if be.cublas is None:
        raise Skipped("the CPU's algorithms are measured by gpudarknet plan -tune")
    plan, x = planned(network, subject.batch), be.asarray(seeded.picture(network, subject.batch))
    choices: dict[str, str] = {}
    microseconds: Row = {}
    until, whole = time.monotonic() + SECONDS * context.time_scale, True
    for key, choices[key], times in autotune.measure(plan, be, precision):
        microseconds[key] = {name: round(1e6 * seconds, 2) for name, seconds in times.items()}
        if time.monotonic() > until:
            whole = False
            break
    row: Row = {
        **subject.fields(),
        "microseconds": microseconds,
        "choices": choices,
        "all_measured": whole,
        "failed": [],
    }
    outputs = []
    for kind, chosen in (("rule", {}), ("measured", choices)):
        program = cuda.Program(plan, be, precision, network.program_cache.packed_weights, chosen)
        outputs.append([be.to_numpy(y) for y in program.run(x)])
        rate = image_rate(lambda: program.run(x), wait_for(context), subject.batch, context)  # noqa: B023
        row[kind] = rate | replayed(program, context)
    row["apart"] = max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(*outputs, strict=True))
    if not row["apart"] <= 2 * TOLERANCE[precision]:
        row["failed"].append(f"{row['apart']:.2g} of the largest number between rule and measurement")
    return row
