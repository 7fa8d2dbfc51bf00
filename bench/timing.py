"""Measure calls: the time that passed (wall clock) and the time that processors worked (CPU time), side by side.

One without the other misleads: `clock()` in C, and with it Darknet's old timer, counts CPU time, which two busy threads
double and a wait leaves out. The clocks are arguments so that tests can say what time it is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

Clock = Callable[[], float]
FEWEST = 3  # timed calls, however long one takes: a median of less is not one


@dataclass
class Sample:
    """Timed calls: seconds of wall clock and of CPU time for each."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, other: Sample) -> None:
        """Append another's calls."""
        self.wall += other.wall
        self.cpu += other.cpu


@dataclass(frozen=True)
class Spread:
    """The middle of some numbers, and what one in ten lies below and above."""

    median: float
    p10: float
    p90: float


def spread(numbers: Sequence[float]) -> Spread:
    """Return median, 10th and 90th percentile. Raises ValueError for no numbers."""
    if not len(numbers):
        raise ValueError("a median of no numbers")
    p10, median, p90 = np.percentile(np.asarray(numbers, np.float64), (10, 50, 90))
    return Spread(float(median), float(p10), float(p90))


def cpu_time() -> float:
    """Return the seconds that processors have worked for this process, all threads, and for children that have ended."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def measure(
    call: Callable[[], object],
    seconds: float = 0.0,
    fewest: int = 1,
    wall: Clock = time.perf_counter,
    cpu: Clock = cpu_time,
) -> Sample:
    """Call again and again until `seconds` have passed and `fewest` calls are done; return the time of each."""
    sample, begin = Sample(), wall()
    while len(sample.wall) < fewest or wall() - begin < seconds:
        cpu_before, before = cpu(), wall()
        call()
        after, cpu_after = wall(), cpu()
        sample.wall.append(after - before)
        sample.cpu.append(cpu_after - cpu_before)
    return sample
