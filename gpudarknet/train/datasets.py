"""The training set and the validation score that a .data file defines."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from .. import evaluate
from ..data import BadSamples, Boxes, DataSet, Sequences, classifier_boxes, detection_boxes, read_list
from ..data.augment import ClassifierAugment, DetectionAugment
from ..data.check import check_images, check_labels, is_box, is_one_class
from ..data.datafile import DataFile, empty_lines, read_names
from ..detector import Detector
from ..errors import CfgError, DataError, DataWarning, NothingMeasuredError, TrainWarning
from ..evaluate import Accuracy, Report, accuracy
from ..inference import InferencePipeline
from ..layers import DetectionHead
from ..layers.class_tree import Tree
from ..network import Network
from . import lr_schedule

SMALL_BATCH = 8  # images; below, Darknet warns


def training_set(data: DataFile, net: Network, bad_samples: BadSamples | None = None) -> DataSet:
    """Return the images of `train` with boxes for a detector, or with the class named in each path for a classifier.

    Warns (DataWarning) of images and labels that are missing or wrong; they are recorded in `bad_samples`. Raises DataError
    if none can be used or heads differ in their classes, CfgError if [net] does not suit a detector's training,
    TrainError without max_batches.
    """
    paths, source = read_list(data.find("train")), f"{data.path}: `train`"
    last, cfg = net.nodes[net.heads[-1]], net.net
    bad_samples = bad_samples or BadSamples()
    lr_schedule.length(net.config)
    if isinstance(last.layer, DetectionHead):
        check_detector(net)
    check_images(paths, bad_samples, source, net.channels)
    if isinstance(last.layer, DetectionHead):
        head, size = InferencePipeline(net).head, (net.width, net.height)
        if (
            data.names or data.labels
        ) and head.num_labels == head.classes:  # with a map, names may be those of either side
            data.check_names(head.classes, net.config.path)
        sequences = None
        if cfg.track:
            sequences = Sequences(cfg.time_steps, cfg.batch // cfg.subdivisions, cfg.augment_speed)
        boxes = detection_boxes(head.num_truth_classes, size, bool(cfg.track))
        check_labels(paths, boxes, bad_samples, source, is_box(size), head.num_truth_classes)
        return DataSet(paths, DetectionAugment.of(cfg, head), boxes, net.channels, bad_samples, sequences)
    boxes = class_by_path(data, net)
    check_labels(paths, boxes, bad_samples, source, is_one_class)
    check_cost(net)
    augment = ClassifierAugment.of(cfg, int(np.prod(last.shape)), class_tree(net))
    return DataSet(paths, augment, boxes, net.channels, bad_samples)


def class_by_path(data: DataFile, net: Network) -> Callable[[str, BadSamples], Boxes]:
    """Return the function that finds an image's class by its path. Raises DataError unless each class has a label."""
    labels, classes = data.read_labels(), int(np.prod(net.nodes[net.heads[-1]].shape))
    if len(labels) != classes:
        raise DataError(
            f"{data.path}: has {len(labels)} labels{empty_lines(labels)}, but {net.config.path} has {classes} classes"
        )
    return classifier_boxes(labels, class_tree(net))


def check_cost(net: Network) -> None:
    """Warn (TrainWarning) of a [cost] that would learn the mark of classes without a label, which a tree has."""
    for node in net.nodes if class_tree(net) else ():
        if node.layer.section == "cost" and getattr(node.layer, "type", "masked") != "masked":
            warnings.warn(
                f"{net.config.path}:{net.config.line(node.index, 'type')}: [cost] also learns the groups of the tree without a"
                " label, whose truth is -1234; set type=masked",
                TrainWarning, stacklevel=4,
            )  # fmt: skip


def class_tree(net: Network) -> Tree | None:
    """Return the tree of a classifier's classes, or None."""
    tree: Tree | None = getattr(net.nodes[net.heads[-1]].layer, "tree", None)
    return tree


def leaf_names(data: DataFile) -> tuple[str, ...] | None:
    """Return the names in the file `leaves`, without spaces at the ends, or None."""
    return tuple(name.strip() for name in read_names(data.find("leaves"))) if data.leaves else None


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


def check_detector(net: Network) -> None:
    """Raise CfgError or warn as Darknet does where the [net] of a detector does not suit training (train_detector)."""
    cfg, config = net.net, net.config
    batch = cfg.batch // cfg.subdivisions * cfg.subdivisions * cfg.time_steps
    advice = "set batch=64, and subdivisions so that a part of it fits into memory"
    if batch == 1:
        raise CfgError(f"{config.net_key('batch')}: a detector cannot be trained on one image per iteration; {advice}")
    if batch < SMALL_BATCH:
        warnings.warn(f"{config.net_key('batch')}: is small for training; {advice}", TrainWarning, stacklevel=3)
    if "cutmix" in cfg.mixing:
        used = "only mosaic is used" if "mosaic" in cfg.mixing else "images are not mixed"
        key = config.net_key("cutmix" if cfg.cutmix else "mixup")
        warnings.warn(f"{key}: cutmix is for classifiers; for this detector {used}", TrainWarning, stacklevel=3)


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


def detector_measure(
    data: DataFile, net: Network, bad_samples: BadSamples, iou_thresh: float, points: int, conf_thresh: float,
    done: Callable[[int, int], None],
) -> Callable[[Network], Report]:  # fmt: skip
    """Return a function that computes a detector's mAP; the arguments are those of `validation_score`."""
    evaluate.check_options(iou_thresh, points, conf_thresh)
    names = data.read_names()
    valid = evaluate.validation_set(data, Detector(net, names=names), bad_samples)

    def measure(net: Network) -> Report:
        images = evaluate.evaluate_images(
            Detector(net, names=names), valid.paths, bad_samples=bad_samples, difficult=valid.difficult,
            done=lambda count: done(count, len(valid.paths)),
        )  # fmt: skip
        with evaluate.measured_list(valid.source):
            return evaluate.mean_average_precision(images, len(names), iou_thresh, points, conf_thresh)

    return measure


def classifier_measure(
    data: DataFile, net: Network, bad_samples: BadSamples, top: int, done: Callable[[int, int], None]
) -> Callable[[Network], Accuracy]:
    """Return a function that computes a classifier's accuracy among the leaves of its tree, if it has one.

    The leaves are those that the file `leaves` names, else the classes without children.
    """
    key = data.validation_key()
    paths, source = read_list(data.find(key)), f"{data.path}: `{key}`"
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
        with evaluate.measured_list(source):
            return accuracy(net, paths, classes, top, bad_samples, lambda count: done(count, len(paths)), leaves)

    return measure
