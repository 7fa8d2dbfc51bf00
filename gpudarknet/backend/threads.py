"""A thread pool that uses all cores, with single-threaded BLAS in each thread.

NumPy and BLAS release the interpreter lock while they compute, so Python threads run in parallel as long as each call takes
longer than acquiring the lock, some ten microseconds. One thread per core, each with its own gemm on a piece that stays in its
cache, outperforms one multithreaded gemm: copies, activations and gemms all run on all cores, and no thread waits inside a gemm.
"""

from __future__ import annotations

import contextlib
import ctypes
import operator
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import pairwise

import numpy as np

from ..errors import BackendError
from . import blas, machine

VARIABLE = "GPUDARKNET_THREADS"
Task = Callable[[], object]
Stage = Sequence[Sequence[Task]]  # for each worker, its tasks in order
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # from malloc.h
_requested: int | None = None  # by set_num_threads


class ThreadPool:
    """`size` workers, one of them the caller. `with pool:` excludes other threads and sets BLAS to one thread."""

    def __init__(self, size: int):
        self.size = size
        blas.libraries()  # an error of threadpoolctl's appears here, outside the lock
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        """Start anew in a forked process: a fork copies neither threads nor the owners of locks."""
        if self._depth:  # another thread was computing
            blas.restore_threads(self._blas_threads)
        self._reset()

    def _reset(self) -> None:
        """Set the initial state: no threads, no work."""
        self.lock = threading.RLock()
        # Bare locks as signals: one thread waits to acquire what another releases. A Semaphore runs more Python code each time;
        # spinning gains 3 % if all cores are free, but takes three times as long if one is busy.
        self._start, self._done = ([threading.Lock()] for _ in range(2))  # one per worker; the caller's are not used
        self._started, self._finished = [0], [0]  # per worker, how many stages
        self._stage: Stage = []
        self._error: BaseException | None = None
        self._depth, self._blas_threads = 0, list[int]()
        self._local = threading.local()

    def resize(self, size: int) -> None:
        """Change the number of workers."""
        with self.lock:
            self.size = size

    def __enter__(self) -> ThreadPool:
        self.lock.acquire()
        self._depth += 1
        if self._depth == 1:
            self._blas_threads = blas.limit_threads()
        try:
            while len(self._start) < self.size:
                self._start_worker(len(self._start))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            blas.restore_threads(self._blas_threads)
        self.lock.release()

    def _start_worker(self, worker: int) -> None:
        start, done = threading.Lock(), threading.Lock()
        self._started.append(0)
        self._finished.append(0)
        start.acquire()
        done.acquire()
        threading.Thread(
            target=self._serve, args=(worker, start, done), daemon=True, name=f"gpudarknet-{worker}"
        ).start()
        done.acquire()  # it has limited its BLAS
        self._start.append(start)
        self._done.append(done)

    @property
    def in_worker(self) -> bool:
        """True inside a worker thread, or in the caller while other workers run."""
        return getattr(self._local, "in_worker", False)

    def run_all(self, tasks: Sequence[Task]) -> None:
        """Run all tasks, in any order, on all workers; return when all are done. Re-raises a task's exception.

        Inside a task, run them sequentially: the other workers are busy.
        """
        if self.in_worker:
            for task in tasks:
                task()
            return
        queue = list(reversed(tasks))

        def run_queued() -> None:
            while self._error is None:
                try:
                    task = queue.pop()
                except IndexError:
                    return
                task()

        with self:  # for one task too: on some CPUs the bits of BLAS's results depend on its number of threads
            self.run_stages([[[run_queued]] * min(self.size, len(tasks)) + [[]] * (self.size - len(tasks))])

    def run_stages(self, stages: Iterable[Stage]) -> None:
        """Run stages one after the other, each on all workers. If a task raises, no later stage runs; its exception is raised."""
        self._error = None
        with np.errstate(all="ignore"):
            for stage in stages:
                others = [worker for worker in range(1, len(stage)) if stage[worker]]
                self._stage = stage
                for worker in others:
                    self._started[worker] += 1
                    self._start[worker].release()
                self._local.in_worker = bool(others)
                self._work(stage[0])
                self._local.in_worker = False
                for worker in others:
                    self._wait(worker)
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _wait(self, worker: int) -> None:
        """Wait for a worker, even through Ctrl-C: nothing may start while it is running."""
        try:
            self._done[worker].acquire()
            return
        except BaseException as e:  # whether it came before or after the lock was acquired is unknown
            self._error = e
        while self._finished[worker] < self._started[worker]:
            try:
                time.sleep(0.001)
            except BaseException as e:
                self._error = e
        self._done[worker].acquire(blocking=False)  # it has been released, unless it was acquired above

    def _work(self, tasks: Sequence[Task]) -> None:
        try:
            for task in tasks:
                if self._error is not None:
                    return
                task()
        except BaseException as e:  # re-raised by run_stages
            self._error = e

    def _serve(self, worker: int, start: threading.Lock, done: threading.Lock) -> None:
        self._local.in_worker = True
        blas.limit_threads()  # for good: some libraries have a number per thread, and this one belongs to the pool
        with np.errstate(all="ignore"):
            done.release()
            while True:
                start.acquire()
                self._work(self._stage[worker])
                done.release()
                self._finished[worker] += 1  # last, so that an interrupted `_wait` knows that `done` has been released


