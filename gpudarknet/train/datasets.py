"""The training set that a .data file defines."""

from __future__ import annotations

import warnings

import numpy as np

from ..data import BadSamples, DataSet, Sequences, detection_boxes, read_list
from ..data.augment import ClassifierAugment, DetectionAugment
from ..data.check import check_images, check_labels, is_box, is_one_class
from ..data.datafile import DataFile
from ..errors import CfgError, TrainWarning
from ..evaluate.validation import class_by_path, class_tree
from ..inference import InferencePipeline
from ..layers import DetectionHead
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


def check_cost(net: Network) -> None:
    """Warn (TrainWarning) of a [cost] that would learn the mark of classes without a label, which a tree has."""
    for node in net.nodes if class_tree(net) else ():
        if node.layer.section == "cost" and getattr(node.layer, "type", "masked") != "masked":
            warnings.warn(
                f"{net.config.path}:{net.config.line(node.index, 'type')}: [cost] also learns the groups of the tree without a"
                " label, whose truth is -1234; set type=masked",
                TrainWarning, stacklevel=4,
            )  # fmt: skip


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
