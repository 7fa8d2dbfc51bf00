"""Training data: lists of images, their labels, and batches of random samples that are ready before they are needed.

What cannot be read is reported and passed over, never fatal. Batch k of a seed is always the same, whatever came before it.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .. import image
from ..cfg import Net
from ..errors import DataError, ImageError
from ..layers import DetectionHead
from .augment import rand_scale
from .datafile import label_path, text

TRIES = 100  # unreadable images in a row before a data set counts as missing
LONGEST_LIST = 1 << 30  # bytes; Open Images' list of 1.7 million images has 0.1 GB
TRACKS = 4000  # objects of one image that get track numbers of their own, as in Darknet
Boxes = np.ndarray  # (K, 5): x, y, w, h relative to the image, class; (K, 6) with tracks


def read_list(path: str | Path) -> list[str]:
    """Read a list of images, one path a line; a relative path is looked up here, then beside the list. Raises DataError."""
    lines = [line.strip() for line in text(path, LONGEST_LIST).split("\n")]
    lines = [line for line in lines if line]
    if not lines:
        raise DataError(f"{path}: is empty; it must have the path of an image on each line")
    beside = Path(path).parent
    return [line if os.path.isabs(line) or os.path.exists(line) else str(beside / line) for line in lines]


def read_labels(
    path: str | Path, classes: int | None = None, size: tuple[int, int] | None = None, tracks: bool = False
) -> tuple[Boxes, list[str]]:
    """Read a label file, lines `class x y w h`: boxes (K, 5) as x, y, w, h, class, and what is wrong with it.

    A missing file means an image without objects. As in Darknet reading ends at the first line that is not five numbers;
    boxes of an unknown class or outside the image are dropped, sizes above 1 become 1. Each fault is one line `path:line: ...`.
    size: the network's input (width, height), to tell of boxes that are too small for it. tracks: boxes are (K, 6), with the
    number of the object's track: a sixth number on the line, else one that only this line of this file has.
    """
    columns = 6 if tracks else 5
    try:
        lines = Path(path).read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as e:
        return np.zeros((0, columns), np.float32), [f"{path}: cannot be read ({e.strerror}); its image counts as empty"]
    own = zlib.crc32(str(path).encode(errors="replace")) % TRACKS * TRACKS
    found: list[tuple[float, ...]] = []
    faults: list[str] = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        try:
            k, x, y, w, h = (float(word) for word in words[:5])
            track = int(words[5]) if tracks and len(words) > 5 else own + number - 1
            if not np.isfinite([k, x, y, w, h]).all():
                raise ValueError
        except ValueError:
            wanted = "class x y width height" + " [track]" * tracks
            faults.append(f"{path}:{number}: expected '{wanted}', found '{line.strip()[:40]}'; the rest is not read")
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
            if size and (w * size[0] < 1 or h * size[1] < 1):
                faults.append(
                    f"{path}:{number}: box of {w * size[0]:.2g} x {h * size[1]:.2g} pixels in an input of {size[0]} x"
                    f" {size[1]} is less than one pixel and is not learned"
                )
            found.append((x, y, min(w, 1.0), min(h, 1.0), k, track)[:columns])
    return np.array(found, np.float32).reshape(-1, columns), faults


@dataclass
class Faults:
    """What was wrong with a data set, each once; also appended to Darknet's files bad.list and bad_label.list."""

    folder: Path | None = None
    images: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    met: set[tuple[str, str]] = field(default_factory=set)  # (file, line)
    old: dict[str, set[str]] = field(default_factory=dict)  # file -> lines that earlier runs have written
    lock: threading.Lock = field(default_factory=threading.Lock)

    def image(self, fault: ImageError) -> None:
        """Note an image that cannot be read, and why."""
        self.note(self.images, str(fault), "bad.list")

    def label(self, fault: str) -> None:
        """Note a fault of a label file."""
        self.note(self.labels, fault, "bad_label.list")

    def note(self, found: list[str], line: str, file: str) -> None:
        """Keep a line, and append it to its file; where that cannot be written, only the count is left."""
        with self.lock:
            if (file, line) in self.met:
                return
            self.met.add((file, line))
            found.append(line)
            try:
                if self.folder is not None:
                    self.append(self.folder / file, line)
            except OSError:
                self.folder = None

    def append(self, path: Path, line: str) -> None:
        """Append a line to a file that does not have it."""
        form: dict[str, Any] = dict(encoding="utf-8", errors="surrogateescape")
        if path.name not in self.old:
            self.old[path.name] = set(path.read_text(**form).splitlines()) if path.is_file() else set()
        if line not in self.old[path.name]:
            with open(path, "a", **form) as out:
                out.write(line + "\n")


