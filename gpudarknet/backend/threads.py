"""A thread pool that uses all cores, with single-threaded BLAS in each thread.

NumPy and BLAS release the interpreter lock while they compute, so Python threads run in parallel as long as each call takes
longer than acquiring the lock, some ten microseconds. One thread per core, each with its own gemm on a piece that stays in its
cache, outperforms one multithreaded gemm: copies, activations and gemms all run on all cores, and no thread waits inside a gemm.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np

Task = Callable[[], object]
Stage = Sequence[Sequence[Task]]  # for each worker, its tasks in order
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # from malloc.h


class ThreadPool:
    """`size` workers, one of them the caller. `with pool:` excludes other threads and sets BLAS to one thread."""

    def __init__(self, size: int):
        self.size = size
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._reset)  # a fork copies neither threads nor the owners of locks

    def _reset(self) -> None:
        """Set the initial state, also in a forked process: no threads, no work."""
        self.lock = threading.RLock()
        # Bare locks as signals: one thread waits to acquire what another releases. A Semaphore runs more Python code each time;
        # spinning gains 3 % if all cores are free, but takes three times as long if one is busy.
        self._start, self._done = ([threading.Lock() for _ in range(self.size)] for _ in range(2))
        for signal in (*self._start, *self._done):
            signal.acquire()
        self._stage: Stage = []
        self._error: BaseException | None = None
        self._started = False
        self._depth, self._saved_blas_threads = 0, 1
        self._local = threading.local()

    def __enter__(self) -> ThreadPool:
        self.lock.acquire()
        if not self._started:
            self._started = True
            for worker in range(1, self.size):
                threading.Thread(target=self._serve, args=(worker,), daemon=True, name=f"gpudarknet-{worker}").start()
        self._depth += 1
        if self._depth == 1:
            self._saved_blas_threads = set_blas_threads(1)
        return self

    def __exit__(self, *exc: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            set_blas_threads(self._saved_blas_threads)
        self.lock.release()

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
                others = [worker for worker in range(1, self.size) if stage[worker]]
                self._stage = stage
                for worker in others:
                    self._start[worker].release()
                self._local.in_worker = bool(others)
                self._work(stage[0])
                self._local.in_worker = False
                for worker in others:
                    self._wait(self._done[worker])
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _wait(self, signal: threading.Lock) -> None:
        """Wait for a worker, even through Ctrl-C: nothing may start while it is running."""
        while True:
            try:
                signal.acquire()
                return
            except BaseException as e:
                self._error = e

    def _work(self, tasks: Sequence[Task]) -> None:
        try:
            for task in tasks:
                if self._error is not None:
                    return
                task()
        except BaseException as e:  # re-raised by run_stages
            self._error = e

    def _serve(self, worker: int) -> None:
        self._local.in_worker = True
        with np.errstate(all="ignore"):
            while True:
                self._start[worker].acquire()
                self._work(self._stage[worker])
                self._done[worker].release()


def split_range(length: int, max_size: int, workers: int = 1) -> list[tuple[int, int]]:
    """Split a length into nearly equal ranges (from, to) of at most `max_size`, their count a multiple of `workers` if possible.

    If results depend on the ranges, omit `workers`, so that they do not depend on the number of cores.
    """
    count = -(-length // max(1, max_size))
    count = min(length, -(-count // workers) * workers)
    return list(pairwise(length * i // count for i in range(count + 1)))


@cache
def thread_pool() -> ThreadPool:
    """Return this process's pool: as many workers as BLAS has threads, or one if the number of BLAS threads cannot be set."""
    return ThreadPool(worker_count())


def worker_count() -> int:
    """Return how many threads with single-threaded BLAS this process may use."""
    control = _blas_control()
    return 1 if control is None else max(1, min(control[1](), available_cores()))


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


def available_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return how many cores this process may use, by affinity and by its container's CPU quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        time, period = map(int, quota.read_text().split())
    except (OSError, ValueError):  # not Linux, or "max"
        return count
    return max(1, min(count, time // period))


def set_blas_threads(count: int) -> int:
    """Set the number of BLAS threads, if possible; return the previous number."""
    control = _blas_control()
    if control is None:
        return count
    previous = control[1]()
    if previous != count:
        control[0](count)
    return previous


@cache
def _blas_control() -> tuple[Callable[[int], object], Callable[[], int]] | None:
    """Return OpenBLAS's setter and getter of the thread count, from the library that NumPy has loaded."""
    for path in _blas_libraries():
        try:
            library = ctypes.CDLL(str(path))
        except OSError:
            continue
        for prefix in ("scipy_", ""):
            for suffix in ("64_", ""):
                try:
                    setter = getattr(library, f"{prefix}openblas_set_num_threads{suffix}")
                    getter = getattr(library, f"{prefix}openblas_get_num_threads{suffix}")
                except AttributeError:
                    continue
                setter.argtypes, setter.restype = [ctypes.c_int], None
                getter.argtypes, getter.restype = [], ctypes.c_int
                return setter, getter
    return None


def _blas_libraries() -> list[Path]:
    """Return the OpenBLAS libraries bundled with NumPy, or else those that this process has loaded."""
    home = Path(np.__file__).parent
    paths = [p for folder in (home.parent / "numpy.libs", home / ".dylibs") for p in folder.glob("*openblas*")]
    maps = Path("/proc/self/maps")
    if not paths and maps.exists():
        names = {line.split(maxsplit=5)[5] for line in maps.read_text().splitlines() if "openblas" in line}
        paths = [Path(name) for name in sorted(names)]
    return paths
