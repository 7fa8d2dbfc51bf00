"""Check the images and labels of a list before the work starts, so that what is wrong is said in the first seconds."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence

import numpy as np

from .. import image
from ..errors import DataWarning, ImageError, UnusableDataError
from . import MAX_SIZE, MAX_TRIES, BadSamples, Boxes, wrong_labels
from .label_causes import likely_cause

# Of longer lists, as many at even distances are checked, for about a second
MAX_IMAGES = 100_000
MAX_LABELS = 10_000


def evenly_spaced(paths: Sequence[str], count: int) -> list[str]:
    """Return `count` paths at even distances, or all if there are fewer."""
    count = min(count, len(paths))
    return [paths[k * len(paths) // count] for k in range(count)]


def count_text(checked: int, total: int) -> str:
    """Return how many images of a list were checked."""
    return f"{total}" if checked == total else f"{checked} checked (of {total})"


def check_images(paths: Sequence[str], bad_samples: BadSamples, source: str, channels: int = 3) -> None:
    """Check that the images of a list exist, and that one can be read; record those that do not in `bad_samples`.

    source: the list as messages name it, such as "x.data: `valid`". Warns (DataWarning) if some images are missing. Raises
    UnusableDataError if none can be read.
    """
    checked = evenly_spaced(paths, MAX_IMAGES)
    existing = {path for path in checked if has_content(path)}
    errors = [error for path in checked if path not in existing and (error := unreadable(path, channels))]
    readable = False
    for path in evenly_spaced([path for path in checked if path in existing], MAX_TRIES):
        error = unreadable(path, channels)
        if error is None:
            readable = True
            break
        errors.append(error)
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


def unreadable(path: str, channels: int) -> ImageError | None:
    """Return the error of reading an image, or None."""
    try:
        image.read(path, channels)
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
    seem to be corners. Raises UnusableDataError if none can be used.
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
    if classes and seem_corners(np.concatenate(boxes)):
        warnings.warn(
            f"{source}: the labels look like corners, 'class left top right bottom'; Darknet reads 'class x y width height',"
            " center and size",
            DataWarning, stacklevel=3,
        )  # fmt: skip


def is_box(size: tuple[int, int] | None = None) -> Callable[[Boxes], bool]:
    """Return a function that tells whether a detector can use one of an image's boxes, in an input of `size` pixels."""
    smallest = (1 / size[0], 1 / size[1]) if size else (0.0, 0.0)
    return lambda boxes: bool(((boxes[:, 2:4] <= MAX_SIZE) & (boxes[:, 2:4] >= smallest)).all(axis=1).any())


def is_one_class(boxes: Boxes) -> bool:
    """Return whether a classifier's image has exactly one class."""
    return len(boxes) == 1


def seem_corners(boxes: Boxes) -> bool:
    """Return whether boxes (K, 5) are more likely left, top, right and bottom than center and size.

    Right is larger than left, bottom larger than top, and read as center and size most of them would leave the image.
    """
    x, y, w, h = boxes[:, :4].T
    outside = (np.maximum(w / 2 - x, x + w / 2 - 1) > 0.01) | (np.maximum(h / 2 - y, y + h / 2 - 1) > 0.01)
    corners = (w > x) & (h > y) & (w <= 1) & (h <= 1)
    return len(boxes) >= 5 and bool(corners.all()) and outside.mean() > 0.5
