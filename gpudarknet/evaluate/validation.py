"""The images that a .data file names for measuring, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..data import BadSamples, detection_boxes, read_list
from ..data.check import check_images, check_labels, is_box
from ..data.datafile import DataFile
from ..data.difficult import difficult_labels
from ..detector import Detector
from ..errors import NothingMeasuredError


@dataclass(frozen=True)
class ValidationSet:
    """Paths of images, and for each the label file with its difficult boxes; see `data.difficult`.

    source: the list as messages name it.
    """

    paths: list[str]
    source: str
    difficult: Callable[[str], Path | None] | None = None


def validation_set(
    data: DataFile, detector: Detector, bad_samples: BadSamples | None = None, labels: bool = True
) -> ValidationSet:
    """Return the images of `valid`, or of `train` if there is no such key, for `evaluate_images`.

    labels: whether their labels will be used. Warns (DataWarning) of images and labels that are missing or wrong; they are
    recorded in `bad_samples`. Raises DataError if nothing could be measured.
    """
    bad_samples = bad_samples or BadSamples()
    data.check_names(detector.head.num_labels, detector.network.config.path)
    key = data.validation_key()
    paths, source = read_list(data.find(key)), f"{data.path}: `{key}`"
    check_images(paths, bad_samples, source, detector.network.channels)
    if not labels:
        return ValidationSet(paths, source)
    classes = len(detector.names)
    check_labels(paths, detection_boxes(classes), bad_samples, source, is_box(), classes)
    return ValidationSet(paths, source, difficult_labels(data, paths))


@contextmanager
def measured_list(source: str) -> Iterator[None]:
    """Add the list that is measured to the message of a NothingMeasuredError of the block."""
    try:
        yield
    except NothingMeasuredError as e:
        raise NothingMeasuredError(f"{source}: {e}") from None
