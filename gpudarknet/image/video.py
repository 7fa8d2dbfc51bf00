"""Read and write videos in background threads, so that the network never waits for a disk or a camera.

    with Reader("film.mp4") as frames, BackgroundWriter(record) as writer:
        for frame in frames:
            writer.put(frame.image, detector.detect(frame.image))

Memory does not grow with the length of a video: at most QUEUE_SIZE frames wait between two threads.
"""

from __future__ import annotations

import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ImageError
from ..io.atomic import atomic_write
from ..io.text import valid_utf8

QUEUE_SIZE = 4  # frames
POLL_INTERVAL = 0.1  # seconds between two checks whether a waiting thread should stop
DEFAULT_FPS = 25.0  # of sources that do not report it
SEQUENCE = re.compile(r"%0?\d*d")  # in the name of a sequence of images: its number
MAX_FIRST = 4  # number at which OpenCV still finds the start of a sequence
CODECS = {".avi": "MJPG", ".mp4": "mp4v", ".mkv": "mp4v", ".mov": "mp4v"}


@dataclass(frozen=True)
class Frame:
    """One frame of a video: its number, from 1, the time it was read (seconds since the start), and its image, RGB."""

    number: int
    time: float
    image: np.ndarray


class Reader:
    """The frames of a video, read ahead in a thread.

    source: a file, a sequence of images (frame_%03d.jpg), a camera (its index, or its device), or a URL such as rtsp://... A
    file or a sequence yields all frames, in order. A camera or a stream does not wait: a frame that is not read in time is
    replaced by the next, so that a frame is never more than one frame old; `dropped` counts replaced frames. skip: number of
    frames to skip after each one. Raises ImageError.
    """

    def __init__(self, source: str | int | bytes | os.PathLike[str], skip: int = 0):
        import cv2

        self.source = os.fsdecode(source) if isinstance(source, bytes | os.PathLike) else str(source)
        self.skip = skip
        _check_name(self.source)
        self.live = self.source.isdecimal() or "://" in self.source or Path(self.source).is_char_device()
        if not self.live:
            _check_files(Path(self.source))
        self._capture = cv2.VideoCapture(int(self.source) if self.source.isdecimal() else self.source)
        if not self._capture.isOpened():
            problem = (
                "camera is in use or missing" if self.source.isdecimal() else "is not a video that OpenCV can read"
            )
            raise ImageError(f"{self.source}: {problem}; check the source")
        self.fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = self.fps if 0 < self.fps < 1000 else DEFAULT_FPS
        self.dropped = 0
        self._queue: queue.Queue[Frame | BaseException | None] = queue.Queue(1 if self.live else QUEUE_SIZE)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="video reader", daemon=True)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __iter__(self) -> Iterator[Frame]:
        while True:
            item = self._queue.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._capture.release()

    def _run(self) -> None:
        import cv2

        end: BaseException | None = None
        try:
            number, begin = 0, time.perf_counter()
            while not self._stop.is_set():
                read, bgr = self._capture.read()
                if not read:
                    break
                number += 1
                self._put(Frame(number, time.perf_counter() - begin, cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)))
                for _ in range(self.skip):
                    number += self._capture.grab()
            if number == 0 and not self._stop.is_set():
                end = ImageError(f"{self.source}: has no readable frame; is the file complete?")
        except Exception as e:
            end = e
        self._put(end, last=True)

    def _put(self, item: Frame | BaseException | None, last: bool = False) -> None:
        """Queue an item; a live source replaces the waiting frame."""
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0 if self.live and not last else POLL_INTERVAL)
                return
            except queue.Full:
                if self.live and not last:
                    self._drop_waiting()

    def _drop_waiting(self) -> None:
        try:
            self._queue.get_nowait()
            self.dropped += 1
        except queue.Empty:  # the consumer was faster
            pass


def _check_name(name: str) -> None:
    """Raise ImageError for a name that OpenCV cannot open."""
    if name != valid_utf8(name):
        raise ImageError(f"{name}: its name is not UTF-8, so OpenCV cannot open it; rename it")


