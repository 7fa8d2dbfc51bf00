"""Training data: lists of images, their labels, and random samples, of which a `Loader` makes batches.

Samples that cannot be read are reported and skipped. Batch k is the same for the same seed, whatever ran before.
"""

from __future__ import annotations

import math
import os
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .. import image
from ..cfg import Net
from ..errors import DataError, DataWarning, ImageError, UnusableDataError
from ..io.text import read_text
from ..layers import DetectionHead
from ..layers.class_tree import Tree
from .augment import rand_scale
from .datafile import label_path, listed_path
from .loader import Loader as Loader

MAX_TRIES = 100  # unreadable images in a row before reading fails
MAX_LIST_BYTES = 1 << 30  # Open Images' list of 1.7 million images has 0.1 GB
MAX_PATH = 4096  # characters
MAX_SIZE = 2.0  # the largest plausible size of a box that reaches over the edge of its image
MAX_TRACKS = 4000  # objects per image that get distinct default track numbers, as in Darknet
Boxes = np.ndarray  # (K, 5): x, y, w, h relative to the image, class; (K, 6) with tracks


def read_list(path: str | Path) -> list[str]:
    """Read a list of image paths, one per line; relative to the current folder or to the list's. Raises DataError.

    A leading `~` is the home folder. If a path with backslashes does not exist, as in a list from Windows, they become slashes.
    """
    lines = [stripped for line in read_text(path, max_bytes=MAX_LIST_BYTES).split("\n") if (stripped := line.strip())]
    if not lines:
        raise DataError(f"{path}: is empty; it must have the path of an image on each line")
    if (longest := max(map(len, lines))) > MAX_PATH:
        raise DataError(f"{path}: has a line of {longest} characters; it must have the path of an image on each line")
    folder = os.path.dirname(path)
    return [listed_path(line, folder) for line in lines]


def read_labels(
    path: str | Path, classes: int | None = None, size: tuple[int, int] | None = None, tracks: bool = False
) -> tuple[Boxes, list[str]]:
    """Read a label file with lines `class x y w h`; return boxes (K, 5) as x, y, w, h, class, and a list of its errors.

    A missing file means an image without objects. Boxes that reach over the edge are returned as they are, not clipped, as in
    Darknet; those of an unknown class, outside the image or without a size are dropped, and so are lines with more than six
    numbers. Reading ends at the first line that is not numbers, as in Darknet. Each error is one line `path:line: ...`.
    size: the network's input (width, height), to report boxes that are too small for it. tracks: boxes are (K, 6), with the
    track number: the sixth number of the line, else one that is unique to this line and file.
    """
    columns = 6 if tracks else 5
    try:
        lines = read_text(path).splitlines()
    except DataError as e:
        return np.zeros((0, columns), np.float32), [f"{str(e).rpartition(';')[0]}; its image counts as empty"]
    first_track = zlib.crc32(str(path).encode(errors="replace")) % MAX_TRACKS * MAX_TRACKS
    boxes: list[tuple[float, ...]] = []
    errors: list[str] = []
    for row, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        try:
            k, x, y, w, h = map(number, words[:5])
            track = int(words[5]) if tracks and len(words) > 5 else first_track + row - 1
            if not math.isfinite(k + x + y + w + h):
                raise ValueError
        except ValueError:
            expected = "class x y width height" + " [track]" * tracks
            errors.append(
                f"{path}:{row}: expected '{expected}', found '{line.strip()[:40]}'; the rest of the file is ignored"
            )
            break
        usable, error = True, ""
        if len(words) > 6:
            usable, error = False, f"has {len(words)} values; a box has five: class x y width height"
        elif k != int(k) or k < 0 or (classes is not None and k >= classes):
            usable, error = False, f"class {k:g} is not one of 0 to {(classes or 1) - 1}"
        elif w <= 0 or h <= 0:
            usable, error = False, f"box {x:g} {y:g} {w:g} {h:g} has no size"
        elif not (-w / 2 < x < 1 + w / 2 and -h / 2 < y < 1 + h / 2):
            usable, error = False, f"box {x:g} {y:g} {w:g} {h:g} is outside the image; values must be relative, 0 to 1"
        elif max(w, h) > MAX_SIZE:
            error = f"box {x:g} {y:g} {w:g} {h:g} is far larger than the image; values must be relative, 0 to 1"
        elif size and (w * size[0] < 1 or h * size[1] < 1):
            error = (
                f"box of {w * size[0]:.2g} x {h * size[1]:.2g} pixels in an input of {size[0]} x {size[1]} is smaller than one"
                " pixel and is not trained"
            )
        if error:
            errors.append(f"{path}:{row}: {error}")
        if usable:
            boxes.append((x, y, w, h, k, track)[:columns])
    return np.array(boxes, np.float32).reshape(-1, columns), errors


def number(word: str) -> float:
    """Read a number as C does: unlike `float`, without underscores and digits of other scripts. Raises ValueError."""
    if "_" in word or not word.isascii():
        raise ValueError(word)
    return float(word)


