"""Box arithmetic on NumPy arrays: coordinate conversion, letterbox geometry, IoU, GIoU, DIoU, CIoU and NMS.

A box is (x, y, w, h): center, then size, in one unit (fractions of the image or of the network input, or pixels).
Functions accept arrays (..., 4) and keep the leading shape; two arrays of boxes broadcast against each other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.floating]


# Coordinates


def to_corners(boxes: ArrayLike) -> FloatArray:
    """Convert center boxes to corners: (..., 4) x, y, w, h -> (..., 4) left, top, right, bottom."""
    boxes = _floats(boxes)
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return np.concatenate((center - half, center + half), axis=-1)


def from_corners(corners: ArrayLike) -> FloatArray:
    """Convert corners to center boxes: (..., 4) left, top, right, bottom -> (..., 4) x, y, w, h."""
    corners = _floats(corners)
    low, high = corners[..., :2], corners[..., 2:]
    return np.concatenate(((low + high) / 2, high - low), axis=-1)


def to_ltwh(boxes: ArrayLike) -> FloatArray:
    """Convert center boxes: (..., 4) x, y, w, h -> (..., 4) left, top, width, height."""
    boxes = _floats(boxes)
    return np.concatenate((boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., 2:]), axis=-1)


# Letterbox


def letterbox_size(image_w: int, image_h: int, net_w: int, net_h: int) -> tuple[int, int]:
    """Return the largest (width, height) with the image's aspect ratio that fits into the network input.

    Integer division as in Darknet's `letterbox_image`; a side is at least one pixel.
    """
    if np.float32(net_w) / np.float32(image_w) < np.float32(net_h) / np.float32(image_h):
        return net_w, max(1, image_h * net_w // image_w)
    return max(1, image_w * net_h // image_h), net_h


def to_image(
    boxes: ArrayLike, net_w: int, net_h: int, image_w: int, image_h: int, letterbox: bool = False
) -> FloatArray:
    """Convert boxes relative to the network input to boxes relative to the image. (..., 4) -> (..., 4), a new array.

    Boxes are not clipped. Source: Darknet's `correct_yolo_boxes`. It subtracts exactly half of the padding, while the
    image was pasted at the truncated half: with odd padding, boxes are half an input pixel off.
    """
    boxes = _floats(boxes).copy()
    if letterbox:
        new_w, new_h = letterbox_size(image_w, image_h, net_w, net_h)
        boxes[..., 0] -= (net_w - new_w) / 2 / net_w
        boxes[..., 1] -= (net_h - new_h) / 2 / net_h
        boxes[..., 0::2] *= net_w / new_w
        boxes[..., 1::2] *= net_h / new_h
    return boxes


# IoU and its variants


def iou(a: ArrayLike, b: ArrayLike) -> FloatArray:
    """Return intersection over union. (..., 4), (..., 4) -> (...) in 0..1; 0 if the union is empty."""
    intersection, union = _areas(_floats(a), _floats(b))
    return _ratio(intersection, union)


def giou(a: ArrayLike, b: ArrayLike) -> FloatArray:
    """Return IoU minus the fraction of the enclosing box outside the union. (..., 4), (..., 4) -> (...) in -1..1."""
    a, b = _floats(a), _floats(b)
    intersection, union = _areas(a, b)
    sides = _enclosing(a, b)
    enclosing = sides[..., 0] * sides[..., 1]
    return _ratio(intersection, union) - _ratio(enclosing - union, enclosing)


def diou(a: ArrayLike, b: ArrayLike, beta: float = 0.6) -> FloatArray:
    """Return IoU - (center distance^2 / enclosing diagonal^2) ^ beta. (..., 4), (..., 4) -> (...).

    Darknet uses beta = 0.6 in `box_diou` and `beta_nms` in `diounms`; in the paper beta is 1.
    """
    return iou(a, b) - _distance(_floats(a), _floats(b)) ** beta


def ciou(a: ArrayLike, b: ArrayLike) -> FloatArray:
    """Return IoU minus DIoU's distance term (beta = 1) and the weighted aspect-ratio term. (..., 4), (..., 4) -> (...)."""
    a, b = _floats(a), _floats(b)
    overlap = iou(a, b)
    # arctan2(w, h) is atan(w / h) without a division by zero
    angle = np.arctan2(b[..., 2], b[..., 3]) - np.arctan2(a[..., 2], a[..., 3])
    v = 4 / np.pi**2 * angle**2
    alpha = v / (1 - overlap + v + 1e-6)
    return overlap - (_distance(a, b) + alpha * v)


