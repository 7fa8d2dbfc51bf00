"""Read a stream of images in batches; files are decoded in threads, while the caller computes the batch before."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from ..errors import ImageError
from . import is_url

REMOTE_READERS = 16  # threads that read URLs: they wait for the network more than they decode
Batch = list[tuple[Any, np.ndarray]]  # source, image


class BatchReader:
    """The images of a stream in batches of `size` (None: all at once), each read by `read`.

        with BatchReader(image.read, paths, size=8) as reader:
            while batch := reader.get():
                reader.read_ahead()
                compute(batch)

    threads: that decode files; of URLs, more are read at once. on_error: called for each unreadable image, which is left out;
    by default its ImageError is raised. Only the caller's thread advances the stream, whose exceptions are raised after the
    images before them.
    """

    def __init__(
        self,
        read: Callable[[Any], np.ndarray],
        images: Iterable[Any],
        size: int | None = None,
        threads: int = 1,
        on_error: Callable[[Any, ImageError], None] | None = None,
    ):
        self._read, self._images, self._size = read, iter(images), size
        self._threads, self._on_error = threads, on_error
        self._executors = dict[bool, ThreadPoolExecutor]()  # for files, and for URLs
        self._next: list[tuple[Any, Future[np.ndarray]]] = []
        self._error: Exception | None = None  # of the stream
        self._files = False  # whether all of the last batch were files

    def __enter__(self) -> BatchReader:
        return self

    def __exit__(self, *error: object) -> None:
        for executor in self._executors.values():
            executor.shutdown(cancel_futures=True)

    def get(self) -> Batch:
        """Return the next batch with a readable image; [] at the end of the stream."""
        while batch := self._next or self._start(meanwhile=False):
            self._next, self._files = [], all(is_file(source) for source, _ in batch)
            if read := self._finish(batch):
                return read
        if self._error:
            raise self._error
        return []

    def read_ahead(self) -> None:
        """Start reading the next batch if the last one consisted of files. Other images may be live, and are not waited for."""
        if self._files and not self._next:
            self._next = self._start(meanwhile=True)

    def _start(self, meanwhile: bool) -> list[tuple[Any, Future[np.ndarray]]]:
        """Take a batch from the stream and start reading it. meanwhile: the caller will compute something else."""
        sources: list[Any] = []
        try:
            while self._error is None and (self._size is None or len(sources) < self._size):
                sources.append(next(self._images))
        except StopIteration:
            pass
        except Exception as e:
            self._error = e
        threads = meanwhile or len(sources) > 1
        return [(source, self._submit(source, threads and is_file(source))) for source in sources]

    def _submit(self, source: Any, in_thread: bool) -> Future[np.ndarray]:
        if in_thread:
            return self._executor(is_url(source)).submit(self._read, source)
        future: Future[np.ndarray] = Future()
        try:
            future.set_result(self._read(source))
        except Exception as e:
            future.set_exception(e)
        return future

    def _executor(self, remote: bool) -> ThreadPoolExecutor:
        if remote not in self._executors:
            threads = max(self._threads, REMOTE_READERS) if remote else self._threads
            self._executors[remote] = ThreadPoolExecutor(threads, "image reader")
        return self._executors[remote]

    def _finish(self, batch: list[tuple[Any, Future[np.ndarray]]]) -> Batch:
        """Wait for the images of a batch."""
        read: Batch = []
        for source, future in batch:
            try:
                read.append((source, future.result()))
            except ImageError as e:
                if self._on_error is None:
                    raise
                self._on_error(source, e)
        return read


def is_file(source: Any) -> bool:
    """Return whether an image is to be decoded: it is a path or a URL."""
    return isinstance(source, str | os.PathLike)
