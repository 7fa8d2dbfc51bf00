from __future__ import annotations

import math

import numpy as np

from gpudarknet.ops import yolo

from . import check, normal
from .activation import each, sigmoid


def channels(y, A):
    """Every (n, a, i, j, e): the channels of anchor a in cell (i, j) of image n, as views."""
    N, C, H, W = y.shape
    for n, a, i, j in np.ndindex(N, A, H, W):
        yield n, a, i, j, y[n, a * (C // A) : (a + 1) * (C // A), i, j]


def make(rng, N, C, H, W, A, scale_x_y, new_coords):
    return normal(rng, N, A * (5 + C), H, W), A, scale_x_y, new_coords


@check(yolo.yolo_activate, make, (3, 1.0, 0), (2, 1.05, 0), (3, 2.0, 1), half="x")
def yolo_activate(x, A, scale_x_y, new_coords):
    y = x.copy()
    for *_, e in channels(y, A):
        if not new_coords:
            e[:2], e[4:] = each(sigmoid, e[:2]), each(sigmoid, e[4:])
        e[:2] = scale_x_y * e[:2] - (scale_x_y - 1) / 2
    return y


def make_gaussian(rng, N, C, H, W, A, scale_x_y):
    return normal(rng, N, A * (9 + C), H, W), A, scale_x_y


@check(yolo.gaussian_activate, make_gaussian, (3, 1.0), (2, 1.1), half="x")
def gaussian_activate(x, A, scale_x_y):
    y = x.copy()
    for *_, e in channels(y, A):
        for k in range(len(e)):
            e[k] = e[k] if k in (4, 6) else sigmoid(e[k])
        e[0], e[2] = (scale_x_y * v - (scale_x_y - 1) / 2 for v in (e[0], e[2]))
    return y


def make_decode(rng, N, C, H, W, A, thresh, new_coords):
    y = rng.uniform(0, 1, (N, A * (5 + C), H, W))
    return y, 100 * rng.uniform(0.1, 2, (A, 2)), 32 * W, 32 * H, thresh, new_coords


@check(
    yolo.yolo_decode, make_decode, (3, 0.25, 0), (2, 0.5, 1), (5, 0.9, 0), (1, 2.0, 0), (2, -np.inf, 0), half="y"
)  # one finds none, one all
def yolo_decode(y, anchors, net_w, net_h, thresh, new_coords):
    N, _, H, W = y.shape
    A, boxes = len(anchors), {}
    for n, a, i, j, e in channels(y, A):
        if e[4] > np.float32(thresh):
            size = [4 * v * v if new_coords else math.exp(v) for v in e[2:4]]
            box = [(j + e[0]) / W, (i + e[1]) / H, size[0] * anchors[a, 0] / net_w, size[1] * anchors[a, 1] / net_h]
            p = e[4] * e[5:]
            boxes[n, i, j, a] = [n, e[4], *box, *np.where(p > thresh, p, 0)]
    return np.array([boxes[key] for key in sorted(boxes)]).reshape(-1, y.shape[1] // A + 1)


def make_region(rng, N, C, H, W, A, coords):
    return normal(rng, N, A * (coords + 1 + C), H, W), A, coords


@check(yolo.region_activate, make_region, (5, 4), (2, 3), half="x")
def region_activate(x, A, coords):
    N, C, H, W = x.shape
    y = np.empty((N, H, W, A, C // A))
    for n, a, i, j, e in channels(x, A):
        y[n, i, j, a] = e
        y[n, i, j, a, coords] = sigmoid(e[coords])
    return y.reshape(N, C, H, W)


def make_region_decode(rng, N, C, H, W, A, thresh, coords):
    y = rng.uniform(0, 1, (N, A * (coords + 1 + C), H, W))
    return y, rng.uniform(0.1, 2, (A, 2)), thresh, coords


@check(
    yolo.region_decode,
    make_region_decode,
    (5, 0.25, 4),
    (2, 0.5, 5),
    (3, 0.9, 4),
    (1, 2.0, 4),
    (2, -np.inf, 4),
    half="y",
)
def region_decode(y, anchors, thresh, coords):
    N, C, H, W = y.shape
    A, rows = len(anchors), []
    cells = y.reshape(N, H, W, A, C // A)
    for n, i, j, a in np.ndindex(N, H, W, A):
        e = cells[n, i, j, a]
        p = e[coords] * e[coords + 1 :]
        if (p > np.float32(thresh)).any():
            box = [(j + sigmoid(e[0])) / W, (i + sigmoid(e[1])) / H, *(np.exp(e[2:4]) * anchors[a] / (W, H))]
            rows.append([n, 1, *box, *np.where(p > thresh, p, 0)])
    return np.array(rows).reshape(-1, C // A - coords + 5)
