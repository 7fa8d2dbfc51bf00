"""How good a detector is: mean average precision with Darknet's numbers, COCO's AP, recall, and anchors for a data set.

Source of the first: validate_detector_map in src/detector.c; of the anchors: calc_anchors there.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import boxes as geometry
from .. import image
from ..data import Boxes, Faults, read_labels
from ..data.datafile import label_path
from ..detector import Detector, ScoredBoxes
from ..errors import DataError, ImageError

THRESH, NMS = 0.005, 0.45  # what `detector map` looks at
PROPOSAL_THRESH, PROPOSAL_NMS = 0.001, 0.4  # and `detector recall`
COCO_SIZES = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large")


@dataclass(frozen=True)
class Judged:
    """An image: what was found in it, its truths (T, 5) as x, y, w, h, class, and boxes that count neither way."""

    found: ScoredBoxes
    truth: Boxes
    difficult: Boxes
    path: str = ""


def judge(
    detector: Detector, paths: Sequence[str], thresh: float = THRESH, nms: float = NMS, faults: Faults | None = None,
    difficult: Callable[[str], str] | None = None, done: Callable[[int], None] = lambda count: None,
    find: Callable[[Detector, str, float, float], ScoredBoxes] | None = None,
) -> Iterator[Judged]:  # fmt: skip
    """Find objects in each image and read its labels. Unreadable images are noted in `faults` and left out.

    difficult: gives the label file of an image's difficult boxes. done(count) is called after each image. find: in place of
    the detector's own, such as `proposals`.
    """
    faults = faults or Faults()
    for count, path in enumerate(paths, 1):
        try:
            found = find(detector, path, thresh, nms) if find else detector.detect_boxes([path], thresh, nms)[0]
        except ImageError as e:
            faults.image(e)
            continue
        truth, wrong = read_labels(label_path(path), len(detector.names))
        for fault in wrong:
            faults.label(fault)
        hard = read_labels(difficult(path), None)[0] if difficult else np.zeros((0, 5), np.float32)
        yield Judged(found, truth, hard, path)
        done(count)


@dataclass(frozen=True)
class Report:
    """Average precision per class (C,), and at conf_thresh the counts per class, and the mean IoU of what was right."""

    ap: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    truths: np.ndarray
    average_iou: float
    detections: int
    iou_thresh: float
    conf_thresh: float
    points: int

    @property
    def mean(self) -> float:
        """mAP: the mean over all classes; one without truths counts 0, as in Darknet."""
        return float(self.ap.mean())

    @property
    def precision(self) -> float:
        """Right of all found at conf_thresh."""
        return ratio(self.right.sum(), self.right.sum() + self.wrong.sum())

    @property
    def recall(self) -> float:
        """Right of all truths at conf_thresh."""
        return ratio(self.right.sum(), self.truths.sum())

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        return ratio(2 * self.precision * self.recall, self.precision + self.recall)


def ratio(a: float, b: float) -> float:
    """Divide; 0 by 0 is 0."""
    return float(a) / float(b) if b else 0.0


def mean_average_precision(
    images: Iterable[Judged], classes: int, iou_thresh: float = 0.5, points: int = 0, conf_thresh: float = 0.25
) -> Report:
    """Judge every (box, class) by Darknet's rules. points: 0 is the area under the curve, 11 and 101 are levels of recall.

    A candidate is matched with the truth of its class that it overlaps most, if by more than iou_thresh; a truth serves
    once, the most certain first. One that only matches a difficult box does not count. Raises DataError for other points.
    """
    if points not in (0, 11, 101):
        raise DataError(f"points={points}: average precision is taken over 0 (the area), 11 or 101 points")
    ranked: list[list[tuple[float, int]]] = [[] for _ in range(classes)]  # class -> (probability, truth or -1)
    truths, right, wrong = (np.zeros(classes, int) for _ in range(3))
    overlaps, count, base = 0.0, 0, 0
    for judged in images:
        found, truth = judged.found, judged.truth
        truths += np.bincount(truth[:, 4].astype(int), minlength=classes)[:classes]
        like = geometry.iou(found.boxes[:, None], truth[:, :4]) if len(truth) else np.zeros((len(found.boxes), 1))
        hard = geometry.iou(found.boxes[:, None], judged.difficult[:, :4])
        claimed: set[int] = set()
        for i, k in zip(*np.nonzero(found.probs), strict=True):
            same = np.where(truth[:, 4] == k, like[i], 0) if len(truth) else like[i]
            best = int(same.argmax())
            match = base + best if same[best] > iou_thresh else -1
            if match < 0 and len(judged.difficult) and (hard[i][judged.difficult[:, 4] == k] > iou_thresh).any():
                continue
            ranked[k].append((float(found.probs[i, k]), match))
            count += 1
            if found.probs[i, k] > conf_thresh:
                if match >= 0 and match not in claimed:
                    right[k] += 1
                    overlaps += float(same[best])
                else:
                    wrong[k] += 1
            claimed.add(match)
        base += len(truth)
    ap = np.array([average_precision(r, int(n), points) for r, n in zip(ranked, truths, strict=True)])
    average = ratio(overlaps, right.sum() + wrong.sum())
    return Report(ap, right, wrong, truths, average, count, iou_thresh, conf_thresh, points)


def average_precision(ranked: Sequence[tuple[float, int]], truths: int, points: int) -> float:
    """Return the average precision of one class: ranked candidates (probability, truth or -1), number of truths."""
    if not ranked or not truths:
        return 0.0
    order = sorted(ranked, key=lambda candidate: -candidate[0])
    served: set[int] = set()
    hits = np.zeros(len(order))
    for rank, (_, match) in enumerate(order):
        hits[rank] = match >= 0 and match not in served
        served.add(match)
    total = hits.cumsum()
    recall, precision = total / truths, total / np.arange(1, len(order) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]  # the best precision at this rank or a later one
    if points:
        levels = np.arange(points) / (points - 1)
        at = np.searchsorted(recall, levels - 1e-12)
        return float(np.append(envelope, 0)[at].mean())
    # from rank k to k + 1 Darknet takes the envelope at k, a little above the definition's k + 1
    steps = np.diff(recall)
    return float(recall[0] * envelope[0] + (steps * envelope[:-1]).sum())


def coco(images: Sequence[Judged], names: Sequence[str]) -> tuple[dict[str, float], np.ndarray]:
    """Return COCO's six average precisions, by name, and AP per class (C,); NaN where there are no truths of a kind.

    Needs faster-coco-eval, which computes what pycocotools does. Sizes count in pixels of the image. Raises DataError.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise DataError('COCO AP needs the package faster-coco-eval; pip install "gpudarknet[coco]"') from None
    truths: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number, judged in enumerate(images, 1):
        size = np.array([judged.found.width, judged.found.height] * 2)
        for box, k in zip(geometry.to_ltwh(judged.truth[:, :4]) * size, judged.truth[:, 4], strict=True):
            truths.append({"id": len(truths) + 1, "image_id": number, "category_id": int(k) + 1, "bbox": box.tolist(),
                           "area": float(box[2] * box[3]), "iscrowd": 0})  # fmt: skip
        placed = geometry.to_ltwh(judged.found.boxes) * size
        for i, k in zip(*np.nonzero(judged.found.probs), strict=True):
            found.append({"image_id": number, "category_id": int(k) + 1, "bbox": placed[i].tolist(),
                          "score": float(judged.found.probs[i, k])})  # fmt: skip
    if not truths or not found:
        return dict.fromkeys(COCO_SIZES, 0.0), np.full(len(names), np.nan)
    listed = [{"id": n, "width": j.found.width, "height": j.found.height} for n, j in enumerate(images, 1)]
    categories = [{"id": k, "name": name} for k, name in enumerate(names, 1)]
    with redirect_stdout(io.StringIO()):
        reference = COCO({"images": listed, "annotations": truths, "categories": categories})
        run = COCOeval_faster(reference, reference.loadRes(found), iouType="bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    precision = run.eval["precision"][:, :, :, 0, -1]  # IoU, recall, class, all sizes, most detections
    each = np.array([p[p > -1].mean() if (p > -1).any() else np.nan for p in precision.transpose(2, 0, 1)])
    return {name: float(run.stats[i]) if run.stats[i] >= 0 else np.nan for i, name in enumerate(COCO_SIZES)}, each


@dataclass(frozen=True)
class Recall:
    """Boxes found per image, the mean over truths of the best IoU, and the part of truths with one above the threshold."""

    proposals: float
    average_iou: float
    recall: float


def proposals(detector: Detector, path: str, thresh: float, nms: float) -> ScoredBoxes:
    """Find boxes in an image whatever their class: doubles are dropped by objectness, which stands as the one class."""
    net, picture = detector.network, image.read(path, detector.network.channels)
    H, W = picture.shape[:2]
    rows = detector.infer(detector.preprocess([picture]), thresh)
    rows = rows[np.isfinite(rows).all(axis=1) & (rows[:, 1] > thresh)]
    placed = geometry.to_image(rows[:, 2:6], net.width, net.height, W, H, detector.letterbox)
    objectness = geometry.nms(placed, rows[:, 1:2], nms)
    kept = objectness[:, 0] > 0
    return ScoredBoxes(placed[kept], objectness[kept], W, H)


def recall(images: Iterable[Judged], iou_thresh: float = 0.5) -> Recall:
    """Measure how many truths some box covers, given images judged by `proposals` (validate_detector_recall)."""
    count = hit = truths = boxes = 0
    total = 0.0
    for judged in images:
        count, boxes, truths = count + 1, boxes + len(judged.found.boxes), truths + len(judged.truth)
        if len(judged.truth) and len(judged.found.boxes):
            best = geometry.iou(judged.truth[:, None, :4], judged.found.boxes).max(axis=1)
            hit, total = hit + int((best > iou_thresh).sum()), total + float(best.sum())
    return Recall(ratio(boxes, count), ratio(total, truths), ratio(hit, truths))


# Anchors


@dataclass(frozen=True)
class Anchors:
    """Anchors (K, 2) in pixels of the input, by area; the mean IoU of boxes with their best; boxes per class (C,)."""

    sizes: np.ndarray
    average_iou: float
    counters: np.ndarray


def shape_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the IoU of sizes a (N, 2) and b (K, 2) as boxes around one point: (N, K)."""
    both = np.minimum(a[:, None], b).prod(axis=2)
    return both / (a.prod(axis=1)[:, None] + b.prod(axis=1) - both)


def calc_anchors(truths: np.ndarray, count: int, width: int, height: int, seed: int = 0, starts: int = 10) -> Anchors:
    """Find `count` anchors for truths (T, 5) by k-means with the distance 1 - IoU; the same for the same seed.

    width, height: the network's input in pixels. The best of several random starts is taken; Darknet has one. Raises
    DataError where there are fewer boxes than anchors.
    """
    points = truths[:, 2:4].astype(np.float64) * (width, height)
    points = points[(points > 0).all(axis=1)]
    distinct = np.unique(points, axis=0)
    if not 1 <= count <= len(distinct):
        raise DataError(f"{count} anchors need as many boxes of different sizes; the labels have {len(distinct)}")
    rng = np.random.default_rng(seed)
    found = [k_means(points, rng.permutation(distinct)[:count].copy()) for _ in range(starts)]
    scores = [float(shape_iou(points, centres).max(axis=1).mean()) for centres in found]
    best = int(np.argmax(scores))
    centres = found[best]
    centres = centres[centres.prod(axis=1).argsort(kind="stable")]
    return Anchors(centres, scores[best], np.bincount(truths[:, 4].astype(int)))


def k_means(points: np.ndarray, centres: np.ndarray, rounds: int = 1000) -> np.ndarray:
    """Move centres (K, 2) to the means of the points (N, 2) that are most like them, until none changes sides."""
    chosen = np.full(len(points), -1)
    for _ in range(rounds):
        nearest = shape_iou(points, centres).argmax(axis=1)
        if (nearest == chosen).all():
            break
        chosen = nearest
        members = np.bincount(chosen, minlength=len(centres))
        for axis in range(2):  # an empty cluster keeps its centre
            sums = np.bincount(chosen, points[:, axis], minlength=len(centres))
            centres[:, axis] = np.where(members > 0, sums / np.maximum(members, 1), centres[:, axis])
    return centres


def picture_of_anchors(truths: np.ndarray, anchors: Anchors, width: int, height: int) -> np.ndarray:
    """Draw all boxes' sizes as dots, coloured by their anchor, and the anchors as rectangles: uint8 (500, 500, 3)."""
    import cv2

    side = 500
    canvas = np.full((side, side, 3), 255, np.uint8)
    points = truths[:, 2:4].astype(np.float64) * (width, height)
    points = points[(points > 0).all(axis=1)]
    nearest = shape_iou(points, anchors.sizes).argmax(axis=1)
    scale = (side - 1) / np.array([width, height])
    shades = [tuple(int(v) for v in np.array([97, 57, 193]) * (k + 1) % 200) for k in range(len(anchors.sizes))]
    for (x, y), k in zip((points * scale).astype(int), nearest, strict=True):
        cv2.circle(canvas, (int(x), int(y)), 2, shades[k], -1)
    for (w, h), shade in zip((anchors.sizes * scale).astype(int), shades, strict=True):
        cv2.rectangle(canvas, (0, 0), (int(w), int(h)), shade, 2)
    return canvas


# The files of `detector valid`


def image_id(path: str) -> str:
    """Return the name of an image's file without its ending, which VOC's result files list."""
    return path.replace("\\", "/").rpartition("/")[2].rpartition(".")[0]


def voc_lines(judged: Judged, k: int) -> Iterator[str]:
    """Yield lines `id probability left top right bottom` for a class, in pixels from 1 to the image's size."""
    W, H = judged.found.width, judged.found.height
    edges = geometry.to_corners(judged.found.boxes) * (W, H, W, H) + 1
    for p, (left, top, right, bottom) in zip(judged.found.probs[:, k], edges, strict=True):
        if p > 0:
            left, top, right, bottom = max(left, 1), max(top, 1), min(right, W), min(bottom, H)
            yield f"{image_id(judged.path)} {p:f} {left:f} {top:f} {right:f} {bottom:f}"


def coco_entries(judged: Judged, categories: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield COCO's result records: boxes in pixels, clipped to the image; image_id is the last number in the file's name."""
    W, H = judged.found.width, judged.found.height
    digits = image_id(judged.path).rpartition("_")[2]
    number = int(digits) if digits.isdecimal() else 0
    edges = np.clip(geometry.to_corners(judged.found.boxes) * (W, H, W, H), 0, (W, H, W, H))
    for i, k in zip(*np.nonzero(judged.found.probs), strict=True):
        left, top, right, bottom = (round(float(v), 3) for v in edges[i])
        yield {"image_id": number, "category_id": int(categories[k]), "score": round(float(judged.found.probs[i, k]), 6),
               "bbox": [left, top, round(right - left, 3), round(bottom - top, 3)]}  # fmt: skip


def truths_of(paths: Sequence[str], classes: int | None = None, faults: Faults | None = None) -> Boxes:
    """Read the labels of all images as one array (T, 5)."""
    found = [np.zeros((0, 5), np.float32)]
    for path in paths:
        truth, wrong = read_labels(label_path(path), classes)
        found.append(truth)
        for fault in wrong if faults else ():
            faults.label(fault)  # type: ignore[union-attr]
    return np.concatenate(found)
