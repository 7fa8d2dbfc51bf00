from __future__ import annotations

from math import log, sqrt

import numpy as np

from gpudarknet.ops import losses

from . import check
from .yolo_loss import score


def labels(rng, *shape):
    """Draw truths, some of them 0, some without a label, as float32."""
    return rng.choice(np.float32([0, 0, 0.3, 1, losses.IGNORE_LABEL]), shape)


def make_softmax(rng, N, C, H, W, scale):
    return rng.uniform(0.1, 0.9, (N, C, H, W)), labels(rng, N, C * H * W), np.array([scale])


@check(losses.softmax_loss, make_softmax, (1.0,), (16.0,), half="y")
def softmax_loss(y, truth, scale):
    cost, delta = 0.0, np.zeros_like(y)
    for at, t in zip(np.ndindex(y.shape), truth.ravel(), strict=True):
        if t != losses.IGNORE_LABEL:
            cost -= log(y[at]) if t else 0
            delta[at] = (t - y[at]) * scale[0]
    return np.array([cost]), delta


def make_cost(rng, N, C, H, W, kind, scale):
    return rng.normal(0, 1.5, (N, C, H, W)), labels(rng, N, C * H * W), np.array([scale]), kind


@check(losses.cost_loss, make_cost, ("sse", 2.0), ("masked", 1.0), ("smooth", 1.0), half="x")
def cost_loss(x, truth, scale, kind):
    cost, delta = 0.0, np.zeros_like(x)
    for at, t in zip(np.ndindex(x.shape), truth.ravel(), strict=True):
        error = 0.0 if kind == "masked" and t == losses.IGNORE_LABEL else t - x[at]
        cost += 2 * abs(error) - 1 if kind == "smooth" and abs(error) >= 1 else error**2
        delta[at] = (min(max(error, -1), 1) if kind == "smooth" else error) * scale[0]
    return np.array([cost]), delta


def make_detection(rng, N, C, H, W, sqrt_sizes, rescore, forced, drawn):
    S, B, K = H, 2 + forced, C
    truth = np.zeros((N, S * S, 1 + K + 4), np.float32)
    for cell in truth.reshape(-1, 1 + K + 4)[:: 2 if S > 1 else 1]:
        cell[0] = cell[1 + rng.integers(K)] = 1
        cell[1 + K :] = rng.uniform(0.1, 0.9, 4)
    y = rng.uniform(0.05, 0.9, (N, K + 5 * B, S, S))
    boxes = y[-1].reshape(-1)[S * S * (K + B) :].reshape(-1, 4)
    boxes[:, :2] += 5  # the boxes of an image overlap nothing
    boxes[:, 2:] *= 0.1
    draws = rng.integers(B, size=(N, S * S)).astype(np.int32) if drawn else None
    scales = 5.0, 2.0, 0.5, 0.7
    return y, truth.reshape(N, -1), draws, np.array([4.0]), S, B, K, sqrt_sizes, rescore, forced, *scales


@check(losses.detection_loss, make_detection, (1, 1, 0, 0), (0, 0, 1, 0), (1, 0, 0, 1), half="y")
def detection_loss(
    y, truth, draws, scale, S, B, K, sqrt_sizes, rescore, forced, coord_scale, object_scale, noobject_scale, class_scale
):
    N, cells = len(y), S * S
    delta = np.zeros((N, y[0].size))
    for n, c in np.ndindex(N, cells):
        out, d, t = y[n].reshape(-1), delta[n], truth[n].reshape(cells, -1)[c]
        confidence, boxes = cells * K + c * B, [cells * (K + B) + (c * B + b) * 4 for b in range(B)]
        for b in range(B):
            d[confidence + b] = noobject_scale * (0 - out[confidence + b])
        if not t[0]:
            continue
        for k in range(K):
            d[c * K + k] = class_scale * (t[1 + k] - out[c * K + k])
        x, yy, w, h = t[1 + K :]
        overlaps, distances = [], []
        for at in boxes:
            e = [out[at] / S, out[at + 1] / S, *(v**2 if sqrt_sizes else v for v in out[at + 2 : at + 4])]
            overlaps.append(score("iou", e, (x / S, yy / S, w, h)))
            distances.append(sum((p - q) ** 2 for p, q in zip(e, (x / S, yy / S, w, h), strict=True)))
        best = overlaps.index(max(overlaps)) if max(overlaps) > 0 else distances.index(min(distances))
        if forced:
            best = int(w * h < 0.1)
        if draws is not None:
            best = draws[n].reshape(-1)[c]
        aim = overlaps[best] if rescore else 1
        d[confidence + best] = object_scale * (aim - out[confidence + best])
        wanted = (x, yy, *(sqrt(v) if sqrt_sizes else v for v in (w, h)))
        for e in range(4):
            d[boxes[best] + e] = coord_scale * (wanted[e] - out[boxes[best] + e])
    return np.array([(delta**2).sum()]), delta.reshape(y.shape) * scale[0]
