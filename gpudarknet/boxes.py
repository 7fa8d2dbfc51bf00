"""Box arithmetic on NumPy arrays: forms of a box, letter-box geometry, the IoU family, non-maximum suppression.

A box is (x, y, w, h): centre, then size, all in one unit (of the picture, of the network input, or pixels). Functions
that take boxes take arrays (..., 4) and keep their leading shape; two arrays of boxes broadcast against each other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.floating]


# Forms of a box


def to_corners(boxes: ArrayLike) -> Array:
    """Turn centre boxes into edges: (..., 4) x, y, w, h -> (..., 4) left, top, right, bottom."""
    boxes = _floats(boxes)
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return np.concatenate((centre - half, centre + half), axis=-1)


def from_corners(edges: ArrayLike) -> Array:
    """Turn edges into centre boxes: (..., 4) left, top, right, bottom -> (..., 4) x, y, w, h."""
    edges = _floats(edges)
    first, last = edges[..., :2], edges[..., 2:]
    return np.concatenate(((first + last) / 2, last - first), axis=-1)


def to_ltwh(boxes: ArrayLike) -> Array:
    """Move the anchor from the centre to the corner: (..., 4) x, y, w, h -> (..., 4) left, top, width, height."""
    boxes = _floats(boxes)
    return np.concatenate((boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., 2:]), axis=-1)


def from_ltwh(boxes: ArrayLike) -> Array:
    """Move the anchor from the corner to the centre: (..., 4) left, top, width, height -> (..., 4) x, y, w, h."""
    boxes = _floats(boxes)
    return np.concatenate((boxes[..., :2] + boxes[..., 2:] / 2, boxes[..., 2:]), axis=-1)


# Letter box


def fit(image_w: int, image_h: int, net_w: int, net_h: int) -> tuple[int, int]:
    """Give the (width, height) of a picture scaled, at its own proportions, to just fill one side of the network input.

    Integer division as Darknet's `letterbox_image`; a side is never less than one pixel.
    """
    if np.float32(net_w) / np.float32(image_w) < np.float32(net_h) / np.float32(image_h):
        return net_w, max(1, image_h * net_w // image_w)
    return max(1, image_w * net_h // image_h), net_h


def to_image(boxes: ArrayLike, net_w: int, net_h: int, image_w: int, image_h: int, letterbox: bool = False) -> Array:
    """Turn boxes relative to the network input into boxes relative to the picture. (..., 4) -> (..., 4), a new array.

    Nothing is clipped. Source: Darknet's `correct_yolo_boxes`. The border it subtracts is a real half of the free space,
    while the picture was pasted at the truncated half: where the free space is odd, boxes are half an input pixel off.
    """
    boxes = _floats(boxes).copy()
    if letterbox:
        new_w, new_h = fit(image_w, image_h, net_w, net_h)
        boxes[..., 0] -= (net_w - new_w) / 2 / net_w
        boxes[..., 1] -= (net_h - new_h) / 2 / net_h
        boxes[..., 0::2] *= net_w / new_w
        boxes[..., 1::2] *= net_h / new_h
    return boxes


# The IoU family


def iou(a: ArrayLike, b: ArrayLike) -> Array:
    """Measure intersection over union. (..., 4), (..., 4) -> (...) in 0..1; 0 where the union is empty."""
    inner, union = _areas(_floats(a), _floats(b))
    return _ratio(inner, union)


def giou(a: ArrayLike, b: ArrayLike) -> Array:
    """Measure IoU less the empty share of the enclosing box. (..., 4), (..., 4) -> (...) in -1..1."""
    a, b = _floats(a), _floats(b)
    inner, union = _areas(a, b)
    sides = _enclosing(a, b)
    whole = sides[..., 0] * sides[..., 1]
    return _ratio(inner, union) - _ratio(whole - union, whole)


def diou(a: ArrayLike, b: ArrayLike, beta: float = 0.6) -> Array:
    """Measure IoU less (centre distance^2 / enclosing diagonal^2) ^ beta. (..., 4), (..., 4) -> (...).

    Darknet's `box_diou` raises to 0.6 and its `diounms` to `beta_nms`; the paper's metric is beta = 1.
    """
    return iou(a, b) - _distance(_floats(a), _floats(b)) ** beta


def ciou(a: ArrayLike, b: ArrayLike) -> Array:
    """Measure IoU less the distance term (power 1) and less the weighted difference of proportions. -> (...)."""
    a, b = _floats(a), _floats(b)
    overlap = iou(a, b)
    # arctan2(w, h) is atan(w / h) without a division by zero
    angle = np.arctan2(b[..., 2], b[..., 3]) - np.arctan2(a[..., 2], a[..., 3])
    v = 4 / np.pi**2 * angle**2
    alpha = v / (1 - overlap + v + 1e-6)
    return overlap - (_distance(a, b) + alpha * v)


def _floats(boxes: ArrayLike) -> Array:
    boxes = np.asarray(boxes)
    return boxes if boxes.dtype.kind == "f" else boxes.astype(np.float64)


def _areas(a: Array, b: Array) -> tuple[Array, Array]:
    """Areas of intersection and union."""
    w, h = (
        np.minimum(a[..., i] + a[..., i + 2] / 2, b[..., i] + b[..., i + 2] / 2)
        - np.maximum(a[..., i] - a[..., i + 2] / 2, b[..., i] - b[..., i + 2] / 2)
        for i in (0, 1)
    )
    inner = np.maximum(w, 0) * np.maximum(h, 0)
    return inner, a[..., 2] * a[..., 3] + b[..., 2] * b[..., 3] - inner


def _enclosing(a: Array, b: Array) -> Array:
    """Width and height (..., 2) of the smallest box around both."""
    last = np.maximum(a[..., :2] + a[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2)
    first = np.minimum(a[..., :2] - a[..., 2:] / 2, b[..., :2] - b[..., 2:] / 2)
    return last - first


def _distance(a: Array, b: Array) -> Array:
    """Squared distance of the centres over the squared diagonal of the enclosing box; 0 where that is a point."""
    apart = ((a[..., :2] - b[..., :2]) ** 2).sum(-1)
    return _ratio(apart, (_enclosing(a, b) ** 2).sum(-1))


def _ratio(part: Array, whole: Array) -> Array:
    """part / whole, and 0 where whole is not positive."""
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)


# Non-maximum suppression

BLOCK = 64  # boxes compared with all their successors at once: few NumPy calls, little memory


def nms(boxes: ArrayLike, probs: ArrayLike, thresh: float, kind: str = "default", beta: float = 0.6) -> Array:
    """Keep, class by class, the best box of each heap. boxes (K, 4), probs (K, classes) -> new probs, others set to 0.

    A box falls where a better one of its class that still stands overlaps it by more than `thresh`. What overlap means is
    the `kind` (Darknet's `nms_kind`): iou for `default` and `cornersnms`; diou with the power 0.6 for `greedynms`, with
    the power `beta` for `diounms`. Equal probabilities keep the order of their rows. ValueError for any other kind.
    """
    powers = {"default": None, "cornersnms": None, "greedynms": 0.6, "diounms": beta}
    if kind not in powers:
        raise ValueError(f"nms: no kind {kind!r}; choose one of {', '.join(powers)}")
    boxes, probs = _floats(boxes), _floats(probs).copy()
    classes, rows = np.nonzero(probs.T > 0)  # class by class, rows ascending
    with np.errstate(invalid="ignore", over="ignore"):  # a network may have said inf; such a box overlaps nothing
        for group in np.split(np.arange(rows.size), np.flatnonzero(np.diff(classes)) + 1):
            if group.size > 1:
                column, candidates = probs[:, classes[group[0]]], rows[group]
                ranked = candidates[np.argsort(-column[candidates], kind="stable")]
                column[ranked[_fallen(boxes[ranked], thresh, powers[kind])]] = 0
    return probs


def _fallen(boxes: Array, thresh: float, power: float | None) -> NDArray[np.intp]:
    """Positions of the boxes (n, 4), best first, that a better and standing one overlaps by more than thresh."""
    fallen = []
    standing = np.arange(len(boxes))
    while standing.size > 1:
        rivals = boxes[standing]
        over = iou(rivals[:BLOCK, None], rivals) > thresh  # (BLOCK or fewer, standing)
        if power is not None:  # diou is never above iou, so only these few pairs need the costly power
            better, worse = np.nonzero(over)
            over[better, worse] = diou(rivals[better], rivals[worse], power) > thresh
        down = np.zeros(standing.size, bool)
        for i, beaten in enumerate(over):
            if not down[i]:
                down[i + 1 :] |= beaten[i + 1 :]
        fallen.append(standing[down])
        standing = standing[BLOCK:][~down[BLOCK:]]
    return np.concatenate(fallen) if fallen else standing[:0]