class Augment(Protocol):
    """Makes a sample for a W x H input from images that `draw` gives."""

    def sample(
        self, draw: Callable[[np.random.Generator], tuple[np.ndarray, Boxes]], rng: np.random.Generator, W: int, H: int
    ) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class Sequences:
    """How a batch is laid out with [net] track=1: parts of [step][sequence], as recurrent layers read them.

    The steps of a sequence are images that follow each other in the list, 1 to `speed` apart.
    """

    steps: int
    count: int  # sequences of a part
    speed: int

    def place(self, number: int) -> tuple[int, int]:
        """Return which sequence of the batch sample `number` belongs to, and which of its steps it is."""
        part, within = divmod(number, self.steps * self.count)
        step, sequence = divmod(within, self.count)
        return part * self.count + sequence, step


@dataclass
class DataSet:
    """Images with boxes: read(path) -> boxes (K, 5). For a classifier only the class counts."""

    paths: Sequence[str]
    augment: Augment
    boxes: Callable[[str, Faults], Boxes]
    channels: int = 3
    faults: Faults = field(default_factory=Faults)
    sequences: Sequences | None = None

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, Boxes]:
        """Draw a random image that can be read, uint8 (H, W, C), with its boxes. Raises DataError where none can."""
        return self.first(int(rng.integers(len(self.paths))) for _ in range(TRIES))

    def first(self, numbers: Iterable[int]) -> tuple[np.ndarray, Boxes]:
        """Read the first image that can be read, of these numbers of the list."""
        for number in numbers:
            path = self.paths[number % len(self.paths)]
            try:
                return image.read(path, self.channels), self.boxes(path, self.faults)
            except ImageError as e:
                fault = e
                self.faults.image(e)
        raise DataError(f"{fault}; {TRIES - 1} more images of the list cannot be read either")

    def sample(self, seed: int, iteration: int, number: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Make sample `number` of a batch, the same for the same arguments: x (C, H, W), truth (truths,).

        The steps of a sequence are cropped, flipped and coloured alike.
        """
        if self.sequences is None:
            return self.augment.sample(self.draw, np.random.default_rng([seed, iteration, number, 4]), *size)
        sequence, step = self.sequences.place(number)
        chance, speed = np.random.default_rng([seed, iteration, sequence, 5]), self.sequences.speed

        def draw(rng: np.random.Generator) -> tuple[np.ndarray, Boxes]:
            # from here on all steps have the same chance, however much of it their boxes have taken
            rng.bit_generator.state = np.random.default_rng(int(chance.integers(1 << 62))).bit_generator.state
            begin, pace = int(chance.integers(len(self.paths))), int(chance.integers(1, max(speed, 1) + 1))
            return self.first(range(begin + step * pace, begin + step * pace + TRIES))

        return self.augment.sample(draw, np.random.default_rng([seed, iteration, sequence, 4]), *size)


def detection_boxes(
    classes: int, size: tuple[int, int] | None = None, tracks: bool = False
) -> Callable[[str, Faults], Boxes]:
    """Give the reader of an image's boxes for a detector of so many classes; the rest as for `read_labels`."""

    def read(path: str, faults: Faults) -> Boxes:
        boxes, wrong = read_labels(label_path(path), classes, size, tracks)
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
