"""Which way to move one box towards another (dx_box_iou in src/box.c). Boxes (..., 4): centre x, y, w, h.

Darknet's deltas are not everywhere the derivative: for width and height they are twice it, for the centre the enclosing box's
part of DIoU has the other sign, CIoU's lacks a factor, and an empty intersection is not clamped. Published weights were
trained with them; `exact` asks for the derivative instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import boxes

LIKENESS = {"iou": boxes.iou, "mse": boxes.iou, "giou": boxes.giou, "diou": boxes.diou, "ciou": boxes.ciou}


def edges(a: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return top, bottom, left, right of boxes (..., 4)."""
    x, y, w, h = (a[..., k] for k in range(4))
    return y - h / 2, y + h / 2, x - w / 2, x + w / 2


def box_delta(pred: np.ndarray, truth: np.ndarray, kind: str, exact: bool = False) -> np.ndarray:
    """Return Darknet's step (K, 4) = (dx, dy, dw, dh) that makes boxes pred (K, 4) more like truth (K, 4).

    exact: the derivative of the likeness, CIoU's alpha held constant as its paper does.
    kind: "iou", "giou" (Rezatofighi et al. 2019, arXiv 1902.09630), "diou" or "ciou" (Zheng et al. 2020, arXiv 1911.08287).
    """
    x, y, w, h = (pred[:, k] for k in range(4))
    tx, ty, tw, th = (truth[:, k] for k in range(4))
    (t, b, left, r), (T, B, L, R) = edges(pred), edges(truth)
    high, wide = np.minimum(b, B) - np.maximum(t, T), np.minimum(r, R) - np.maximum(left, L)
    apart = (wide <= 0) | (high <= 0)
    if exact:
        wide, high = np.where(apart, 0, wide), np.where(apart, 0, high)
    both, area = wide * high, w * h
    union = area + tw * th - both
    zero = np.zeros_like(x)
    # derivatives with respect to the edges t, b, left, r
    darea = np.stack([-w, w, -h, h])
    dboth = np.stack([np.where(t > T, -wide, zero), np.where(b < B, wide, zero),
                      np.where(left > L, -high, zero), np.where(r < R, high, zero)])  # fmt: skip
    dunion = darea - dboth
    g = np.where(union > 0, ratio(union * dboth - both * dunion, union * union), 0)
    outer_high, outer_wide = np.maximum(b, B) - np.minimum(t, T), np.maximum(r, R) - np.minimum(left, L)
    if kind == "giou":
        outer = outer_high * outer_wide
        douter = np.stack([np.where(t < T, -outer_wide, zero), np.where(b > B, outer_wide, zero),
                           np.where(left < L, -outer_high, zero), np.where(r > R, outer_high, zero)])  # fmt: skip
        e = np.where(outer > 0, ratio(outer * dunion - union * douter, outer * outer), 0)
        g = np.where(apart, e, g + e)
    share = 0.5 if exact else 1
    step = np.stack([g[2] + g[3], g[0] + g[1], share * (g[3] - g[2]), share * (g[1] - g[0])], axis=1)
    if kind not in ("diou", "ciou"):
        return step
    away = (x - tx) ** 2 + (y - ty) ** 2
    across = outer_wide**2 + outer_high**2
    left_out, right_out, top_out, low_out = (v.astype(x.dtype) for v in (left < L, r > R, t < T, b > B))
    kx, ky = right_out - left_out, low_out - top_out
    kw, kh = (right_out + left_out) / 2, (low_out + top_out) / 2
    sign = 1 if exact else -1
    e = np.stack([
        ratio(2 * (tx - x) * across + sign * 2 * outer_wide * kx * away, across**2),
        ratio(2 * (ty - y) * across + sign * 2 * outer_high * ky * away, across**2),
        ratio(2 * outer_wide * kw * away, across**2),
        ratio(2 * outer_high * kh * away, across**2),
    ], axis=1)  # fmt: skip
    if kind == "ciou":
        gap = np.arctan(ratio(tw, th)) - np.arctan(ratio(w, h))
        v = 4 / np.pi**2 * gap**2
        alpha = v / (1 - ratio(both, union) + v + 1e-6)
        turn = alpha * (8 / np.pi**2) * gap
        turn = ratio(turn, w * w + h * h) if exact else turn
        e[:, 2] += turn * h
        e[:, 3] -= turn * w
    return np.where(apart[:, None], e, step + e)


def ratio(a: Any, b: Any) -> Any:
    """Divide, giving 0 where b is 0."""
    return a / np.where(b == 0, 1, b) * (b != 0)


def focal(p: Any) -> Any:
    """Return the factor of the class deltas of a box whose true class has probability p.   (Lin et al. 2017, arXiv 1708.02002)"""
    p = p + np.float32(1e-15)
    return -0.5 * (1 - p) * (2 * p * np.log(p) + p - 1)