def _check_files(path: Path) -> None:
    """Raise ImageError unless a path is a file, or the name of a sequence of files."""
    if path.is_file():
        return
    if path.is_dir():
        raise ImageError(
            f"{path}: is a folder; name a video, or the images in it as a sequence such as {path / 'frame_%03d.jpg'}"
        )
    directives = SEQUENCE.findall(path.name)
    if len(directives) != 1 or path.name.count("%") != 1:
        remedy = "use a video file, a camera index or a URL"
        if re.search(r"[*?[]", path.name):
            remedy = "patterns of images are for `gpudarknet detector test`; name a sequence as frame_%03d.jpg"
        raise ImageError(f"{path}: no such file; {remedy}")
    before, after = map(re.escape, path.name.split(directives[0]))
    name = re.compile(rf"{before} *(\d+){after}")
    files = path.parent.iterdir() if path.parent.is_dir() else ()
    numbers = sorted(int(match[1]) for file in files if (match := name.fullmatch(file.name)))
    numbers = [number for number in numbers if (path.parent / (path.name % number)).is_file()]
    if not numbers:
        raise ImageError(f"{path}: no file of this sequence exists, such as {path.name % 1}; check the path")
    if numbers[0] > MAX_FIRST:
        raise ImageError(
            f"{path}: the sequence starts with {path.name % numbers[0]}, but OpenCV finds only one that starts at 0 to"
            f" {MAX_FIRST}; rename its files"
        )


class BackgroundWriter:
    """Calls `work` in background threads; `put` blocks while `size` calls are pending. One thread keeps the order of `put`.

    An exception in `work` is raised by the next `put`, or at the end of the `with` block.
    """

    def __init__(self, work: Callable[..., None], size: int = QUEUE_SIZE, threads: int = 1):
        self._work = work
        self._queue: queue.Queue[tuple[object, ...] | None] = queue.Queue(size)
        self._error: BaseException | None = None
        self._threads = [threading.Thread(target=self._run, name="image writer", daemon=True) for _ in range(threads)]

    def __enter__(self) -> BackgroundWriter:
        for thread in self._threads:
            thread.start()
        return self

    def put(self, *item: object) -> None:
        """Queue a call of `work` with these arguments."""
        if self._error is not None:
            raise self._error
        self._queue.put(item)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is None:  # after an error, only drain the queue so that no `put` blocks forever
                try:
                    self._work(*item)
                except Exception as e:
                    self._error = e


class VideoWriter:
    """A video file written from frames (H, W, 3) RGB of one size. It appears when the `with` block ends without an error."""

    def __init__(self, path: str | Path, fps: float):
        self.path, self.fps = Path(path), fps
        _check_name(str(path))
        if self.path.suffix not in CODECS:
            raise ImageError(f"{path}: unknown video format; use {', '.join(CODECS)}")
        if not self.path.parent.is_dir():
            raise ImageError(f"{path}: cannot be written; use a file in an existing folder")
        self._video: Any = None

    def __enter__(self) -> VideoWriter:
        self._stack = ExitStack()
        self._tmp = self._stack.enter_context(atomic_write(self.path))
        return self

    def write(self, image: np.ndarray) -> None:
        """Append a frame. Raises ImageError if OpenCV cannot encode it."""
        import cv2

        H, W = image.shape[:2]
        if self._video is None:
            code = cv2.VideoWriter.fourcc(*CODECS[self.path.suffix])
            self._video = cv2.VideoWriter(str(self._tmp), code, self.fps, (W, H))
            if not self._video.isOpened():
                raise ImageError(f"{self.path}: OpenCV cannot write {W} x {H} pixels as {self.path.suffix}; try .avi")
        self._video.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))

    def __exit__(self, *error: Any) -> None:
        if self._video is not None:
            self._video.release()
        self._stack.__exit__(*error)
