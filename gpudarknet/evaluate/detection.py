"""Detector metrics as Darknet computes them: mean average precision (validate_detector_map in src/detector.c) and recall."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import boxes as geometry
from ..data import BadSamples, Boxes, read_boxes, recorded
from ..data.datafile import label_path
from ..detector import Detector
from ..errors import DataError, ImageError, NothingMeasuredError
from ..inference import ScoredBoxes

THRESH, NMS = 0.005, 0.45  # of `detector map`
PROPOSAL_THRESH, PROPOSAL_NMS = 0.001, 0.4  # of `detector recall`


@dataclass(frozen=True)
class ImageEval:
    """One image: its detections, its truths (T, 5) as x, y, w, h, class, and difficult boxes, which are not counted."""

    scored: ScoredBoxes
    truth: Boxes
    difficult: Boxes
    path: str = ""


def evaluate_images(
    detector: Detector, paths: Sequence[str], thresh: float = THRESH, nms: float = NMS, bad_samples: BadSamples | None = None,
    difficult: Callable[[str], str | Path | None] | None = None, done: Callable[[int], None] = lambda count: None,
    class_agnostic: bool = False, labels: bool = True,
) -> Iterator[ImageEval]:  # fmt: skip
    """Run the detector on each image and read its labels. Unreadable images are skipped.

    They and wrong labels are recorded in `bad_samples`; without it, a DataWarning reports them at the end. difficult: returns
    the path of the label file with an image's difficult boxes, or None; see `data.difficult`. done(count) is called after each
    image. class_agnostic: detect boxes of any class, for `recall`; see `InferencePipeline.suppress`.
    labels: False for results only, without truths.
    """
    classes, no_boxes = len(detector.names), np.zeros((0, 5), np.float32)
    with recorded(bad_samples) as samples:
        for count, path in enumerate(paths, 1):
            try:
                (scored,) = detector.run([path], thresh, nms, class_agnostic=class_agnostic)
                truth = read_boxes(label_path(path), samples, classes) if labels else no_boxes
                hard = difficult(path) if difficult else None
                yield ImageEval(scored, truth, read_boxes(hard, samples, classes) if hard else no_boxes, path)
            except ImageError as e:
                samples.add_image(e)
            done(count)


@dataclass(frozen=True)
class Report:
    """Average precision per class (C,); at conf_thresh, true and false positives per class and the mean IoU of all positives."""

    ap: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    truths: np.ndarray
    average_iou: float
    detection_count: int
    iou_thresh: float
    conf_thresh: float
    points: int

    @property
    def mean(self) -> float:
        """mAP: the mean over all classes; a class without truths has AP 0, as in Darknet."""
        return float(self.ap.mean())

    @property
    def absent(self) -> list[int]:
        """The classes without truths."""
        return np.flatnonzero(self.truths == 0).tolist()

    @property
    def mean_of_present(self) -> float:
        """The mean average precision over the classes that have truths."""
        return float(self.ap[self.truths > 0].mean())

    @property
    def precision(self) -> float:
        """True positives over all positives at conf_thresh."""
        return ratio(self.tp.sum(), self.tp.sum() + self.fp.sum())

    @property
    def recall(self) -> float:
        """True positives over all truths at conf_thresh."""
        return ratio(self.tp.sum(), self.truths.sum())

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        return ratio(2 * self.precision * self.recall, self.precision + self.recall)


def ratio(a: float, b: float) -> float:
    """Divide; 0 by 0 is 0."""
    return float(a) / float(b) if b else 0.0


def check_options(iou_thresh: float, points: int, conf_thresh: float) -> None:
    """Raise DataError unless `mean_average_precision` can use these options."""
    for name, value in (("iou_thresh", iou_thresh), ("conf_thresh", conf_thresh)):
        if not 0 <= value <= 1:
            raise DataError(f"{name}={value:g}: must be from 0 to 1")
    if points not in (0, 11, 101):
        raise DataError(f"points={points}: average precision is computed over 0 (the area), 11 or 101 points")


def mean_average_precision(
    images: Iterable[ImageEval], classes: int, iou_thresh: float = 0.5, points: int = 0, conf_thresh: float = 0.25
) -> Report:
    """Compute mAP by Darknet's rules. points: 0 for the area under the curve, or 11 or 101 recall levels.

    Each (box, class) is matched with the truth of its class that it overlaps most, if the IoU is above iou_thresh. A truth
    is matched once, by the most confident box. A box that only matches a difficult one is not counted (Darknet counts it among
    the false positives at conf_thresh, but not in the average precision). Raises NothingMeasuredError if there is no truth,
    DataError if an option has another value.
    """
    check_options(iou_thresh, points, conf_thresh)
    ranked: list[list[tuple[float, int]]] = [[] for _ in range(classes)]  # class -> (probability, truth or -1)
    truths, tp, fp = (np.zeros(classes, int) for _ in range(3))
    iou_sum, count, base, seen = 0.0, 0, 0, 0
    for seen, img in enumerate(images, 1):  # noqa: B007
        scored, truth = img.scored, img.truth
        truths += np.bincount(truth[:, 4].astype(int), minlength=classes)[:classes]
        ious = geometry.iou(scored.boxes[:, None], truth[:, :4]) if len(truth) else np.zeros((len(scored.boxes), 1))
        difficult_ious = geometry.iou(scored.boxes[:, None], img.difficult[:, :4])
        matched: set[int] = set()
        for i, k in zip(*np.nonzero(scored.probs), strict=True):
            same_class = np.where(truth[:, 4] == k, ious[i], 0) if len(truth) else ious[i]
            best = int(same_class.argmax())
            match = base + best if same_class[best] > iou_thresh else -1
            if match < 0 and len(img.difficult) and (difficult_ious[i][img.difficult[:, 4] == k] > iou_thresh).any():
                continue
            ranked[k].append((float(scored.probs[i, k]), match))
            count += 1
            if scored.probs[i, k] > conf_thresh:
                if match >= 0 and match not in matched:
                    tp[k] += 1
                    iou_sum += float(same_class[best])
                else:
                    fp[k] += 1
            matched.add(match)
        base += len(truth)
    check_measured(seen, int(truths.sum()))
    ap = np.array([average_precision(r, int(n), points) for r, n in zip(ranked, truths, strict=True)])
    average_iou = ratio(iou_sum, tp.sum() + fp.sum())
    return Report(ap, tp, fp, truths, average_iou, count, iou_thresh, conf_thresh, points)


def check_measured(images: int, truths: int) -> None:
    """Raise NothingMeasuredError if there was no image or no truth."""
    if not images:
        raise NothingMeasuredError("nothing is measured: no image could be read; check the list of images")
    if not truths:
        raise NothingMeasuredError(
            f"nothing is measured: the labels of {images} images have no object; check the labels"
        )


def average_precision(ranked: Sequence[tuple[float, int]], truths: int, points: int) -> float:
    """Return the average precision of one class from its candidates (probability, matched truth or -1) and truth count."""
    if not ranked or not truths:
        return 0.0
    order = sorted(ranked, key=lambda candidate: -candidate[0])
    matched: set[int] = set()
    hits = np.zeros(len(order))
    for rank, (_, match) in enumerate(order):
        hits[rank] = match >= 0 and match not in matched
        matched.add(match)
    total = hits.cumsum()
    recall, precision = total / truths, total / np.arange(1, len(order) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]  # the best precision at this rank or a later one
    if points:
        levels = np.arange(points) / (points - 1)
        at = np.searchsorted(recall, levels - 1e-12)
        return float(np.append(envelope, 0)[at].mean())
    # from rank k to k + 1 Darknet uses the envelope at k, slightly above the definition's k + 1
    steps = np.diff(recall)
    return float(recall[0] * envelope[0] + (steps * envelope[:-1]).sum())


@dataclass(frozen=True)
class Recall:
    """Boxes per image, the mean over truths of the best IoU, and the fraction of truths whose best IoU is above the threshold."""

    images: int
    proposals: float
    average_iou: float
    recall: float


def recall(images: Iterable[ImageEval], iou_thresh: float = 0.5) -> Recall:
    """Count the truths that a box covers, given images evaluated with `class_agnostic` (validate_detector_recall).

    Raises NothingMeasuredError if there is no truth.
    """
    count = covered = truths = boxes = 0
    iou_sum = 0.0
    for img in images:
        count, boxes, truths = count + 1, boxes + len(img.scored.boxes), truths + len(img.truth)
        if len(img.truth) and len(img.scored.boxes):
            best = geometry.iou(img.truth[:, None, :4], img.scored.boxes).max(axis=1)
            covered, iou_sum = covered + int((best > iou_thresh).sum()), iou_sum + float(best.sum())
    check_measured(count, truths)
    return Recall(count, ratio(boxes, count), ratio(iou_sum, truths), ratio(covered, truths))
