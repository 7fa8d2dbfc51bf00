"""Timing is correct: with fake clocks, and with workloads of known duration."""

from __future__ import annotations

import threading
import time

import pytest

from gpudarknet.bench import timing


class Clocks:
    """A wall clock and a CPU clock that advance only when a workload moves them."""

    def __init__(self) -> None:
        self.wall = self.cpu = 100.0

    def work(self, wall: float, cpu: float) -> None:
        self.wall += wall
        self.cpu += cpu


def measured(work, seconds=0.0, min_calls=1):
    clocks = Clocks()
    return timing.measure(lambda: work(clocks), seconds, min_calls, lambda: clocks.wall, lambda: clocks.cpu)


def test_each_call_is_timed_on_both_clocks():
    sample = measured(lambda clocks: clocks.work(0.25, 0.5), min_calls=3)
    assert sample.wall == [0.25] * 3
    assert sample.cpu == [0.5] * 3


@pytest.mark.parametrize(("seconds", "min_calls", "calls"), [(0, 1, 1), (1, 1, 4), (1, 6, 6), (1.1, 1, 5)])
def test_it_calls_until_both_time_and_count_are_reached(seconds, min_calls, calls):
    assert len(measured(lambda clocks: clocks.work(0.25, 0.25), seconds, min_calls).wall) == calls


def test_two_busy_threads_use_twice_the_cpu_time_and_a_wait_none():
    both = measured(lambda clocks: clocks.work(wall=2.0, cpu=4.0))
    wait = measured(lambda clocks: clocks.work(wall=2.0, cpu=0.0))
    assert (both.cpu[0] / both.wall[0], wait.cpu[0]) == (2.0, 0.0)


def test_a_sleep_is_measured_within_two_percent_and_uses_no_cpu_time():
    own = []

    def sleep():
        begin = time.perf_counter()
        time.sleep(0.05)
        own.append(time.perf_counter() - begin)  # a busy machine wakes sleepers late, which is not the timer's error

    sample = timing.measure(sleep, min_calls=5)
    assert timing.quantiles(sample.wall).median == pytest.approx(timing.quantiles(own).median, rel=0.02)
    assert min(sample.wall) >= 0.05
    assert timing.quantiles(sample.cpu).median < 0.02


def burn(seconds, clock):
    """Work until the clock has advanced by `seconds`."""
    end = clock() + seconds
    while clock() < end:
        pass


def test_a_busy_loop_of_known_cpu_time_is_measured_within_two_percent():
    sample = timing.measure(lambda: burn(0.1, time.process_time), min_calls=3)
    assert timing.quantiles(sample.cpu).median == pytest.approx(0.1, rel=0.02)


def test_the_cpu_time_of_two_threads_adds_up():
    def both():
        threads = [threading.Thread(target=burn, args=(0.1, time.thread_time)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    cpu = timing.quantiles(timing.measure(both, min_calls=3).cpu).median
    assert cpu == pytest.approx(0.2, rel=0.1)  # 0.2, plus starting and switching threads


def test_quantiles_are_median_and_deciles():
    assert timing.quantiles(range(11)) == timing.Quantiles(5.0, 1.0, 9.0)
    assert timing.quantiles([3.0]) == timing.Quantiles(3.0, 3.0, 3.0)
    with pytest.raises(ValueError, match="no values to take quantiles of"):
        timing.quantiles([])