def split_range(length: int, max_size: int, workers: int = 1) -> list[tuple[int, int]]:
    """Split a length into nearly equal ranges (from, to) of at most `max_size`, their count a multiple of `workers` if possible.

    If results depend on the ranges, omit `workers`, so that they do not depend on the number of cores.
    """
    count = -(-length // max(1, max_size))
    count = min(length, -(-count // workers) * workers)
    return list(pairwise(length * i // count for i in range(count + 1)))


@cache
def thread_pool() -> ThreadPool:
    """Return this process's pool."""
    return ThreadPool(worker_count()[0])


def set_num_threads(count: int) -> None:
    """Set how many threads this process uses: for networks on a CPU, for loading data and for compiling CUDA kernels.

    Takes precedence over the environment and applies to networks that are already loaded. Training is bit-identical for any
    number; predictions may differ in rounding. Raises BackendError unless count is at least 1.
    """
    global _requested
    try:
        number = 0 if isinstance(count, bool) else operator.index(count)
    except TypeError:
        number = 0
    if number < 1:
        raise BackendError(f"set_num_threads: {count!r} is not a number of threads; pass 1 or more")
    if thread_pool().in_worker:
        raise BackendError("set_num_threads: called by a task of the thread pool; call it before or after, not inside")
    _requested = number
    thread_pool().resize(number)


def get_num_threads() -> int:
    """Return how many threads this process uses: as set by `set_num_threads`, else by the environment, else one per core.

    Environment variables, by precedence: GPUDARKNET_THREADS, OMP_NUM_THREADS, and the one of NumPy's BLAS, such as
    OPENBLAS_NUM_THREADS. Cores are those of the affinity and the CPU quota. Raises BackendError if a variable is not a number.
    """
    return thread_count()[0]


def thread_count() -> tuple[int, str]:
    """Return `get_num_threads` and what decided it."""
    return requested_threads() or machine.available_cores()


def requested_threads() -> tuple[int, str] | None:
    """Return the number of threads that the user has set, and where; None if nowhere. Raises BackendError."""
    if _requested is not None:
        return _requested, "set_num_threads"
    for variable in (VARIABLE, "OMP_NUM_THREADS"):
        if variable in os.environ:
            return _read_variable(variable), variable
    return next(((_read_variable(name), name) for name in blas.variables() if name in os.environ), None)


def worker_count() -> tuple[int, str]:
    """Return how many workers the pool has, and what decided it: one per thread, but one if BLAS would start threads in each."""
    requested = requested_threads()
    if requested is None and not blas.suits_workers():
        return 1, "BLAS has threads of its own"
    return requested or machine.available_cores()


def _read_variable(name: str) -> int:
    """Return the number of threads in an environment variable; of OpenMP's list, one per nesting level, the first."""
    value = os.environ[name]
    first = value.split(",")[0].strip() if name == "OMP_NUM_THREADS" else value.strip()
    if not first.isdecimal() or int(first) < 1:
        raise BackendError(f"{name}: '{value}' is not a number of threads; set it to 1 or more, or unset it")
    return int(first)


@cache
def tune_malloc() -> None:
    """Make malloc of the GNU C library keep freed memory instead of returning it to the system.

    A training step allocates what the last one freed. Faulting it in again, page by page, takes a fifth of a step, and longer
    if several threads do so at once.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, 1 << 25), (M_TRIM_THRESHOLD, (1 << 31) - 1)):
            mallopt(parameter, value)
