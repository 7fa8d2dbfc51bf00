"""Batches of random samples, made a few batches ahead by threads, or by worker processes, in memory that is reused.

Decoding and resizing release the interpreter lock, but the Python code between them does not: threads hold up each other and the
training (docs/training.md has figures). Therefore each thread has a process make its samples (worker.py). Processes take
a second to start, so a short training never starts any.
"""

from __future__ import annotations

import math
import mmap
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol

import numpy as np

from ..backend import blas
from ..backend.threads import VARIABLE, get_num_threads
from ..errors import DataError, DataWarning

START_SECONDS = 2.0  # a loader uses threads alone for this long
CHUNKS = 2  # per thread and batch: the last one of a batch keeps others waiting for a part of it only
WORKER = "from gpudarknet.data.worker import main; main()"
Size = tuple[int, int]  # width, height


class BadSamples(Protocol):
    """Records samples that cannot be used, as `data.BadSamples` does."""

    def extend(self, images: Sequence[str], labels: Sequence[str]) -> None:
        """Record what a worker process found."""


class Samples(Protocol):
    """Makes samples, as `data.DataSet` does."""

    @property
    def channels(self) -> int:
        """The channels of x."""

    @property
    def bad_samples(self) -> BadSamples:
        """What could not be used."""

    def sample(
        self, seed: int, iteration: int, number: int, size: Size, out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Make a sample x (C, H, W), in `out` if given, and its truth (truths,)."""


class BatchBuffer:
    """Memory for a batch, which processes with its file descriptor share; free again when nothing refers to the batch."""

    def __init__(self, fd: int = -1):
        self.fd, self.memory = fd, mmap.mmap(-1, 1)
        self.batch: Callable[[], np.ndarray | None] = lambda: None  # a weak reference

    @property
    def is_free(self) -> bool:
        """Whether nothing refers to a batch in it."""
        return self.batch() is None

    def array(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return a float32 array in this memory, which grows if it is too small."""
        count = math.prod(shape)
        if len(self.memory) < 4 * count:
            if self.fd >= 0:
                os.ftruncate(self.fd, 4 * count)
            self.memory = mmap.mmap(self.fd, 4 * count)
        batch = np.frombuffer(self.memory, np.float32, count)  # every view of the array returned refers to this one
        self.batch = weakref.ref(batch)
        return batch.reshape(shape)


class Loader:
    """Makes batches ahead of time: at most `prefetch`, besides the one that is asked for.

    workers: how many samples are made at a time; 0: one per core. processes: by worker processes (True: from the first sample,
    False: never, by threads; None: after START_SECONDS, unless there is one core only, or they cannot have the data set: it
    cannot be pickled, or the system is not Linux). Samples do not depend on it. With processes=True, raises DataError if
    there can be none.
    """

    def __init__(
        self, data: Samples, batch: int, size: Callable[[int], Size], seed: int = 0, workers: int = 0, prefetch: int = 2,
        processes: bool | None = None,
    ):  # fmt: skip
        self.data, self.batch, self.size, self.seed, self.prefetch = data, batch, size, seed, prefetch
        self.workers = workers or get_num_threads()
        self.processes = list[WorkerProcess]()
        self._pool = ThreadPoolExecutor(self.workers, "loader")
        self._thread = threading.local()  # .process: of a thread
        self._pending: dict[int, tuple[np.ndarray, list[Future[list[np.ndarray]]]]] = {}
        self._wait = bool(processes)  # for processes to start
        self._start_time = time.monotonic() + (0 if processes else START_SECONDS)
        cores = max(self.workers, get_num_threads())
        self._data_fd = self._share(data) if processes or (processes is None and cores > 1) else -1
        self._can_start = self._data_fd >= 0
        # For the batches ahead, the one asked for, the one before, which a caller's loop still has then, and one more, since
        # samples that are no longer wanted may still be made.
        self._buffers = [BatchBuffer(os.memfd_create("batch") if self._can_start else -1) for _ in range(prefetch + 3)]

    def _share(self, data: Samples) -> int:
        """Return the file descriptor of memory with the pickled data set; -1 if there can be no processes, unless they must."""
        try:
            content = pickled(data)
        except DataError:
            if self._wait:
                raise
            return -1
        fd = os.memfd_create("data set")
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(content)
        except OSError as e:  # a limit on the size of files is one on that of memory, too
            os.close(fd)
            if self._wait:
                raise DataError(
                    f"no memory that processes can share ({e.strerror}); use threads: processes=False"
                ) from e
            return -1
        return fd

    def get(self, iteration: int) -> tuple[np.ndarray, np.ndarray]:
        """Return batch `iteration`: x (N, C, H, W) float32, truth (N, truths).

        Raises DataError if no image can be read, or if a worker process dies.
        """
        for old in [k for k in self._pending if k < iteration]:
            for future in self._pending.pop(old)[1]:
                future.cancel()
        for k in range(iteration, iteration + 1 + self.prefetch):
            if k not in self._pending:
                self._pending[k] = self._start(k)
        x, chunks = self._pending.pop(iteration)
        return x, np.stack([truth for chunk in chunks for truth in chunk.result()])

    def _start(self, k: int) -> tuple[np.ndarray, list[Future[list[np.ndarray]]]]:
        """Have all samples of a batch made; return its x, and the truths of consecutive samples."""
        W, H = size = self.size(k)
        shape = self.batch, self.data.channels, H, W
        buffer = next((index for index, buffer in enumerate(self._buffers) if buffer.is_free), None)
        # None: the caller keeps batches
        x = np.empty(shape, np.float32) if buffer is None else self._buffers[buffer].array(shape)
        length = -(-self.batch // (CHUNKS * self.workers))
        chunks = [range(n, min(n + length, self.batch)) for n in range(0, self.batch, length)]
        return x, [self._pool.submit(self._make, k, numbers, size, x, buffer) for numbers in chunks]

    def _make(self, k: int, numbers: range, size: Size, x: np.ndarray, buffer: int | None) -> list[np.ndarray]:
        """Make samples in x and return their truths; in a thread of the pool."""
        process = self._process() if buffer is not None else None
        if process is None:
            return [self.data.sample(self.seed, k, n, size, x[n])[1] for n in numbers]
        truths, bad_samples, warned = process.ask((self.seed, k, numbers, size, x.shape, buffer))
        self.data.bad_samples.extend(*bad_samples)
        for warning in warned:
            warnings.warn(warning, stacklevel=1)
        return truths

    def _process(self) -> WorkerProcess | None:
        """Return the worker process of this thread, if it is ready."""
        process: WorkerProcess | None = getattr(self._thread, "process", None)
        if not self._can_start or time.monotonic() < self._start_time:
            return None
        try:
            if process is None:
                process = self._thread.process = WorkerProcess([self._data_fd, *(b.fd for b in self._buffers)])
                self.processes.append(process)
            return process if process.is_ready(self._wait) else None
        except Exception as e:  # of the system, or of the data set
            if self._wait:
                raise
            if self._can_start:
                warnings.warn(
                    f"worker processes: cannot start ({e}); threads make the samples", DataWarning, stacklevel=1
                )
            self._can_start = False
            return None

    def close(self) -> None:
        """Stop threads and processes."""
        self._can_start = False
        for process in self.processes:
            process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()
        for process in self.processes:  # also one that was about to start
            process.close()
        for fd in (self._data_fd, *(b.fd for b in self._buffers)):
            if fd >= 0:
                os.close(fd)
        self._data_fd, self._buffers = -1, []

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class WorkerProcess:
    """A process that makes samples (worker.py). It ends when this one does, and ignores signals to the process group.

    fds: file descriptors of the data set and of the batch buffers.
    """

    def __init__(self, fds: Sequence[int]):
        environment = os.environ | dict.fromkeys((VARIABLE, "OMP_NUM_THREADS", *blas.VARIABLES.values()), "1")
        environment["PYTHONPATH"] = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, *map(str, fds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=fds,
            env=environment, start_new_session=True,
        )  # fmt: skip
        self.pid = self._process.pid
        self._ready = False

    def is_ready(self, wait: bool = False) -> bool:
        """Return whether it has loaded the data set, or wait until then. Raises why it cannot."""
        assert self._process.stdout is not None
        if not self._ready and (wait or select.select([self._process.stdout], [], [], 0)[0]):
            self._answer()
            self._ready = True
        return self._ready

    def ask(self, request: Any) -> Any:
        """Return the answer to a request. Raises its exception, or DataError if the process is dead."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            pickle.dump(request, self._process.stdin)
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        try:
            answer, trace = pickle.load(self._process.stdout)
        except (EOFError, pickle.UnpicklingError):
            code = self._process.wait()
            reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise DataError(
                f"a worker process that prepares images died ({reason}); if memory ran out, use fewer: -workers 1, or workers=1"
            ) from None
        if isinstance(answer, BaseException):
            raise answer from (RuntimeError(trace) if trace else None)
        return answer

    def kill(self) -> None:
        """End the process."""
        self._process.kill()

    def close(self) -> None:
        """End the process and wait for it."""
        self.kill()
        with suppress(BrokenPipeError):  # a request that it has not read
            self._process.__exit__(None, None, None)


def pickled(data: Samples) -> bytes:
    """Pickle a data set for worker processes. Raises DataError if there can be none."""
    if not hasattr(os, "memfd_create") or not sys.executable or hasattr(sys, "frozen"):
        raise DataError("worker processes: need Linux and a Python interpreter; use threads, with processes=False")
    try:
        content = pickle.dumps(data)
    except Exception as e:  # of any kind: __reduce__ is the data set's
        raise DataError(f"worker processes: the data set cannot be pickled ({e}); use processes=False") from None
    if b"__main__" in content:
        raise DataError(
            "worker processes: the data set has parts that are defined in the main script; move them to a module, or use"
            " processes=False"
        )
    return content
