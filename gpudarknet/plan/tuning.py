"""Measure the ways to convolve on this machine, and remember the fastest: `gpudarknet plan x.cfg -tune`.

Nobody who runs a network waits for this: without measurements `choose` goes by a rule. The choices lie in the cache folder,
by processor, BLAS and threads, and hold for every network that has a convolution of the same shape.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from ..io.atomic import atomic_write
from ..io.download import cache_dir
from ..layers.convolutional import folded
from .cpu.algorithms import METHODS
from .cpu.command_list import team
from .cpu.epilogue import finish
from .steps import Activate, Convolve, Plan

SECONDS = 0.25  # for each shape
FILE = "convolutions.json"


def machine() -> str:
    """Name what a measurement holds for: processor, NumPy and its BLAS, threads."""
    info: Any = np.show_config(mode="dicts")
    blas = info.get("Build Dependencies", {}).get("blas", {}) if isinstance(info, dict) else {}
    parts = (processor(), f"numpy {np.__version__}", blas.get("name"), blas.get("version"), f"{team().size} threads")
    return ", ".join(str(part) for part in parts if part)


@cache
def processor() -> str:
    """Name the processor."""
    about = Path("/proc/cpuinfo")
    if about.exists():
        for line in about.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def read_choices(of: str | None = None) -> dict[str, str]:
    """Return measured choices, a convolution's key -> the name of a method; none if there are none.

    of: the device that they hold for; default: this machine.
    """
    try:
        found = json.loads((cache_dir() / FILE).read_text(encoding="utf-8"))[of or machine()]
        return {str(key): str(name) for key, name in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def write_choices(choices: dict[str, str], of: str | None = None) -> Path:
    """Add choices to those of a device, default this machine; return the file."""
    path = cache_dir() / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    known = known if isinstance(known, dict) else {}
    known[of or machine()] = read_choices(of) | choices
    with atomic_write(path) as tmp:
        tmp.write_text(json.dumps(known, indent=1, sort_keys=True), encoding="utf-8")
    return path


def measure(plan: Plan) -> Iterator[tuple[str, dict[str, float]]]:
    """Time every way to make each different convolution of a plan; yield its key and seconds by method."""
    seen = set()
    for step in plan.steps:
        if isinstance(step, Convolve) and (key := step.key(plan.batch)) not in seen:
            seen.add(key)
            yield key, race(step, plan.batch)


def race(step: Convolve, batch: int) -> dict[str, float]:
    """Return the least seconds that each method takes for a step, in turns, on random maps."""
    rng, workers = np.random.default_rng(0), team()
    (C, H, W), (F, OH, OW) = step.xs[0].shape, step.y.shape
    x, y = rng.random((batch, H, W, C), np.float32), np.empty((batch, OH, OW, F), np.float32)
    epilogue = [a for a in step.epilogue if isinstance(a, Activate)]
    w = folded(step.w)
    best: dict[str, float] = {}
    with workers:
        last = partial(finish, epilogue, y, lambda m: y)
        ready = {name: m.prepare(w["kernel"], w["bias"]) for name, m in METHODS.items() if m.fits(step)}
        ways = workers.settled(
            lambda: {
                name: [workers.record(tasks) for tasks in METHODS[name].bind(step, x, y, weights, last, workers.size)]
                for name, weights in ready.items()
            }
        )
        end = time.perf_counter() + SECONDS * (len(ways) > 1)
        while True:
            for name, phases in ways.items():
                start = time.perf_counter()
                workers.run(phases)
                best[name] = min(best.get(name, np.inf), time.perf_counter() - start)
            if time.perf_counter() >= end:
                return best
