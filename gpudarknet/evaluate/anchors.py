"""Anchors for a data set, by k-means over the box sizes (calc_anchors in src/detector.c)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data import BadSamples, Boxes, read_boxes, recorded
from ..data.datafile import label_path
from ..errors import DataError


@dataclass(frozen=True)
class Anchors:
    """Anchors (K, 2) in pixels of the input, sorted by area; the mean IoU of boxes with their best; boxes per class (C,)."""

    sizes: np.ndarray
    average_iou: float
    counters: np.ndarray


def read_truths(paths: Sequence[str], classes: int | None = None, bad_samples: BadSamples | None = None) -> Boxes:
    """Read the labels of all images into one array (T, 5); record what is wrong in `bad_samples`, or warn (DataWarning)."""
    with recorded(bad_samples) as samples:
        truths = [read_boxes(label_path(path), samples, classes) for path in paths]
    return np.concatenate([np.zeros((0, 5), np.float32), *truths])


def shape_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the IoU of sizes a (N, 2) and b (K, 2) as concentric boxes: (N, K)."""
    intersection = np.minimum(a[:, None], b).prod(axis=2)
    return intersection / (a.prod(axis=1)[:, None] + b.prod(axis=1) - intersection)


def box_sizes(truths: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return the sizes of truths (T, 5) in pixels of the input, without empty boxes: (N, 2)."""
    sizes = truths[:, 2:4].astype(np.float64) * (width, height)
    return sizes[(sizes > 0).all(axis=1)]


def calc_anchors(
    truths: np.ndarray, count: int, width: int, height: int, seed: int = 0, starts: int = 10, classes: int = 0
) -> Anchors:
    """Compute `count` anchors for truths (T, 5) by k-means with the distance 1 - IoU; deterministic for a seed.

    width, height: the network's input in pixels. classes: the number of counters, more if the truths have more classes. The
    best of several random starts is returned; Darknet has one. Raises DataError if there are fewer boxes than anchors.
    """
    sizes = box_sizes(truths, width, height)
    distinct = np.unique(sizes, axis=0)
    if count < 1:
        raise DataError(f"{count} anchors cannot be computed; their number must be at least 1")
    if count > len(distinct):
        raise DataError(f"{count} anchors need as many boxes of different sizes; the labels have {len(distinct)}")
    rng = np.random.default_rng(seed)
    candidates = [k_means(sizes, rng.permutation(distinct)[:count].copy()) for _ in range(starts)]
    scores = [float(shape_iou(sizes, centers).max(axis=1).mean()) for centers in candidates]
    best = int(np.argmax(scores))
    centers = candidates[best]
    centers = centers[centers.prod(axis=1).argsort(kind="stable")]
    return Anchors(centers, scores[best], np.bincount(truths[:, 4].astype(int), minlength=classes))


def k_means(points: np.ndarray, centers: np.ndarray, rounds: int = 1000) -> np.ndarray:
    """Move centers (K, 2) to the means of their nearest points (N, 2) until no assignment changes."""
    assigned = np.full(len(points), -1)
    for _ in range(rounds):
        nearest = shape_iou(points, centers).argmax(axis=1)
        if (nearest == assigned).all():
            break
        assigned = nearest
        members = np.bincount(assigned, minlength=len(centers))
        for axis in range(2):  # an empty cluster keeps its center
            sums = np.bincount(assigned, points[:, axis], minlength=len(centers))
            centers[:, axis] = np.where(members > 0, sums / np.maximum(members, 1), centers[:, axis])
    return centers


def anchors_text(sizes: np.ndarray, width: int) -> str:
    """Return anchors (K, 2) as the value of `anchors` in a cfg, as Darknet does: in whole pixels or, in cells, with four digits.

    width: of the network's input; up to 32 it is in cells. Anchors below a pixel keep their digits, as 0 is not an anchor.
    """
    return ", ".join(
        ",".join(f"{side:.4f}" if width <= 32 or side < 1 else f"{side:3.0f}" for side in size)
        for size in sizes.tolist()
    )


def draw_anchors(truths: np.ndarray, anchors: Anchors, width: int, height: int) -> np.ndarray:
    """Draw the size of each box as a dot, colored by its nearest anchor, and the anchors as rectangles: uint8 (500, 500, 3)."""
    import cv2

    side = 500
    canvas = np.full((side, side, 3), 255, np.uint8)
    sizes = box_sizes(truths, width, height)
    nearest = shape_iou(sizes, anchors.sizes).argmax(axis=1)
    scale = (side - 1) / np.array([width, height])
    colors = [tuple(int(v) for v in np.array([97, 57, 193]) * (k + 1) % 200) for k in range(len(anchors.sizes))]
    for (x, y), k in zip((sizes * scale).astype(int), nearest, strict=True):
        cv2.circle(canvas, (int(x), int(y)), 2, colors[k], -1)
    for (w, h), color in zip((anchors.sizes * scale).astype(int), colors, strict=True):
        cv2.rectangle(canvas, (0, 0), (int(w), int(h)), color, 2)
    return canvas
