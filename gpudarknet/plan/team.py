"""All cores on one step: threads that share its tasks, each with BLAS of its own on one thread.

NumPy and BLAS release the interpreter's lock while they compute, so Python threads run side by side. One thread per
core with a gemm of its own, on a piece that stays in its cache, beats one gemm on all threads: copying, activation and
gemm all run on all cores, and nobody waits inside a gemm.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from functools import cache, partial
from math import prod
from typing import Any, TypeVar

import numpy as np

from ..cores import blas_threads, usable

T = TypeVar("T")

Call = Callable[[], object]  # a function with its arguments
Phase = list[list[Call]]  # what each worker does, one call after the other


class Tape:
    """Records what one worker is to do: the calls, with every view made beforehand."""

    def __init__(self, team: Team, worker: int):
        self._team, self._worker = team, worker
        self.calls: list[Call] = []

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
    """`size` workers, one of them the caller. Use it inside `with team:`, which also keeps others out.

    Work is recorded once and replayed for every image: between two calls of NumPy, which compute without the interpreter's
    lock, a worker that has its arguments at hand holds the lock so shortly that the others seldom wait for it.
    """

    def __init__(self, size: int):
        self.size = size
        self.grown = False  # whether scratch was replaced by a larger piece since this was last set
        self._scratch: dict[tuple[int, str], np.ndarray] = {}
        self._gather()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._gather)  # threads do not survive a fork, nor who held a lock

    def _gather(self) -> None:
        """Begin, or begin again in a forked process: with no thread, and nothing to do."""
        self.lock = threading.RLock()
        # Bare locks as signals: one thread waits to acquire what another releases. A Semaphore runs more Python each time, and
        # to spin in place of waiting gains 3 % where all cores are free, but takes three times as long where one is not.
        self._go, self._done = ([threading.Lock() for _ in range(self.size)] for _ in range(2))
        for signal in (*self._go, *self._done):
            signal.acquire()
        self._phase: Phase = []
        self._error: BaseException | None = None
        self._started = False

    def __enter__(self) -> Team:
        self.lock.acquire()
        if not self._started:
            self._started = True
            for worker in range(1, self.size):
                threading.Thread(target=self._serve, args=(worker,), daemon=True, name=f"plan-{worker}").start()
        if self.size > 1:
            blas_threads(1)
        return self

    def __exit__(self, *exc: object) -> None:
        if self.size > 1:
            blas_threads(self.size)
        self.lock.release()

    def record(self, tasks: Sequence[Task]) -> Phase:
        """Share tasks out, neighbours to one worker, whose cache may still hold what it wrote in the phase before."""
        count, tapes = len(tasks), []
        for worker in range(self.size):
            tape = Tape(self, worker)
            for task in tasks[count * worker // self.size : count * (worker + 1) // self.size]:
                task(tape)
            tapes.append(tape.calls)
        return tapes

    def run(self, phases: Sequence[Phase]) -> None:
        """Do one phase after the other, each on all workers. Raises what a call raised; then no later one has run."""
        self._error = None
        with np.errstate(all="ignore"):
            for self._phase in phases:
                others = [worker for worker in range(1, self.size) if self._phase[worker]]
                for worker in others:
                    self._go[worker].release()
                self._work(0)
                for worker in others:
                    self._wait(self._done[worker])
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _wait(self, signal: threading.Lock) -> None:
        """Wait for a worker, also if Ctrl-C comes meanwhile: nobody may begin while it is at work."""
        while True:
            try:
                signal.acquire()
                return
            except BaseException as e:
                self._error = e

    def _work(self, worker: int) -> None:
        try:
            for call in self._phase[worker]:
                if self._error is not None:
                    return
                call()
        except BaseException as e:  # handed to the caller of run
            self._error = e

    def _serve(self, worker: int) -> None:
        with np.errstate(all="ignore"):
            while True:
                self._go[worker].acquire()
                self._work(worker)
                self._done[worker].release()

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
    """Return this process's team: as many workers as BLAS has threads, or one where BLAS cannot be told to keep to one."""
    return Team(usable())