def _floats(boxes: ArrayLike) -> FloatArray:
    boxes = np.asarray(boxes)
    return boxes if boxes.dtype.kind == "f" else boxes.astype(np.float64)


def _areas(a: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the areas of intersection and union."""
    w, h = (
        np.minimum(a[..., i] + a[..., i + 2] / 2, b[..., i] + b[..., i + 2] / 2)
        - np.maximum(a[..., i] - a[..., i + 2] / 2, b[..., i] - b[..., i + 2] / 2)
        for i in (0, 1)
    )
    intersection = np.maximum(w, 0) * np.maximum(h, 0)
    return intersection, a[..., 2] * a[..., 3] + b[..., 2] * b[..., 3] - intersection


def _enclosing(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return width and height (..., 2) of the smallest box that encloses both."""
    high = np.maximum(a[..., :2] + a[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2)
    low = np.minimum(a[..., :2] - a[..., 2:] / 2, b[..., :2] - b[..., 2:] / 2)
    return high - low


def _distance(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return squared center distance / squared diagonal of the enclosing box; 0 if that is a point."""
    squared = ((a[..., :2] - b[..., :2]) ** 2).sum(-1)
    return _ratio(squared, (_enclosing(a, b) ** 2).sum(-1))


def _ratio(part: FloatArray, whole: FloatArray) -> FloatArray:
    """Return part / whole, or 0 where whole is not positive."""
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)


# Non-maximum suppression

BLOCK = 64  # boxes compared with all later ones at once: fewer NumPy calls, bounded memory


def nms(boxes: ArrayLike, probs: ArrayLike, thresh: float, kind: str = "default", beta: float = 0.6) -> FloatArray:
    """Per class, keep the highest-scoring box of each cluster. boxes (K, 4), probs (K, classes) -> new probs, others 0.

    A box is suppressed if a kept, higher-scoring box of its class overlaps it by more than `thresh`. `kind` (Darknet's
    `nms_kind`) selects the overlap: IoU for `default` and `cornersnms`, DIoU with beta = 0.6 for `greedynms`, DIoU with
    `beta` for `diounms`. Ties keep row order. Raises ValueError for any other kind.
    """
    betas = {"default": None, "cornersnms": None, "greedynms": 0.6, "diounms": beta}
    if kind not in betas:
        raise ValueError(f"nms: unknown kind {kind!r}; choose one of {', '.join(betas)}")
    boxes, probs = _floats(boxes), _floats(probs).copy()
    classes, rows = np.nonzero(probs.T > 0)  # sorted by class, then by row
    with np.errstate(invalid="ignore", over="ignore"):  # networks can output inf; such a box overlaps nothing
        for group in np.split(np.arange(rows.size), np.flatnonzero(np.diff(classes)) + 1):
            if group.size > 1:
                column, candidates = probs[:, classes[group[0]]], rows[group]
                ranked = candidates[np.argsort(-column[candidates], kind="stable")]
                column[ranked[_suppressed(boxes[ranked], thresh, betas[kind])]] = 0
    return probs


def _suppressed(boxes: FloatArray, thresh: float, beta: float | None) -> NDArray[np.intp]:
    """Return positions of the boxes (n, 4), sorted by descending score, that a kept box overlaps by more than thresh."""
    suppressed = []
    remaining = np.arange(len(boxes))
    while remaining.size > 1:
        candidates = boxes[remaining]
        over = iou(candidates[:BLOCK, None], candidates) > thresh  # (at most BLOCK, remaining)
        if beta is not None:  # DIoU <= IoU, so only these pairs need the expensive power
            i, j = np.nonzero(over)
            over[i, j] = diou(candidates[i], candidates[j], beta) > thresh
        dropped = np.zeros(remaining.size, bool)
        for k, row in enumerate(over):
            if not dropped[k]:
                dropped[k + 1 :] |= row[k + 1 :]
        suppressed.append(remaining[dropped])
        remaining = remaining[BLOCK:][~dropped[BLOCK:]]
    return np.concatenate(suppressed) if suppressed else remaining[:0]
