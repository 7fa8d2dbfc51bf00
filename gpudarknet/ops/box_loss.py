"""Deltas of IoU losses (dx_box_iou in src/box.c). Boxes (..., 4): center x, y, w, h.

Darknet's deltas are not always the derivative: for width and height they are twice it, for the center the enclosing box's
part of DIoU has the opposite sign, CIoU's lacks a factor, and an empty intersection is not clamped. Published weights were
trained with them; `exact` selects the derivative instead.
"""

from __future__ import annotations

import numpy as np

from .. import boxes
from ..array import Array

# in the order of IouVariant in kernels/loss.cuh
IOU_VARIANTS = {"mse": boxes.iou, "iou": boxes.iou, "giou": boxes.giou, "diou": boxes.diou, "ciou": boxes.ciou}


def edges(a: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return top, bottom, left, right of boxes (..., 4)."""
    x, y, w, h = (a[..., k] for k in range(4))
    return y - h / 2, y + h / 2, x - w / 2, x + w / 2


def box_delta(pred: np.ndarray, truth: np.ndarray, iou_variant: str, exact: bool = False) -> np.ndarray:
    """Return Darknet's delta (K, 4) = (dx, dy, dw, dh), which moves boxes pred (K, 4) towards truth (K, 4).

    exact: the derivative of the IoU variant, with CIoU's alpha held constant, as in its paper.
    iou_variant: "iou", "giou" (Rezatofighi et al. 2019, arXiv 1902.09630), "diou" or "ciou" (Zheng et al. 2020, arXiv
    1911.08287).
    """
    x, y, w, h = (pred[:, k] for k in range(4))
    tx, ty, tw, th = (truth[:, k] for k in range(4))
    (t, b, left, r), (T, B, L, R) = edges(pred), edges(truth)
    inter_h, inter_w = np.minimum(b, B) - np.maximum(t, T), np.minimum(r, R) - np.maximum(left, L)
    disjoint = (inter_w <= 0) | (inter_h <= 0)
    if exact:
        inter_w, inter_h = np.where(disjoint, 0, inter_w), np.where(disjoint, 0, inter_h)
    inter, area = inter_w * inter_h, w * h
    union = area + tw * th - inter
    zero = np.zeros_like(x)
    # derivatives with respect to the edges t, b, left, r
    darea = np.stack([-w, w, -h, h])
    dinter = np.stack([np.where(t > T, -inter_w, zero), np.where(b < B, inter_w, zero),
                       np.where(left > L, -inter_h, zero), np.where(r < R, inter_h, zero)])  # fmt: skip
    dunion = darea - dinter
    g = np.where(union > 0, ratio(union * dinter - inter * dunion, union * union), 0)
    outer_h, outer_w = np.maximum(b, B) - np.minimum(t, T), np.maximum(r, R) - np.minimum(left, L)
    if iou_variant == "giou":
        outer = outer_h * outer_w
        douter = np.stack([np.where(t < T, -outer_w, zero), np.where(b > B, outer_w, zero),
                           np.where(left < L, -outer_h, zero), np.where(r > R, outer_h, zero)])  # fmt: skip
        penalty = np.where(outer > 0, ratio(outer * dunion - union * douter, outer * outer), 0)
        g = np.where(disjoint, penalty, g + penalty)
    half = 0.5 if exact else 1
    delta = np.stack([g[2] + g[3], g[0] + g[1], half * (g[3] - g[2]), half * (g[1] - g[0])], axis=1)
    if iou_variant not in ("diou", "ciou"):
        return delta
    distance2 = (x - tx) ** 2 + (y - ty) ** 2
    diagonal2 = outer_w**2 + outer_h**2
    left_out, right_out, top_out, low_out = (v.astype(x.dtype) for v in (left < L, r > R, t < T, b > B))
    kx, ky = right_out - left_out, low_out - top_out
    kw, kh = (right_out + left_out) / 2, (low_out + top_out) / 2
    sign = 1 if exact else -1
    penalty = np.stack([
        ratio(2 * (tx - x) * diagonal2 + sign * 2 * outer_w * kx * distance2, diagonal2**2),
        ratio(2 * (ty - y) * diagonal2 + sign * 2 * outer_h * ky * distance2, diagonal2**2),
        ratio(2 * outer_w * kw * distance2, diagonal2**2),
        ratio(2 * outer_h * kh * distance2, diagonal2**2),
    ], axis=1)  # fmt: skip
    if iou_variant == "ciou":
        angle = np.arctan(ratio(tw, th)) - np.arctan(ratio(w, h))
        v = 4 / np.pi**2 * angle**2
        alpha = v / (1 - ratio(inter, union) + v + 1e-6)
        slope = alpha * (8 / np.pi**2) * angle
        slope = ratio(slope, w * w + h * h) if exact else slope
        penalty[:, 2] += slope * h
        penalty[:, 3] -= slope * w
    return np.where(disjoint[:, None], penalty, delta + penalty)


def ratio(a: Array, b: Array) -> Array:
    """Return a / b, and 0 where b is 0."""
    return a / np.where(b == 0, 1, b) * (b != 0)


def focal(p: Array) -> Array:
    """Return the factor of the class deltas of a box whose true class has probability p (Lin et al. 2017, arXiv 1708.02002)."""
    p = p + np.float32(1e-15)
    return -0.5 * (1 - p) * (2 * p * np.log(p) + p - 1)
