"""A process that makes samples for a `loader.Loader`: it reads requests from stdin, and writes samples into shared memory.

It starts by loading the data set. Requests and answers are pickled; an answer is (result, ""), or an exception and, unless the
exception explains itself, its traceback. What libraries print on stdout goes to stderr, so that it cannot mix with the answers.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import sys
import traceback
import warnings
from math import prod
from typing import Any, BinaryIO

import numpy as np

from ..errors import DarknetError

IGNORED = ("SIGINT", "SIGTERM", "SIGHUP")  # the parent handles them


def main() -> None:
    """Answer requests until stdin ends, as it does when the parent is dead. Arguments: file descriptors."""
    for name in IGNORED:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    data_fd, *batches = map(int, sys.argv[1:])
    try:
        with mmap.mmap(data_fd, 0, access=mmap.ACCESS_READ) as content:
            worker = Worker(pickle.loads(content), batches)
    except Exception as e:
        send(answers, *failure(e))
        return
    send(answers, None)
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            send(answers, worker.make(*request))
        except BrokenPipeError:
            return
        except Exception as e:
            send(answers, *failure(e))


def send(answers: BinaryIO, result: Any, trace: str = "") -> None:
    """Write an answer."""
    pickle.dump((result, trace), answers)
    answers.flush()


def failure(error: Exception) -> tuple[Exception, str]:
    """Return an exception that can be pickled, and its traceback."""
    if isinstance(error, DarknetError):
        return error, ""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return error, traceback.format_exc()


class Worker:
    """Makes samples of a data set in buffers that are given by their file descriptors."""

    def __init__(self, data: Any, batches: list[int]):
        import cv2

        cv2.setNumThreads(1)
        self.data, self.fds = data, batches
        self.memory = [mmap.mmap(-1, 1) for _ in batches]
        self.known = 0, 0  # bad images and labels that were reported

    def make(
        self, seed: int, iteration: int, numbers: range, size: tuple[int, int], shape: tuple[int, ...], batch: int
    ) -> tuple[list[np.ndarray], tuple[list[str], list[str]], list[Warning]]:
        """Make samples in an array of this shape; return their truths, new bad images and labels, and warnings."""
        if len(self.memory[batch]) < 4 * prod(shape):  # the buffer has grown
            self.memory[batch] = mmap.mmap(self.fds[batch], 4 * prod(shape))
        x = np.frombuffer(self.memory[batch], np.float32, prod(shape)).reshape(shape)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            truths = [self.data.sample(seed, iteration, n, size, x[n])[1] for n in numbers]
        bad, (images, labels) = self.data.bad_samples, self.known
        self.known = len(bad.images), len(bad.labels)
        messages = [w.message for w in warned if isinstance(w.message, Warning)]
        return truths, (bad.images[images:], bad.labels[labels:]), messages
