"""The plan's work on all cores: recorded once, then replayed for every image by the threads of `cores`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from math import prod
from typing import Any, TypeVar

import numpy as np

from ...backend.threads import Stage, ThreadPool, thread_pool

T = TypeVar("T")


class Tape:
    """Records what one worker is to do: the calls, with every view made beforehand."""

    def __init__(self, team: Team, worker: int):
        self._team, self._worker = team, worker
        self.calls: list[Callable[[], object]] = []

    def __call__(self, function: Callable[..., object], *args: Any, **more: Any) -> None:
        """Record a call."""
        self.calls.append(partial(function, *args, **more))

    def scratch(self, name: str, *shape: int) -> np.ndarray:
        """Return a float32 array of this worker's, with whatever is in it; it is the same memory for every task."""
        return self._team.scratch(self._worker, name, *shape)

    def shared(self, name: str, *shape: int) -> np.ndarray:
        """As `scratch`, for what one phase leaves to the next: the same memory for all workers."""
        return self._team.scratch(0, f"shared {name}", *shape)


Task = Callable[[Tape], None]  # records a piece of work, which any worker may be given


class Team:
    """A crew that replays what was recorded, and the scratch of its workers. Use it inside `with team:`, as the crew.

    Between two calls of NumPy a worker that has its arguments at hand holds the interpreter's lock so shortly that the others
    seldom wait for it.
    """

    def __init__(self, workers: ThreadPool):
        self.crew, self.size, self.run = workers, workers.size, workers.run_stages
        self.grown = False  # whether scratch was replaced by a larger piece since this was last set
        self._scratch: dict[tuple[int, str], np.ndarray] = {}

    def __enter__(self) -> Team:
        self.crew.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self.crew.__exit__(*exc)

    def record(self, tasks: Sequence[Task]) -> Stage:
        """Share tasks out, neighbours to one worker, whose cache may still hold what it wrote in the phase before."""
        count, tapes = len(tasks), []
        for worker in range(self.size):
            tape = Tape(self, worker)
            for task in tasks[count * worker // self.size : count * (worker + 1) // self.size]:
                task(tape)
            tapes.append(tape.calls)
        return tapes

    def scratch(self, worker: int, name: str, *shape: int) -> np.ndarray:
        """Return a float32 array of a worker's, with whatever is in it; it is the same memory until a larger one is asked for."""
        n = prod(shape)
        found = self._scratch.get((worker, name))
        if found is None or found.size < n:
            found = self._scratch[worker, name] = np.empty(n, np.float32)
            self.grown = True
        return found[:n].reshape(shape)

    def settled(self, make: Callable[[], T]) -> T:
        """Return what `make` records, made again while scratch grew, so that all of it uses the same memory."""
        while True:
            self.grown = False
            made = make()
            if not self.grown:
                return made

    @property
    def scratch_bytes(self) -> int:
        """The memory of all workers' scratch, which all networks share."""
        return sum(a.nbytes for a in self._scratch.values())


@cache
def team() -> Team:
    """Return this process's team."""
    return Team(thread_pool())
