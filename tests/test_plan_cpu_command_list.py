"""The command queue that runs plans on the CPU: stages run in order, errors reach the caller."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from gpudarknet.backend.threads import ThreadPool
from gpudarknet.plan.cpu.command_list import CommandQueue


def task(call, *args):
    return lambda commands: commands.record(call, *args)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_stages_run_in_order(size):
    queue, done = CommandQueue(ThreadPool(size)), []
    rounds = 40
    with queue:
        for k in range(rounds):
            queue.run([queue.record_stage([task(done.append, (k, stage))] * (1 + stage)) for stage in range(4)])
    assert done == [(k, stage) for k in range(rounds) for stage in range(4) for _ in range(1 + stage)]


def test_workers_may_have_nothing_to_do():
    queue, done = CommandQueue(ThreadPool(3)), []
    with queue:
        for k in range(200):
            queue.run([queue.record_stage([task(done.append, k)] * (1 + k % 3))])
    assert done == [k for k in range(200) for _ in range(1 + k % 3)]


def test_neighbours_go_to_one_worker():
    queue, workers = CommandQueue(ThreadPool(2)), {}
    tasks = [task(lambda k=k: workers.update({k: threading.current_thread().name})) for k in range(6)]
    with queue:
        queue.run([queue.record_stage(tasks)])
    assert len({workers[k] for k in range(3)}) == len({workers[k] for k in range(3, 6)}) == 1
    assert workers[0] != workers[5]


def test_an_error_reaches_the_caller_and_ends_the_work():
    queue, done = CommandQueue(ThreadPool(2)), []

    def broken():
        raise ValueError("broken")

    with queue:
        stages = [queue.record_stage([task(broken)] * 3), queue.record_stage([task(done.append, 1)] * 5)]
        with pytest.raises(ValueError, match="broken"):
            queue.run(stages)
        assert done == []
        queue.run(stages[1:])
    assert len(done) == 5


def test_an_interrupted_caller_waits_for_the_workers():
    queue, done = CommandQueue(ThreadPool(2)), []

    class Interrupted:
        """A lock whose first wait is interrupted, as by Ctrl-C."""

        def __init__(self, lock):
            self.lock, self.interrupted = lock, False

        def acquire(self, blocking=True):
            if not self.interrupted:
                self.interrupted = True
                raise KeyboardInterrupt
            return self.lock.acquire(blocking)

        def release(self):
            self.lock.release()

    with queue:
        queue.pool._done[1] = Interrupted(queue.pool._done[1])
        slow = queue.record_stage([task(time.sleep, 0.05)] * 2)
        with pytest.raises(KeyboardInterrupt):
            queue.run([slow, queue.record_stage([task(done.append, 1)] * 2)])
        queue.run([queue.record_stage([task(done.append, 2)] * 2)])
    assert done == [2, 2]


def test_scratch_is_stable_before_it_is_used():
    queue = CommandQueue(ThreadPool(1))
    first, second = queue.record_until_stable(lambda: (queue.scratch(0, "a", 10), queue.scratch(0, "a", 5, 4)))
    assert np.shares_memory(first, second) and second.shape == (5, 4) and queue.scratch_bytes == 80
