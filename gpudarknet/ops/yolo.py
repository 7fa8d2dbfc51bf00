"""Activations of the detection heads, and decoding of their boxes (yolo_layer.c, gaussian_yolo_layer.c, region_layer.c)."""

from __future__ import annotations

import numpy as np

from ..array import Array, ArrayBackend, KernelBackend
from .activation import _sigmoid
from .base import op

BLOCK = 256  # threads that rank the boxes of an image


def _split(y: Array, A: int) -> Array:
    N, C, H, W = y.shape
    return y.reshape(N, A, C // A, H, W)


@op
def yolo_activate(be: ArrayBackend, x: Array, A: int, scale_x_y: float, new_coords: int) -> Array:
    """Activate a yolo map x (N, A*(5 + classes), H, W) -> same: sigmoid of x, y, objectness and classes.

    With new_coords the previous layer has done that. In both cases x and y then become scale_x_y * v - (scale_x_y - 1) / 2.
    """
    y = x.copy()
    v = _split(y, A)
    if not new_coords:
        v[:, :, :2] = _sigmoid(be.xp, v[:, :, :2])
        v[:, :, 4:] = _sigmoid(be.xp, v[:, :, 4:])
    if scale_x_y != 1:
        v[:, :, :2] = v[:, :, :2] * scale_x_y - 0.5 * (scale_x_y - 1)
    return y


@yolo_activate.kernel
def yolo_activate_cuda(be: KernelBackend, x: Array, A: int, scale_x_y: float, new_coords: int) -> Array:
    _, C, H, W = x.shape
    y = be.empty(x.shape, x.dtype)
    be.launch("yolo.yolo_activate", x.size, x, y, x.size, C // A, H * W, scale_x_y, new_coords)
    return y


@op
def gaussian_activate(be: ArrayBackend, x: Array, A: int, scale_x_y: float) -> Array:
    """Activate a Gaussian yolo map x (N, A*(9 + classes), H, W) -> same.

    Channels of an anchor: x, x_sigma, y, y_sigma, w, w_sigma, h, h_sigma, objectness, classes; all but w and h get a sigmoid.
    """
    y = x.copy()
    v = _split(y, A)
    for part in (slice(0, 4), slice(5, 6), slice(7, None)):
        v[:, :, part] = _sigmoid(be.xp, v[:, :, part])
    if scale_x_y != 1:
        v[:, :, 0:3:2] = v[:, :, 0:3:2] * scale_x_y - 0.5 * (scale_x_y - 1)
    return y


@gaussian_activate.kernel
def gaussian_activate_cuda(be: KernelBackend, x: Array, A: int, scale_x_y: float) -> Array:
    _, C, H, W = x.shape
    y = be.empty(x.shape, x.dtype)
    be.launch("yolo.gaussian_activate", x.size, x, y, x.size, C // A, H * W, scale_x_y)
    return y


@op
def yolo_decode(
    be: ArrayBackend, y: Array, anchors: Array, net_w: int, net_h: int, thresh: float, new_coords: int
) -> Array:
    """Decode the boxes of an activated map y (N, A*(5 + classes), H, W) -> rows (K, 6 + classes), in Darknet's order.

    A row is: image index, objectness, box center x, y, width, height relative to the network input, and per class the
    probability objectness * class, 0 where it is not above thresh. Rows are those with objectness > thresh, ordered by
    image, cell (row by row), anchor. `anchors` (A, 2) are widths and heights in pixels of the network input.
    """
    xp = be.xp
    _, _, H, W = y.shape
    A = anchors.shape[0]
    v = _split(y, A).transpose(0, 3, 4, 1, 2)  # (N, H, W, A, 5 + classes)
    n, i, j, a = xp.nonzero(v[..., 4] > thresh)
    e = v[n, i, j, a]  # (K, 5 + classes)
    rows = be.empty((e.shape[0], e.shape[1] + 1), y.dtype)
    rows[:, 0] = n
    rows[:, 1] = e[:, 4]
    rows[:, 2] = (j + e[:, 0]) / W
    rows[:, 3] = (i + e[:, 1]) / H
    size = 4 * e[:, 2:4] ** 2 if new_coords else xp.exp(e[:, 2:4])
    rows[:, 4] = size[:, 0] * anchors[a, 0] / net_w
    rows[:, 5] = size[:, 1] * anchors[a, 1] / net_h
    p = e[:, 4:5] * e[:, 5:]
    rows[:, 6:] = xp.where(p > thresh, p, 0)
    return rows


def _rank(
    be: KernelBackend, scores: Array, thresh: float, N: int, A: int, P: int, first: int, per_anchor: int, per_cell: int
) -> tuple[Array, Array, int]:
    """Return, for boxes with a score above thresh: rank (N, P, A), the first row of each image (N,), the number of rows."""
    rank, counts = be.empty((N, P, A), np.int32), be.empty((N,), np.int32)
    sizes = (scores.size // N, A, P, first, per_anchor, per_cell)
    be.launch("yolo.rank_boxes", N * BLOCK, scores, rank, counts, *sizes, thresh, block=BLOCK)
    ends = np.cumsum(be.to_numpy(counts), dtype=np.int32)  # the only synchronization: the number of rows
    starts = np.append(np.int32(0), ends[:-1]).astype(np.int32)
    return rank, be.asarray(starts), int(ends[-1])


@yolo_decode.kernel
def yolo_decode_cuda(
    be: KernelBackend, y: Array, anchors: Array, net_w: int, net_h: int, thresh: float, new_coords: int
) -> Array:
    N, C, H, W = y.shape
    A = anchors.shape[0]
    E, P = C // A, H * W
    rank, starts, K = _rank(be, y, thresh, N, A, P, 4 * P, E * P, 1)
    rows = be.empty((K, E + 1), y.dtype)
    be.launch(
        "yolo.yolo_decode",
        rank.size, y, rank, starts, anchors, rows, rank.size, A, E, H, W, net_w, net_h, thresh, new_coords,
    )  # fmt: skip
    return rows


@op
def region_activate(be: ArrayBackend, x: Array, A: int, coords: int) -> Array:
    """Reorder a region map x (N, A*(coords + 1 + classes), H, W) by cell, and apply a sigmoid to its objectness.

    The result has x's shape and the memory layout of (N, H, W, A, coords + 1 + classes); boxes and classes are unchanged.
    """
    N, C, H, W = x.shape
    y = be.xp.ascontiguousarray(x.reshape(N, C, H * W).transpose(0, 2, 1))
    v = y.reshape(N, H * W, A, C // A)
    v[..., coords] = _sigmoid(be.xp, v[..., coords])
    return y.reshape(N, C, H, W)


@region_activate.kernel
def region_activate_cuda(be: KernelBackend, x: Array, A: int, coords: int) -> Array:
    _, C, H, W = x.shape
    y = be.empty(x.shape, x.dtype)
    be.launch("yolo.region_activate", x.size, x, y, x.size, C, C // A, H * W, coords)
    return y


@op
def region_decode(be: ArrayBackend, y: Array, anchors: Array, thresh: float, coords: int) -> Array:
    """Decode the boxes of an activated region map y (N, A*(coords + 1 + classes), H, W) -> rows (K, 6 + classes).

    Rows are like those of `yolo_decode`, but a box needs a class probability above thresh, and its objectness is 1, as in
    Darknet. The memory layout of y is (N, H, W, A, coords + 1 + classes); `anchors` (A, 2) are in cells.
    """
    xp = be.xp
    N, _, H, W = y.shape
    A = anchors.shape[0]
    v = y.reshape(N, H, W, A, -1)
    p = v[..., coords : coords + 1] * v[..., coords + 1 :]
    n, i, j, a = xp.nonzero((p > thresh).any(axis=-1))
    e, p = v[n, i, j, a], p[n, i, j, a]
    rows = be.empty((e.shape[0], p.shape[1] + 6), y.dtype)
    rows[:, 0] = n
    rows[:, 1] = 1
    rows[:, 2] = (j + _sigmoid(xp, e[:, 0])) / W
    rows[:, 3] = (i + _sigmoid(xp, e[:, 1])) / H
    rows[:, 4] = xp.exp(e[:, 2]) * anchors[a, 0] / W
    rows[:, 5] = xp.exp(e[:, 3]) * anchors[a, 1] / H
    rows[:, 6:] = xp.where(p > thresh, p, 0)
    return rows


@region_decode.kernel
def region_decode_cuda(be: KernelBackend, y: Array, anchors: Array, thresh: float, coords: int) -> Array:
    N, C, H, W = y.shape
    A = anchors.shape[0]
    E, P = C // A, H * W
    scores = be.empty((N, P, A))
    be.launch("yolo.region_scores", scores.size, y, scores, scores.size, E, coords)
    rank, starts, K = _rank(be, scores, thresh, N, A, P, 0, 1, A)
    rows = be.empty((K, E - coords + 5), y.dtype)
    be.launch("yolo.region_decode", rank.size, y, rank, starts, anchors, rows, rank.size, A, E, H, W, coords, thresh)
    return rows
