"""Command lists: a plan's NumPy calls, recorded once and replayed by the thread pool for every image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from math import prod
from typing import ParamSpec, TypeVar

import numpy as np

from ...backend.threads import Stage, ThreadPool, thread_pool

P = ParamSpec("P")
T = TypeVar("T")


class CommandList:
    """The commands of one worker in one stage: NumPy calls whose arguments, views included, are made while recording."""

    def __init__(self, queue: CommandQueue, worker: int):
        self._queue, self._worker = queue, worker
        self.commands: list[Callable[[], object]] = []

    def record(self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Record a call."""
        self.commands.append(partial(function, *args, **kwargs))

    def scratch(self, name: str, *shape: int) -> np.ndarray:
        """Return an uninitialized float32 array of this worker's; every task gets the same memory for a name."""
        return self._queue.scratch(self._worker, name, *shape)

    def shared(self, name: str, *shape: int) -> np.ndarray:
        """Like `scratch`, but the same memory for all workers: one stage passes it to the next."""
        return self._queue.scratch(0, f"shared {name}", *shape)


Task = Callable[[CommandList], None]  # records the commands of one piece of work, for any worker
TaskStages = list[list[Task]]  # a stage starts when the previous one has finished


class CommandQueue:
    """Records tasks into command lists and runs them on a thread pool; owns the workers' scratch. Use it inside `with queue:`.

    A replayed call has its arguments ready, so a worker holds the interpreter lock only briefly between two NumPy calls, and
    the others rarely wait for it. single: a stage has one list, for any one worker.
    """

    def __init__(self, pool: ThreadPool, single: bool = False):
        self.pool, self.run, self.single = pool, pool.run_stages, single
        self.scratch_grew = False  # set when scratch is reallocated; earlier recordings then use the old memory
        self._scratch: dict[tuple[int, str], np.ndarray] = {}

    @property
    def size(self) -> int:
        """The number of workers; lists are recorded for one number."""
        return 1 if self.single else self.pool.size

    def __enter__(self) -> CommandQueue:
        self.pool.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self.pool.__exit__(*exc)

    def record_stage(self, tasks: Sequence[Task]) -> Stage:
        """Record tasks into one command list per worker. Neighbors go to the same worker, whose cache may hold their input."""
        count, stage = len(tasks), []
        for worker in range(self.size):
            commands = CommandList(self, worker)
            for task in tasks[count * worker // self.size : count * (worker + 1) // self.size]:
                task(commands)
            stage.append(commands.commands)
        return stage

    def scratch(self, worker: int, name: str, *shape: int) -> np.ndarray:
        """Return an uninitialized float32 array of a worker's; the memory stays the same until a larger array is requested."""
        n = prod(shape)
        memory = self._scratch.get((worker, name))
        if memory is None or memory.size < n:
            memory = self._scratch[worker, name] = np.empty(n, np.float32)
            self.scratch_grew = True
        return memory[:n].reshape(shape)

    def record_until_stable(self, record: Callable[[], T]) -> T:
        """Return the result of `record`, repeated until scratch no longer grows, so that all of it uses the same memory."""
        while True:
            self.scratch_grew = False
            recorded = record()
            if not self.scratch_grew:
                return recorded

    @property
    def scratch_bytes(self) -> int:
        """The size of all workers' scratch, which all networks share."""
        return sum(a.nbytes for a in self._scratch.values())


@cache
def command_queue() -> CommandQueue:
    """Return this process's queue."""
    return CommandQueue(thread_pool())


@cache
def worker_queue(worker: int) -> CommandQueue:
    """Return the queue that records what one worker computes alone."""
    return CommandQueue(thread_pool(), single=True)
