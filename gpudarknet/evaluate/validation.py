"""What a .data file defines for measuring: the images, checked, and the score of a network on them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data import BadSamples, Boxes, classifier_boxes, detection_boxes, read_list
from ..data.check import check_images, check_labels, is_box, is_one_class
from ..data.datafile import DataFile, empty_lines, read_names
from ..data.difficult import difficult_labels
from ..detector import Detector
from ..errors import DataError, DataWarning, NothingMeasuredError
from ..layers import DetectionHead
from ..layers.class_tree import Tree
from ..network import Network, Precision
from .classification import Accuracy, accuracy
from .detection import Report, check_options, evaluate_images, mean_average_precision


@dataclass(frozen=True)
class ValidationSet:
    """Paths of images, and for each the label file with its difficult boxes; see `data.difficult`.

    source: the list as messages name it.
    """

    paths: list[str]
    source: str
    difficult: Callable[[str], Path | None] | None = None


def validation_list(data: DataFile) -> tuple[list[str], str]:
    """Return the images of `valid`, or of `train` if there is no such key, and the list as messages name it."""
    key = data.validation_key()
    return read_list(data.find(key)), f"{data.path}: `{key}`"


def validation_set(
    data: DataFile, detector: Detector, bad_samples: BadSamples | None = None, labels: bool = True
) -> ValidationSet:
    """Return the images of `valid`, or of `train` if there is no such key, for `evaluate_images`.

    labels: whether their labels will be used. Warns (DataWarning) of images and labels that are missing or wrong; they are
    recorded in `bad_samples`. Raises DataError if nothing could be measured.
    """
    bad_samples = bad_samples or BadSamples()
    data.check_names(detector.head.num_labels, detector.network.config.path)
    paths, source = validation_list(data)
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


def validation_score(
    data: DataFile, net: Network, bad_samples: BadSamples | None = None, *, iou_thresh: float = 0.5, points: int = 0,
    conf_thresh: float = 0.25, done: Callable[[int, int], None] = lambda count, total: None,
    report: Callable[[Report | Accuracy], None] = lambda result: None,
) -> Callable[[Network], float | None]:  # fmt: skip
    """Return a function that measures a network on the images of `valid`: a detector's mAP, a classifier's top-`top` accuracy.

    It returns None, with a DataWarning, if it measured nothing. net: the network that will be measured, or one of the same
    cfg. done(count, total) is called after each image, report(result) with the whole result. Warns (DataWarning) of images
    and labels that are missing or wrong; they are recorded in `bad_samples`. Raises DataError if none can be used.
    """
    samples = bad_samples or BadSamples()
    measure: Callable[[Network], Report | Accuracy]
    if isinstance(net.nodes[net.heads[-1]].layer, DetectionHead):
        measure = detector_measure(data, net, samples, iou_thresh, points, conf_thresh, done)
    else:
        top = score_top(data, net)
        if top != data.top:
            warnings.warn(
                f"{data.path}: top={data.top} would count every image as right or wrong, whatever the network predicts; the"
                " score is the top-1 accuracy",
                DataWarning, stacklevel=2,
            )  # fmt: skip
        measure = classifier_measure(data, net, samples, top, done)

    def score(net: Network) -> float | None:
        try:
            result = measure(net)
        except NothingMeasuredError as e:
            warnings.warn(str(e), DataWarning, stacklevel=2)
            return None
        report(result)
        return result.mean if isinstance(result, Report) else result.top_k

    return score


def score_name(data: DataFile, net: Network, iou_thresh: float = 0.5) -> str:
    """Return the name of the validation score."""
    if isinstance(net.nodes[net.heads[-1]].layer, DetectionHead):
        return f"mean average precision (mAP@{iou_thresh:.2f})"
    return f"top-{score_top(data, net)} accuracy"


def score_top(data: DataFile, net: Network) -> int:
    """Return for how many classes a classifier's score counts: `top`, or 1 if that would count all of them."""
    tree = class_tree(net)
    predicted = tree.leaves(leaf_names(data)).sum() if tree else np.prod(net.nodes[net.heads[-1]].shape)
    return data.top if 1 <= data.top < predicted else 1


def detector_measure(
    data: DataFile, net: Network, bad_samples: BadSamples, iou_thresh: float, points: int, conf_thresh: float,
    done: Callable[[int, int], None],
) -> Callable[[Network], Report]:  # fmt: skip
    """Return a function that computes a detector's mAP; the arguments are those of `validation_score`."""
    check_options(iou_thresh, points, conf_thresh)
    names = data.read_names()
    valid = validation_set(data, Detector(net, names=names), bad_samples)

    def measure(net: Network) -> Report:
        images = evaluate_images(
            Detector(net, names=names), valid.paths, bad_samples=bad_samples, difficult=valid.difficult,
            done=lambda count: done(count, len(valid.paths)),
        )  # fmt: skip
        with measured_list(valid.source):
            return mean_average_precision(images, len(names), iou_thresh, points, conf_thresh)

    return measure


def classifier_measure(
    data: DataFile,
    net: Network,
    bad_samples: BadSamples,
    top: int,
    done: Callable[[int, int], None],
    precision: Precision = "fp32",
) -> Callable[[Network], Accuracy]:
    """Return a function that computes a classifier's accuracy among the leaves of its tree, if it has one.

    The leaves are those that the file `leaves` names, else the classes without children.
    """
    paths, source = validation_list(data)
    classes = class_by_path(data, net)
    tree, names, leaves = class_tree(net), leaf_names(data), None
    if tree:
        leaves, unknown = tree.leaves(names), [name for name in names or () if name not in tree.names]
        if not leaves.any():
            raise DataError(f"{data.path}: none of the names in {data.leaves} is one of {net.config.path}'s tree")
        if names and unknown:
            warnings.warn(
                f"{data.path}: {len(unknown)} of the {len(names)} names in {data.leaves} are not in {net.config.path}'s tree,"
                f" first '{unknown[0]}'",
                DataWarning, stacklevel=4,
            )  # fmt: skip
    check_images(paths, bad_samples, source)
    check_labels(paths, classes, bad_samples, source, is_one_class)

    def measure(net: Network) -> Accuracy:
        with measured_list(source):
            return accuracy(
                net, paths, classes, top, bad_samples, lambda count: done(count, len(paths)), leaves, precision
            )

    return measure


def class_by_path(data: DataFile, net: Network) -> Callable[[str, BadSamples], Boxes]:
    """Return the function that finds an image's class by its path. Raises DataError unless each class has a label."""
    labels, classes = data.read_labels(), int(np.prod(net.nodes[net.heads[-1]].shape))
    if len(labels) != classes:
        raise DataError(
            f"{data.path}: has {len(labels)} labels{empty_lines(labels)}, but {net.config.path} has {classes} classes"
        )
    return classifier_boxes(labels, class_tree(net))


def class_tree(net: Network) -> Tree | None:
    """Return the tree of a classifier's classes, or None."""
    tree: Tree | None = getattr(net.nodes[net.heads[-1]].layer, "tree", None)
    return tree


def leaf_names(data: DataFile) -> tuple[str, ...] | None:
    """Return the names in the file `leaves`, without spaces at the ends, or None."""
    return tuple(name.strip() for name in read_names(data.find("leaves"))) if data.leaves else None
