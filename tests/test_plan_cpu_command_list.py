"""The team that runs plans on the CPU: work is shared out, every phase waits for the one before, and errors come back."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from gpudarknet.backend.threads import ThreadPool, available_cores
from gpudarknet.plan.cpu.command_list import Team


def task(call, *args):
    return lambda tape: tape(call, *args)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_phases_follow_each_other(size):
    team, done = Team(ThreadPool(size)), []
    rounds = 40
    with team:
        for k in range(rounds):
            team.run([team.record([task(done.append, (k, phase))] * (1 + phase)) for phase in range(4)])
    assert done == [(k, phase) for k in range(rounds) for phase in range(4) for _ in range(1 + phase)]


def test_workers_may_have_nothing_to_do():
    team, done = Team(ThreadPool(3)), []
    with team:
        for k in range(200):
            team.run([team.record([task(done.append, k)] * (1 + k % 3))])
    assert done == [k for k in range(200) for _ in range(1 + k % 3)]


def test_neighbours_go_to_one_worker():
    team, found = Team(ThreadPool(2)), {}
    names = [task(lambda k=k: found.update({k: threading.current_thread().name})) for k in range(6)]
    with team:
        team.run([team.record(names)])
    assert len({found[k] for k in range(3)}) == len({found[k] for k in range(3, 6)}) == 1
    assert found[0] != found[5]


def test_an_error_reaches_the_caller_and_ends_the_work():
    team, done = Team(ThreadPool(2)), []

    def broken():
        raise ValueError("broken")

    with team:
        phases = [team.record([task(broken)] * 3), team.record([task(done.append, 1)] * 5)]
        with pytest.raises(ValueError, match="broken"):
            team.run(phases)
        assert done == []
        team.run(phases[1:])
    assert len(done) == 5


def test_an_interrupted_caller_waits_for_the_workers():
    team, done = Team(ThreadPool(2)), []

    class Interrupted:
        """A lock whose first wait is cut off, as by Ctrl-C."""

        def __init__(self, lock):
            self.lock, self.cut = lock, False

        def acquire(self):
            if not self.cut:
                self.cut = True
                raise KeyboardInterrupt
            return self.lock.acquire()

        def release(self):
            self.lock.release()

    with team:
        team.crew._done[1] = Interrupted(team.crew._done[1])
        slow = team.record([task(time.sleep, 0.05)] * 2)
        with pytest.raises(KeyboardInterrupt):
            team.run([slow, team.record([task(done.append, 1)] * 2)])
        team.run([team.record([task(done.append, 2)] * 2)])
    assert done == [2, 2]


def test_scratch_is_settled_before_it_is_used():
    team = Team(ThreadPool(1))
    first, second = team.settled(lambda: (team.scratch(0, "a", 10), team.scratch(0, "a", 5, 4)))
    assert np.shares_memory(first, second) and second.shape == (5, 4) and team.scratch_bytes == 80


def test_a_container_may_have_fewer_cores(tmp_path):
    quota = tmp_path / "cpu.max"
    quota.write_text("100000 100000\n")
    assert available_cores(quota) == 1
    quota.write_text("50000 100000\n")
    assert available_cores(quota) == 1
    quota.write_text("max 100000\n")
    assert available_cores(quota) == available_cores(tmp_path / "none") >= 1
