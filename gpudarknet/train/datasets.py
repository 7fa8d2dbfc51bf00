"""The training set and the validation score that a .data file defines."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .. import evaluate
from ..data import BadSamples, DataSet, Sequences, classifier_boxes, detection_boxes, read_list
from ..data.augment import ClassifierAugment, DetectionAugment
from ..data.datafile import DataFile, label_path
from ..detector import Detector
from ..errors import DataError
from ..evaluate import Accuracy, Report, accuracy
from ..layers import DetectionHead
from ..network import Network


def training_set(data: DataFile, net: Network, bad_samples: BadSamples | None = None) -> DataSet:
    """Return the images of `train` with boxes for a detector, or with the class named in each path for a classifier."""
    paths = read_list(data.find("train"))
    last = net.nodes[net.heads[-1]]
    bad_samples = bad_samples or BadSamples()
    if isinstance(last.layer, DetectionHead):
        head = last.layer
        if not any(label_path(path).is_file() for path in paths):
            raise DataError(
                f"{data.path}: none of its {len(paths)} images of `train` has a label file; {paths[0]} needs"
                f" {label_path(paths[0])}"
            )
        if (
            data.names or data.labels
        ) and head.num_labels == head.classes:  # with a map, names may be those of either side
            data.check_names(head.classes, net.config.path)
        cfg, sequences = net.net, None
        if cfg.track:
            sequences = Sequences(cfg.time_steps, cfg.batch // cfg.subdivisions, cfg.augment_speed)
        boxes = detection_boxes(head.classes, (net.width, net.height), bool(cfg.track))
        return DataSet(paths, DetectionAugment.of(cfg, head), boxes, net.channels, bad_samples, sequences)
    labels = data.read_labels()
    classes = int(np.prod(last.shape))
    if len(labels) != classes:
        raise DataError(f"{data.path}: has {len(labels)} labels, but {net.config.path} has {classes} classes")
    augment = ClassifierAugment.of(net.net, classes, getattr(last.layer, "tree", None))
    return DataSet(paths, augment, classifier_boxes(labels), net.channels, bad_samples)


def validation_score(
    data: DataFile, net: Network, bad_samples: BadSamples | None = None, *, iou_thresh: float = 0.5, points: int = 0,
    conf_thresh: float = 0.25, done: Callable[[int, int], None] = lambda count, total: None,
    report: Callable[[Report | Accuracy], None] = lambda result: None,
) -> Callable[[Network], float | None]:  # fmt: skip
    """Return a function that computes mAP, or a classifier's accuracy, on the images of `valid`.

    It returns None if it measured nothing. net: the network that will be measured, or one of the same cfg. done(count,
    total) is called after each image, report(result) with the whole result. Raises DataError.
    """
    paths, names, labels = read_list(data.find("valid")), data.read_names(), data.read_labels()
    samples = bad_samples or BadSamples()

    def progress(count: int) -> None:
        done(count, len(paths))

    def score(net: Network) -> float | None:
        if not isinstance(net.nodes[net.heads[-1]].layer, DetectionHead):
            result = accuracy(net, paths, classifier_boxes(labels), bad_samples=samples, done=progress)
            report(result)
            return result.top1
        images = evaluate.evaluate_images(Detector(net, names=names), paths, bad_samples=samples, done=progress)
        measured = evaluate.mean_average_precision(images, len(names), iou_thresh, points, conf_thresh)
        report(measured)
        return measured.mean

    return score
