"""Videos: read and written by threads of their own, so that a network never waits for a disk or a camera.

    with Reader("film.mp4") as frames, Writer(record) as writer:
        for frame in frames:
            writer.put(frame.picture, detector.detect(frame.picture))

Nothing here grows with the length of a video: between two threads stand at most WAITING frames.
"""

from __future__ import annotations

import queue
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

WAITING = 4  # frames between two threads, at most
PATIENCE = 0.1  # seconds after which a thread that waits looks whether it should end
FPS = 25.0  # of sources that do not say
CODECS = {".avi": "MJPG", ".mp4": "mp4v", ".mkv": "mp4v", ".mov": "mp4v"}


@dataclass(frozen=True)
class Frame:
    """One picture of a video: its number from 1 on, when it was read (seconds since the start), and its pixels, RGB."""

    number: int
    time: float
    picture: np.ndarray


class Reader:
    """The frames of a video, read ahead by a thread.

    source: a file, the number of a camera, or a URL such as rtsp://... A file's frames all come, in order. A camera or a
    stream does not wait, so there a frame that nobody took in time gives way to the next: what comes is never older than one
    frame; `dropped` counts the others. skip: pass over so many frames after each one. Raises ImageError.
    """

    def __init__(self, source: str | int | Path, skip: int = 0):
        import cv2

        self.source, self.skip = str(source), skip
        self.live = self.source.isdecimal() or "://" in self.source
        if not self.live and not Path(self.source).is_file():
            raise ImageError(f"{source}: there is no such file; give a video, a camera's number or a URL")
        self._capture = cv2.VideoCapture(int(self.source) if self.source.isdecimal() else self.source)
        if not self._capture.isOpened():
            what = "is a camera in use or missing" if self.source.isdecimal() else "is no video that OpenCV can read"
            raise ImageError(f"{source}: {what}; check the source")
        self.fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = self.fps if 0 < self.fps < 1000 else FPS
        self.dropped = 0
        self._queue: queue.Queue[Any] = queue.Queue(1 if self.live else WAITING)
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

    def __exit__(self, *error: Any) -> None:
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
                end = ImageError(f"{self.source}: holds no frame that can be read; is the file whole?")
        except Exception as e:
            end = e
        self._put(end, last=True)

    def _put(self, item: Any, last: bool = False) -> None:
        """Hand an item over; a live source replaces the frame that waits."""
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0 if self.live and not last else PATIENCE)
                return
            except queue.Full:
                if self.live and not last:
                    self._take_back()

    def _take_back(self) -> None:
        try:
            self._queue.get_nowait()
            self.dropped += 1
        except queue.Empty:  # it was taken at this very moment
            pass


class Writer:
    """Calls `work` in a thread of its own, in the order of `put`, which waits only while WAITING calls are still to be made.

    An exception in `work` comes out of the next `put`, or at the end of the `with`.
    """

    def __init__(self, work: Callable[..., None]):
        self._work = work
        self._queue: queue.Queue[tuple[Any, ...] | None] = queue.Queue(WAITING)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="video writer", daemon=True)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def put(self, *item: Any) -> None:
        """Hand over the arguments of a call."""
        if self._error is not None:
            raise self._error
        self._queue.put(item)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._queue.put(None)
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is None:  # after an error the queue is only emptied, so that nobody waits for ever
                try:
                    self._work(*item)
                except Exception as e:
                    self._error = e


class Recorder:
    """A video file that takes frames (H, W, 3) RGB, all of one size. It appears under its name when the `with` ends well."""

    def __init__(self, path: str | Path, fps: float):
        self.path, self.fps = Path(path), fps
        if self.path.suffix not in CODECS:
            raise ImageError(f"{path}: videos are written as {', '.join(CODECS)}; end the name in one of them")
        if not self.path.parent.is_dir():
            raise ImageError(f"{path}: cannot be written; give a file in a folder that exists")
        self._video: Any = None

    def __enter__(self) -> Recorder:
        self._stack = ExitStack()
        self._tmp = self._stack.enter_context(atomic_write(self.path))
        return self

    def write(self, picture: np.ndarray) -> None:
        """Append a frame. Raises ImageError where OpenCV cannot encode it."""
        import cv2

        H, W = picture.shape[:2]
        if self._video is None:
            code = cv2.VideoWriter.fourcc(*CODECS[self.path.suffix])
            self._video = cv2.VideoWriter(str(self._tmp), code, self.fps, (W, H))
            if not self._video.isOpened():
                raise ImageError(f"{self.path}: OpenCV cannot write {W} x {H} pixels as {self.path.suffix}; try .avi")
        self._video.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))

    def __exit__(self, *error: Any) -> None:
        if self._video is not None:
            self._video.release()
        self._stack.__exit__(*error)
