"""Measure detectors and classifiers: mAP as in Darknet, COCO's AP, recall, accuracy; anchors for a data set."""

from .anchors import Anchors, anchors_text, calc_anchors, draw_anchors, read_truths
from .classification import Accuracy, accuracy
from .coco_ap import coco
from .detection import (
    NMS,
    PROPOSAL_NMS,
    PROPOSAL_THRESH,
    THRESH,
    ImageEval,
    Recall,
    Report,
    average_precision,
    check_options,
    evaluate_images,
    mean_average_precision,
    recall,
)  # fmt: skip
from .result_files import COCO_IDS, AddImage, coco_file, coco_image_id, coco_results, csv_file, voc_lines
from .validation import (
    ValidationSet,
    classifier_measure,
    measured_list,
    score_name,
    validation_score,
    validation_set,
)  # fmt: skip

__all__ = [
    "COCO_IDS", "NMS", "PROPOSAL_NMS", "PROPOSAL_THRESH", "THRESH", "Accuracy", "AddImage", "Anchors", "ImageEval", "Recall",
    "Report", "ValidationSet", "accuracy", "anchors_text", "average_precision", "calc_anchors", "check_options",
    "classifier_measure", "coco", "coco_file", "coco_image_id", "coco_results", "csv_file", "draw_anchors", "evaluate_images",
    "mean_average_precision", "measured_list", "read_truths", "recall", "score_name", "validation_score", "validation_set",
    "voc_lines",
]  # fmt: skip
