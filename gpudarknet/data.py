"""Training data: lists of images, their labels, and batches of random samples that are ready before they are needed.

What cannot be read is reported and passed over, never fatal. Batch k of a seed is always the same, whatever came before it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from . import image
from .augment import rand_scale
from .cfg import Net
from .errors import DataError, ImageError
from .layers import DetectionHead
from .names import label_path, text

TRIES = 100  # unreadable images in a row before a data set counts as missing
Boxes = np.ndarray  # (K, 5): x, y, w, h relative to the image, class


def read_list(path: str | Path) -> list[str]:
    """Read a list of images, one path a line; a relative path is looked up here, then beside the list. Raises DataError."""
    lines = [line.strip() for line in text(path).split("\n")]
    lines = [line for line in lines if line]
    if not lines:
        raise DataError(f"{path}: is empty; it must have the path of an image on each line")
    beside = Path(path).parent
    return [line if os.path.isabs(line) or os.path.exists(line) else str(beside / line) for line in lines]


def read_labels(path: str | Path, classes: int | None = None) -> tuple[Boxes, list[str]]:
    """Read a label file, lines `class x y w h`: boxes (K, 5) as x, y, w, h, class, and what is wrong with it.

    A missing file means an image without objects. As in Darknet reading ends at the first line that is not five numbers;
    boxes of an unknown class or outside the image are dropped, sizes above 1 become 1. Each fault is one line `path:line: ...`.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return np.zeros((0, 5), np.float32), []
    found: list[tuple[float, ...]] = []
    faults: list[str] = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        try:
            k, x, y, w, h = (float(word) for word in words[:5])
            if not np.isfinite([k, x, y, w, h]).all():
                raise ValueError
        except ValueError:
            faults.append(f"{path}:{number}: expected 'class x y width height', found '{line.strip()[:40]}'")
            break
        if k != int(k) or k < 0 or (classes is not None and k >= classes):
            faults.append(f"{path}:{number}: class {k:g} is not one of 0 to {(classes or 1) - 1}")
        elif not (0 < x <= 1 and 0 < y <= 1) or w <= 0 or h <= 0:
            faults.append(
                f"{path}:{number}: box {x:g} {y:g} {w:g} {h:g} is not inside the image; numbers are relative, 0 to 1"
            )
        else:
            if w > 1 or h > 1:
                faults.append(
                    f"{path}:{number}: size {w:g} x {h:g} is above 1 and is taken for 1; numbers are relative"
                )
            found.append((x, y, min(w, 1.0), min(h, 1.0), k))
    return np.array(found, np.float32).reshape(-1, 5), faults


@dataclass
class Faults:
    """What was wrong with a data set, each once; also appended to files, as Darknet's bad.list."""

    folder: Path | None = None
    images: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def image(self, path: str) -> None:
        """Note an image that cannot be read."""
        self.note(self.images, path, "bad.list")

    def label(self, fault: str) -> None:
        """Note a fault of a label file."""
        self.note(self.labels, fault, "bad_label.list")

    def note(self, known: list[str], line: str, file: str) -> None:
        """Keep a line, and append it to its file."""
        with self.lock:
            if line in known:
                return
            known.append(line)
            if self.folder is not None:
                with open(self.folder / file, "a", encoding="utf-8", errors="surrogateescape") as out:
                    out.write(line + "\n")


class Augment(Protocol):
    """Makes a sample for a W x H input from images that `draw` gives."""

    def sample(
        self, draw: Callable[[np.random.Generator], tuple[np.ndarray, Boxes]], rng: np.random.Generator, W: int, H: int
    ) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass
