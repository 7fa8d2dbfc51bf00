"""Timing is right: by clocks that say what the test wants, and by workloads that know how long they took."""

from __future__ import annotations

import threading
import time

import pytest

from gpudarknet.bench import timing


class Clocks:
    """A wall clock and a CPU clock that stand still until a workload moves them."""

    def __init__(self) -> None:
        self.wall = self.cpu = 100.0

    def work(self, wall: float, cpu: float) -> None:
        self.wall += wall
        self.cpu += cpu


def measured(work, seconds=0.0, fewest=1):
    clocks = Clocks()
    return timing.measure(lambda: work(clocks), seconds, fewest, lambda: clocks.wall, lambda: clocks.cpu)


def test_each_call_is_timed_on_both_clocks():
    sample = measured(lambda clocks: clocks.work(0.25, 0.5), fewest=3)
    assert sample.wall == [0.25] * 3
    assert sample.cpu == [0.5] * 3


@pytest.mark.parametrize(("seconds", "fewest", "calls"), [(0, 1, 1), (1, 1, 4), (1, 6, 6), (1.1, 1, 5)])
def test_it_calls_until_both_the_time_and_the_count_are_reached(seconds, fewest, calls):
    assert len(measured(lambda clocks: clocks.work(0.25, 0.25), seconds, fewest).wall) == calls


def test_two_busy_threads_take_twice_the_wall_clock_in_cpu_time_and_a_wait_takes_none():
    both = measured(lambda clocks: clocks.work(wall=2.0, cpu=4.0))
    wait = measured(lambda clocks: clocks.work(wall=2.0, cpu=0.0))
    assert (both.cpu[0] / both.wall[0], wait.cpu[0]) == (2.0, 0.0)


def test_a_sleep_is_measured_within_two_percent_of_what_it_took_and_uses_no_cpu_time():
    own = []

    def sleep():
        begin = time.perf_counter()
        time.sleep(0.05)
        own.append(time.perf_counter() - begin)  # a busy machine wakes sleepers late; that is no fault of the timer

    sample = timing.measure(sleep, fewest=5)
    assert timing.spread(sample.wall).median == pytest.approx(timing.spread(own).median, rel=0.02)
    assert min(sample.wall) >= 0.05
    assert timing.spread(sample.cpu).median < 0.02


def burn(seconds, clock):
    """Work until this clock has moved on by so many seconds."""
    end = clock() + seconds
    while clock() < end:
        pass


def test_a_busy_loop_of_known_cpu_time_is_measured_within_two_percent():
    sample = timing.measure(lambda: burn(0.1, time.process_time), fewest=3)
    assert timing.spread(sample.cpu).median == pytest.approx(0.1, rel=0.02)


def test_the_cpu_time_of_two_threads_adds_up():
    def both():
        threads = [threading.Thread(target=burn, args=(0.1, time.thread_time)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    cpu = timing.spread(timing.measure(both, fewest=3).cpu).median
    assert cpu == pytest.approx(0.2, rel=0.1)  # 0.2 and what starting and switching threads costs


def test_spread_is_median_and_deciles():
    assert timing.spread(range(11)) == timing.Spread(5.0, 1.0, 9.0)
    assert timing.spread([3.0]) == timing.Spread(3.0, 3.0, 3.0)
    with pytest.raises(ValueError, match="a median of no numbers"):
        timing.spread([])
