"""Check the images and labels of a list before the work starts, so that what is wrong is said in the first seconds."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from .. import image
from ..errors import DataWarning, ImageError, UnusableDataError
from . import MAX_SIZE, MAX_TRIES, BadSamples, Boxes, wrong_labels
from .datafile import label_path
from .label_causes import likely_cause

# Of longer lists, as many at even distances are checked, for about a second
MAX_IMAGES = 100_000
MAX_FILES = 300  # images that are read without being decoded
MAX_LABELS = 10_000

OVER_EDGE = 0.01  # of the image: a box that reaches further over its edge counts as such
MIN_DOUBTFUL = 8  # boxes


def evenly_spaced(paths: Sequence[str], count: int) -> list[str]:
    """Return `count` paths at even distances, or all if there are fewer."""
    count = min(count, len(paths))
    return [paths[k * len(paths) // count] for k in range(count)]


def count_text(checked: int, total: int) -> str:
    """Return how many images of a list were checked."""
    return f"{total}" if checked == total else f"{checked} checked (of {total})"


def check_images(paths: Sequence[str], bad_samples: BadSamples, source: str, channels: int = 3) -> None:
    """Check that the images of a list exist, some for damage, and that one can be read; record the others in `bad_samples`.

    source: the list as messages name it, such as "x.data: `valid`". Warns (DataWarning) if some images cannot be read. Raises
    UnusableDataError if none can be read.
    """
    checked = evenly_spaced(paths, MAX_IMAGES)
    bad = {path: error for path in checked if not has_content(path) and (error := problem(path, image.check))}
    opened = evenly_spaced([path for path in checked if path not in bad], MAX_FILES)
    bad |= {path: error for path in opened if (error := problem(path, image.check))}
    readable = False
    for path in evenly_spaced([path for path in opened if path not in bad], MAX_TRIES):
        error = problem(path, lambda path: image.read(path, channels))
        readable = error is None
        if error is None:
            break
        bad[path] = error
    errors = [bad[path] for path in dict.fromkeys(checked) if path in bad]
    for each in errors:
        bad_samples.add_image(each)
    total, listing = count_text(len(checked), len(paths)), bad_samples.listing("bad.list")
    if not readable:
        raise UnusableDataError(f"{source}: none of its {total} images can be read, first {errors[0]}{listing}")
    if errors:
        warnings.warn(
            f"{source}: {len(errors)} of {total} images cannot be read and are skipped, first {errors[0]}{listing}",
            DataWarning, stacklevel=3,
        )  # fmt: skip


def has_content(path: str) -> bool:
    """Return whether a file exists and is not empty."""
    try:
        return os.stat(path).st_size > 0
    except (OSError, ValueError):
        return False


def problem(path: str, read: Callable[[str], object]) -> ImageError | None:
    """Return the ImageError of read(path), or None."""
    try:
        read(path)
    except ImageError as e:
        return e
    return None


def check_labels(
    paths: Sequence[str], read: Callable[[str, BadSamples], Boxes], bad_samples: BadSamples, source: str,
    usable: Callable[[Boxes], bool], classes: int | None = None,
) -> None:  # fmt: skip
    """Check the labels of a list of images; record what is wrong in `bad_samples`.

    read: a `data.detection_boxes` or `data.classifier_boxes`. usable(boxes): whether an image's labels can be used. classes:
    of a detector, whose label files are searched for the cause. Warns (DataWarning) if some labels are wrong or missing, or
    probably not what was meant. Raises UnusableDataError if none can be used.
    """
    checked, own = evenly_spaced(paths, MAX_LABELS), BadSamples()
    boxes: list[Boxes] = []
    faulty: list[str] = []
    for path in checked:
        count = len(own.labels)
        boxes.append(read(path, own))
        if len(own.labels) > count:
            faulty.append(path)
    for error in own.labels:
        bad_samples.add_label(error)
    first, cause = (own.labels or [""])[0], likely_cause(faulty, checked, classes) if classes and faulty else ""
    listing = bad_samples.listing("bad_label.list")
    if not any(map(usable, boxes)):
        total = count_text(len(checked), len(paths))
        if not own.labels:
            raise UnusableDataError(
                f"{source}: the label files of all {total} images are empty; check how they were written"
            )
        raise UnusableDataError(
            f"{source}: none of its {total} images has a usable label, first {first}{cause}{listing}"
        )
    if own.labels:
        warnings.warn(
            f"{source}: {wrong_labels(len(own.labels))}, of {count_text(len(checked), len(paths))} images, first"
            f" {first}{cause}{listing}",
            DataWarning, stacklevel=3,
        )  # fmt: skip
    for doubt in doubts(checked, boxes, len(checked) == len(paths) and not cause) if classes else ():
        warnings.warn(f"{source}: {doubt}", DataWarning, stacklevel=3)


def is_box(size: tuple[int, int] | None = None) -> Callable[[Boxes], bool]:
    """Return a function that tells whether a detector can use one of an image's boxes, in an input of `size` pixels."""
    smallest = (1 / size[0], 1 / size[1]) if size else (0.0, 0.0)
    return lambda boxes: bool(((boxes[:, 2:4] <= MAX_SIZE) & (boxes[:, 2:4] >= smallest)).all(axis=1).any())


def is_one_class(boxes: Boxes) -> bool:
    """Return whether a classifier's image has exactly one class."""
    return len(boxes) == 1


def doubts(paths: Sequence[str], boxes: Sequence[Boxes], complete: bool) -> Iterator[str]:
    """Yield what suggests that the labels of images, all valid, mean something else. complete: these are all images.

    Many boxes reach over the edge, as they do if corners are read as center and size, or the numbers are in another order; or
    there is a class 1 but no class 0.
    """
    counts, every = [len(own) for own in boxes], np.concatenate(boxes)
    x, y, w, h, k = every[:, :5].T
    first_side = np.maximum(w / 2 - x, h / 2 - y) > OVER_EDGE  # left or top
    last_side = np.maximum(x + w / 2, y + h / 2) - 1 > OVER_EDGE
    over = first_side | last_side
    cause = ""
    if ((w > x) & (h > y) & (w <= 1) & (h <= 1)).all() and over.mean() > 0.5:
        cause = "the labels look like corners, 'class left top right bottom'"
    elif not last_side.any() and (np.maximum(x + w, y + h) <= 1 + OVER_EDGE).all() and over.mean() > 0.1:
        cause = "the labels look like 'class left top width height'"
    elif over.mean() > 0.75:
        cause = "check the order of the numbers"
    if over.sum() >= MIN_DOUBTFUL and cause:
        first = paths[int(np.searchsorted(np.cumsum(counts), over.argmax(), side="right"))]
        yield (
            f"{over.sum()} of {len(every)} boxes reach over the edge of their image, first in {label_path(first)}; {cause};"
            " Darknet reads 'class x y width height', center and size"
        )
    if complete and len(k) >= MIN_DOUBTFUL and k.min() == 1:
        yield "no object is of class 0, but of class 1; if the class numbers start at 1, subtract 1, as they must start at 0"