class DataSet:
    """Images with boxes: read(path) -> boxes (K, 5). For a classifier only the class counts."""

    paths: Sequence[str]
    augment: Augment
    boxes: Callable[[str, Faults], Boxes]
    channels: int = 3
    faults: Faults = field(default_factory=Faults)

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, Boxes]:
        """Draw a random image that can be read, uint8 (H, W, C), with its boxes. Raises DataError where none can."""
        for _ in range(TRIES):
            path = self.paths[int(rng.integers(len(self.paths)))]
            try:
                return image.read(path, self.channels), self.boxes(path, self.faults)
            except ImageError:
                self.faults.image(path)
        raise DataError(f"{path}: cannot be read, like {TRIES - 1} more images of the list; check its paths")

    def sample(self, seed: int, iteration: int, number: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Make sample `number` of a batch, the same for the same arguments: x (C, H, W), truth (truths,)."""
        rng = np.random.default_rng([seed, iteration, number, 4])
        return self.augment.sample(self.draw, rng, *size)


def detection_boxes(classes: int) -> Callable[[str, Faults], Boxes]:
    """Give the reader of an image's boxes for a detector of so many classes."""

    def read(path: str, faults: Faults) -> Boxes:
        boxes, wrong = read_labels(label_path(path), classes)
        for fault in wrong:
            faults.label(fault)
        return boxes

    return read


def classifier_boxes(labels: Sequence[str]) -> Callable[[str, Faults], Boxes]:
    """Give the reader of an image's classes: every label that occurs in its path, which should be one."""

    def read(path: str, faults: Faults) -> Boxes:
        found = [k for k, label in enumerate(labels) if label in path]
        if len(found) != 1:
            faults.label(f"{path}: holds {len(found)} of the labels in its path; it should be one")
        boxes = np.zeros((len(found), 5), np.float32)
        boxes[:, 4] = found
        return boxes

    return read


def input_size(net: Net, heads: Sequence[object], seed: int) -> Callable[[int], tuple[int, int]]:
    """Give the function iteration -> (width, height) of the input: `random` in a head changes it every 10 iterations.

    The size is the [net]'s times U(1, 1.4) or its reciprocal (1.4: the value of `random` if that is not 1), in steps of
    resize_step; the first ten iterations and the last 100 take the largest.
    """
    random = max([float(getattr(head, "random", 0)) for head in heads if isinstance(head, DetectionHead)], default=0.0)
    if not random:
        return lambda iteration: (net.width, net.height)
    most, step = 1.4 if random == 1 else random, net.resize_step

    def size(iteration: int) -> tuple[int, int]:
        scale = rand_scale(np.random.default_rng([seed, iteration // 10, 3]), most)
        if iteration < 10 or iteration > net.max_batches - 100:
            scale = most
        width, height = (max(step, int(scale * side / step + 1.5) * step) for side in (net.width, net.height))
        return (net.width, net.height) if scale < 1 and (width > net.width or height > net.height) else (width, height)

    return size


class Loader:
    """Makes batches in threads (OpenCV and NumPy let others run meanwhile), a few ahead of the one that is asked for."""

    def __init__(
        self,
        data: DataSet,
        batch: int,
        size: Callable[[int], tuple[int, int]],
        seed: int = 0,
        workers: int = 0,
        ahead: int = 2,
    ):
        self.data, self.batch, self.size, self.seed, self.ahead = data, batch, size, seed, ahead
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.pool = ThreadPoolExecutor(workers or cores)
        self.waiting: dict[int, list[Future[tuple[np.ndarray, np.ndarray]]]] = {}

    def get(self, iteration: int) -> tuple[np.ndarray, np.ndarray]:
        """Return batch `iteration`: x (N, C, H, W) float32, truth (N, truths). Raises DataError where no image can be read."""
        for k in range(iteration, iteration + 1 + self.ahead):
            if k not in self.waiting:
                size = self.size(k)
                self.waiting[k] = [self.pool.submit(self.data.sample, self.seed, k, n, size) for n in range(self.batch)]
        samples = [future.result() for future in self.waiting.pop(iteration)]
        for old in [k for k in self.waiting if k < iteration]:
            del self.waiting[old]
        return np.stack([x for x, _ in samples]), np.stack([truth for _, truth in samples])

    def close(self) -> None:
        """Stop the threads."""
        self.pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