@dataclass
class BadSamples:
    """Images and labels that could not be used, each once; also appended to Darknet's files bad.list and bad_label.list."""

    folder: Path | None = None
    images: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    seen: set[tuple[str, str]] = field(default_factory=set)  # (file, line)
    written: dict[str, set[str]] = field(default_factory=dict)  # file -> lines of earlier runs
    lock: threading.Lock = field(default_factory=threading.Lock)

    def listing(self, file: str) -> str:
        """Return the end of a message that names the file, bad.list or bad_label.list, with all reasons; "" if there is none."""
        return f"; listed with reasons in {(self.folder / file).absolute()}" if self.folder is not None else ""

    def warn(self) -> None:
        """Warn (DataWarning) how many images and labels could not be used, with the first and where they are listed."""
        images = f"{len(self.images)} image{'s' * (len(self.images) != 1)} cannot be read"
        for text, samples, file in (
            (images, self.images, "bad.list"), (wrong_labels(len(self.labels)), self.labels, "bad_label.list")
        ):  # fmt: skip
            if samples:
                warnings.warn(f"{text}, first {samples[0]}{self.listing(file)}", DataWarning, stacklevel=3)

    def add_image(self, error: ImageError) -> None:
        """Record an image that cannot be read."""
        self.add(self.images, str(error), "bad.list")

    def add_label(self, error: str) -> None:
        """Record an error of a label file."""
        self.add(self.labels, error, "bad_label.list")

    def extend(self, images: Sequence[str], labels: Sequence[str]) -> None:
        """Record lines that another record has."""
        for line in images:
            self.add(self.images, line, "bad.list")
        for line in labels:
            self.add(self.labels, line, "bad_label.list")

    def __reduce__(self) -> tuple[type[BadSamples], tuple[()]]:
        """Pickle as an empty record without files: a worker process reports its samples to the parent."""
        return BadSamples, ()

    def add(self, lines: list[str], line: str, file: str) -> None:
        """Record a line and append it to its file; if that cannot be written, only record it."""
        with self.lock:
            if (file, line) in self.seen:
                return
            self.seen.add((file, line))
            lines.append(line)
            try:
                if self.folder is not None:
                    self.append(self.folder / file, line)
            except OSError:
                self.folder = None

    def append(self, path: Path, line: str) -> None:
        """Append a line to a file unless the file has it already."""
        encoding: dict[str, Any] = dict(encoding="utf-8", errors="surrogateescape")
        if path.name not in self.written:
            self.written[path.name] = set(path.read_text(**encoding).splitlines()) if path.is_file() else set()
        if line not in self.written[path.name]:
            with open(path, "a", **encoding) as out:
                out.write(line + "\n")


def wrong_labels(count: int) -> str:
    """Return how messages count labels that cannot be used."""
    return f"{count} label{' is' if count == 1 else 's are'} wrong or missing"


@contextmanager
def warned(bad_samples: BadSamples) -> Iterator[BadSamples]:
    """Warn of bad samples when the block ends, also after Ctrl-C or an error, unless the error is about them."""
    said = False
    try:
        yield bad_samples
    except UnusableDataError:
        said = True
        raise
    finally:
        if not said:
            bad_samples.warn()


def recorded(bad_samples: BadSamples | None) -> AbstractContextManager[BadSamples]:
    """Return a block with the caller's record or, if there is none, with one whose samples it warns of at the end."""
    return warned(BadSamples()) if bad_samples is None else nullcontext(bad_samples)


class Augment(Protocol):
    """Makes a sample x (C, H, W), truth (truths,), for a W x H input from images that `draw` returns; x in `out`, if given."""

    def sample(
        self, draw: Callable[[np.random.Generator], tuple[np.ndarray, Boxes]], rng: np.random.Generator, W: int, H: int,
        out: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]: ...  # fmt: skip


@dataclass(frozen=True)
class Sequences:
    """The layout of a batch with [net] track=1: subdivisions of [step][sequence], as recurrent layers read them.

    The steps of a sequence are images of the list with a stride of 1 to `speed`.
    """

    steps: int
    count: int  # sequences per subdivision
    speed: int

    def position(self, sample: int) -> tuple[int, int]:
        """Return (sequence, step) of a sample of the batch."""
        subdivision, offset = divmod(sample, self.steps * self.count)
        step, sequence = divmod(offset, self.count)
        return subdivision * self.count + sequence, step


