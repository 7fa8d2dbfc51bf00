"""Time calls: elapsed time (wall clock) and CPU time together.

One without the other misleads: C's `clock()`, which Darknet's old timer used, counts CPU time, which doubles with two busy
threads and excludes waits. The clocks are arguments, so that tests can replace them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

Clock = Callable[[], float]
MIN_CALLS = 3  # timed calls, however long one takes; fewer give no useful median


@dataclass
class Sample:
    """Timed calls: seconds of wall-clock and of CPU time for each."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, other: Sample) -> None:
        """Append another's calls."""
        self.wall += other.wall
        self.cpu += other.cpu


@dataclass(frozen=True)
class Quantiles:
    """Median, 10th and 90th percentile."""

    median: float
    p10: float
    p90: float


def quantiles(values: Sequence[float]) -> Quantiles:
    """Return median, 10th and 90th percentile. Raises ValueError for an empty sequence."""
    if not len(values):
        raise ValueError("no values to take quantiles of")
    p10, median, p90 = np.percentile(np.asarray(values, np.float64), (10, 50, 90))
    return Quantiles(float(median), float(p10), float(p90))


def cpu_time() -> float:
    """Return the CPU seconds of this process, all threads, and of children that have ended."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def measure(
    call: Callable[[], object],
    seconds: float = 0.0,
    min_calls: int = 1,
    wall: Clock = time.perf_counter,
    cpu: Clock = cpu_time,
) -> Sample:
    """Repeat a call until `seconds` have passed and at least `min_calls` calls are done; return the time of each."""
    sample, begin = Sample(), wall()
    while len(sample.wall) < min_calls or wall() - begin < seconds:
        cpu_before, before = cpu(), wall()
        call()
        after, cpu_after = wall(), cpu()
        sample.wall.append(after - before)
        sample.cpu.append(cpu_after - cpu_before)
    return sample
