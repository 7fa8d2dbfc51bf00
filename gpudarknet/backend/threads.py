"""All cores on one piece of work: threads that do it side by side, each with BLAS of its own on one thread.

NumPy and BLAS release the interpreter's lock while they compute, so Python threads run side by side, as long as each call
takes longer than waiting for that lock: some ten microseconds. One thread per core with a gemm of its own, on a piece that
stays in its cache, beats one gemm on all threads: copying, activation and gemm all run on all cores, and nobody waits inside
a gemm.
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
Stage = Sequence[Sequence[Task]]  # what each worker does, one after the other
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of malloc.h


class ThreadPool:
    """`size` workers, one of them the caller. Inside `with crew:`, which keeps other threads out, BLAS has one thread."""

    def __init__(self, size: int):
        self.size = size
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._reset)  # threads do not survive a fork, nor who held a lock

    def _reset(self) -> None:
        """Begin, or begin again in a forked process: with no thread, and nothing to do."""
        self.lock = threading.RLock()
        # Bare locks as signals: one thread waits to acquire what another releases. A Semaphore runs more Python each time, and
        # to spin in place of waiting gains 3 % where all cores are free, but takes three times as long where one is not.
        self._go, self._done = ([threading.Lock() for _ in range(self.size)] for _ in range(2))
        for signal in (*self._go, *self._done):
            signal.acquire()
        self._stage: Stage = []
        self._error: BaseException | None = None
        self._started = False
        self._depth, self._before = 0, 1  # entries; threads that BLAS had before the first
        self._within = threading.local()

    def __enter__(self) -> ThreadPool:
        self.lock.acquire()
        if not self._started:
            self._started = True
            for worker in range(1, self.size):
                threading.Thread(target=self._serve, args=(worker,), daemon=True, name=f"gpudarknet-{worker}").start()
        self._depth += 1
        if self._depth == 1:
            self._before = set_blas_threads(1)
        return self

    def __exit__(self, *exc: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            set_blas_threads(self._before)
        self.lock.release()

    @property
    def in_worker(self) -> bool:
        """Whether who asks is at work beside others."""
        return getattr(self._within, "stage", False)

    def run_all(self, tasks: Sequence[Task]) -> None:
        """Do all tasks, in any order, on all workers; return when all are done. Raises what a task raised.

        Within a task, do them one after the other, as the other workers have their own.
        """
        if self.in_worker:
            for task in tasks:
                task()
            return
        waiting = list(reversed(tasks))

        def take() -> None:
            while self._error is None:
                try:
                    task = waiting.pop()
                except IndexError:
                    return
                task()

        with self:  # for one task too: on some CPUs BLAS gives other bits with other numbers of threads
            self.run_stages([[[take]] * min(self.size, len(tasks)) + [[]] * (self.size - len(tasks))])

    def run_stages(self, stages: Iterable[Stage]) -> None:
        """Do one phase after the other, each on all workers. Raises what a task raised; then no later one has run."""
        self._error = None
        with np.errstate(all="ignore"):
            for stage in stages:
                others = [worker for worker in range(1, self.size) if stage[worker]]
                self._stage = stage
                for worker in others:
                    self._go[worker].release()
                self._within.stage = bool(others)
                self._work(stage[0])
                self._within.stage = False
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

    def _work(self, tasks: Sequence[Task]) -> None:
        try:
            for task in tasks:
                if self._error is not None:
                    return
                task()
        except BaseException as e:  # handed to the caller of run
            self._error = e

    def _serve(self, worker: int) -> None:
        self._within.stage = True
        with np.errstate(all="ignore"):
            while True:
                self._go[worker].acquire()
                self._work(self._stage[worker])
                self._done[worker].release()


def split_range(length: int, most: int, workers: int = 1) -> list[tuple[int, int]]:
    """Cut a length into nearly equal (from, to), none longer than `most`, their count a multiple of the workers if it can be.

    Where results depend on the pieces, leave the workers out: then they do not depend on the cores.
    """
    count = -(-length // max(1, most))
    count = min(length, -(-count // workers) * workers)
    return list(pairwise(length * i // count for i in range(count + 1)))


@cache
def thread_pool() -> ThreadPool:
    """Return this process's crew: as many workers as BLAS has threads, or one where BLAS cannot be told to keep to one."""
    return ThreadPool(worker_count())


def worker_count() -> int:
    """Return how many threads with a BLAS of their own this process may use at a time."""
    control = _blas_control()
    return 1 if control is None else max(1, min(control[1](), available_cores()))


@cache
def tune_malloc() -> None:
    """Let this process keep the memory that it frees, where the C library is GNU's.

    A step of training asks for what the last one gave back. To get it from the system again, page by page, takes a fifth
    of a step, and threads that ask together take longer.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for what, value in ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, 1 << 25), (M_TRIM_THRESHOLD, (1 << 31) - 1)):
            mallopt(what, value)


def available_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return how many cores this process may use, a container's share of time counted."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        time, period = map(int, quota.read_text().split())
    except (OSError, ValueError):  # not Linux, or "max"
        return count
    return max(1, min(count, time // period))


def set_blas_threads(count: int) -> int:
    """Let BLAS use `count` threads, where it can be told; return how many it used."""
    control = _blas_control()
    if control is None:
        return count
    before = control[1]()
    if before != count:
        control[0](count)
    return before


@cache
def _blas_control() -> tuple[Callable[[int], object], Callable[[], int]] | None:
    """Find OpenBLAS's (set, get) of the thread count in the library that NumPy has loaded."""
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
    """Return the OpenBLAS that NumPy brings, then others that this process has loaded."""
    home = Path(np.__file__).parent
    found = [p for folder in (home.parent / "numpy.libs", home / ".dylibs") for p in folder.glob("*openblas*")]
    maps = Path("/proc/self/maps")
    if not found and maps.exists():
        names = {line.split(maxsplit=5)[5] for line in maps.read_text().splitlines() if "openblas" in line}
        found = [Path(name) for name in sorted(names)]
    return found