@dataclass
class DataSet:
    """Images with boxes: boxes(path, bad_samples) -> (K, 5). For a classifier only the class is used."""

    paths: Sequence[str]
    augment: Augment
    boxes: Callable[[str, BadSamples], Boxes]
    channels: int = 3
    bad_samples: BadSamples = field(default_factory=BadSamples)
    sequences: Sequences | None = None

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, Boxes]:
        """Draw a random readable image, uint8 (H, W, C), with its boxes. Raises DataError if there is none."""
        return self.first_readable(int(rng.integers(len(self.paths))) for _ in range(MAX_TRIES))

    def first_readable(self, indices: Iterable[int]) -> tuple[np.ndarray, Boxes]:
        """Read the first readable image among these indices into the list."""
        for index in indices:
            path = self.paths[index % len(self.paths)]
            try:
                return image.read(path, self.channels), self.boxes(path, self.bad_samples)
            except ImageError as e:
                error = e
                self.bad_samples.add_image(e)
        raise DataError(f"{error}; no readable image in {MAX_TRIES} tries, check the list")

    def sample(
        self, seed: int, iteration: int, number: int, size: tuple[int, int], out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Make sample `number` of a batch, the same for the same arguments: x (C, H, W), in `out` if given, truth (truths,).

        All steps of a sequence are cropped, flipped and recolored alike.
        """
        if self.sequences is None:
            return self.augment.sample(self.draw, np.random.default_rng([seed, iteration, number, 4]), *size, out)
        sequence, step = self.sequences.position(number)
        sequence_rng, speed = np.random.default_rng([seed, iteration, sequence, 5]), self.sequences.speed

        def draw(rng: np.random.Generator) -> tuple[np.ndarray, Boxes]:
            # reset, so that all steps draw the same from here on, however many values their boxes have consumed
            rng.bit_generator.state = np.random.default_rng(int(sequence_rng.integers(1 << 62))).bit_generator.state
            begin = int(sequence_rng.integers(len(self.paths)))
            stride = int(sequence_rng.integers(1, max(speed, 1) + 1))
            return self.first_readable(range(begin + step * stride, begin + step * stride + MAX_TRIES))

        return self.augment.sample(draw, np.random.default_rng([seed, iteration, sequence, 4]), *size, out)


def read_boxes(
    path: str | Path, bad_samples: BadSamples, classes: int | None = None, size: tuple[int, int] | None = None,
    tracks: bool = False,
) -> Boxes:  # fmt: skip
    """Read a label file as `read_labels` does; record its errors in `bad_samples`."""
    boxes, errors = read_labels(path, classes, size, tracks)
    for error in errors:
        bad_samples.add_label(error)
    return boxes


def detection_boxes(
    classes: int, size: tuple[int, int] | None = None, tracks: bool = False
) -> Callable[[str, BadSamples], Boxes]:
    """Return a function that reads an image's boxes for a detector; the arguments are those of `read_labels`."""
    return partial(image_boxes, classes=classes, size=size, tracks=tracks)


def image_boxes(
    path: str, bad_samples: BadSamples, classes: int, size: tuple[int, int] | None = None, tracks: bool = False
) -> Boxes:
    """Read the label file of an image as `read_boxes` does."""
    return read_boxes(label_path(path), bad_samples, classes, size, tracks)


def classifier_boxes(labels: Sequence[str], tree: Tree | None = None) -> Callable[[str, BadSamples], Boxes]:
    """Return a function that returns an image's classes: the labels in its path, which should contain exactly one.

    With a tree, classes do not count whose descendants' labels are in the path too: those in `animal/cat/1.png` are one, cat.
    """
    return partial(class_in_path, labels=tuple(labels), tree=tree)


def class_in_path(path: str, bad_samples: BadSamples, labels: Sequence[str], tree: Tree | None = None) -> Boxes:
    """Return the classes whose labels are in a path, as `classifier_boxes` says; record a path that has not exactly one."""
    matches = [k for k, label in enumerate(labels) if label in path]
    if tree and len(matches) > 1:
        inner = {ancestor for k in matches for ancestor in tree.ancestors(k)}
        matches = [k for k in matches if k not in inner]
    if len(matches) != 1:
        found = "".join(f" '{labels[k]}'" for k in matches[:3])
        case = not matches and any(label.lower() in path.lower() for label in labels)
        bad_samples.add_label(
            f"{path}: {len(matches)} labels occur in its path{found and ':' + found}; it should be one"
            + "; upper and lower case must be equal" * case
        )
    boxes = np.zeros((len(matches), 5), np.float32)
    boxes[:, 4] = matches
    return boxes


def input_size(net: Net, heads: Sequence[object], seed: int) -> Callable[[int], tuple[int, int]]:
    """Return a function iteration -> (width, height) of the input: `random` in the last head changes it every 10 iterations.

    The size is the [net]'s times U(1, 1.4) or its reciprocal (1.4: the value of `random` if that is not 1), in steps of
    resize_step; the first ten iterations and the last 100 use the largest.
    """
    random = next((head.input_scale for head in reversed(heads) if isinstance(head, DetectionHead)), 0.0)
    if not random:
        return lambda iteration: (net.width, net.height)
    max_scale, step = 1.4 if random == 1 else random, net.resize_step

    def size(iteration: int) -> tuple[int, int]:
        scale = rand_scale(np.random.default_rng([seed, iteration // 10, 3]), max_scale)
        first = iteration - iteration % 10  # of those with this size
        if first == 0 or first > net.max_batches - 100:
            scale = max_scale
        width, height = (max(step, int(scale * side / step + 1.5) * step) for side in (net.width, net.height))
        return (net.width, net.height) if scale < 1 and (width > net.width or height > net.height) else (width, height)

    return size
