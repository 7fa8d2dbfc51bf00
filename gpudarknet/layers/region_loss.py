"""The loss of [region], YOLOv2 and YOLO9000 (forward_region_layer in src/region_layer.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..boxes import iou
from .base import LossContext
from .box_loss import focal

if TYPE_CHECKING:
    from .region import Region

WARM_UP = 12800  # for so many images all boxes are drawn to their anchors
CLASS_ONLY = 100000  # a truth with x and y above it names a class and no box


def slope(y: np.ndarray) -> np.ndarray:
    """Return the derivative of the sigmoid whose value is y."""
    return (1 - y) * y


def region_loss(head: Region, y: np.ndarray, truth: np.ndarray, ctx: LossContext) -> tuple[float, np.ndarray]:
    """y (N, C, H, W) in [cell][anchor][entry] order, truth (N, boxes*6) -> (cost, delta in the same order)."""
    N, _, H, W = y.shape
    A, o = head.num, head.coords
    v = y.reshape(N, H, W, A, -1)
    d = np.zeros_like(v)
    anchors = head.sizes() / np.array([W, H], np.float32)
    cells = np.stack(np.meshgrid(np.arange(W), np.arange(H)), axis=-1).astype(np.float32)[:, :, None]  # (H, W, 1, 2)
    grid = np.array([W, H], np.float32)
    place = 1 / (1 + np.exp(-v[..., :2]))
    boxes = np.concatenate([(place + cells) / grid, np.exp(v[..., 2:4]) * anchors], axis=-1)

    def box_delta(at: tuple[int, ...], box: np.ndarray, scale: float) -> None:
        """Draw the box at (n, j, i, a) to a truth (x, y, w, h)."""
        n, j, i, a = at
        p = place[at]
        d[at][:2] = scale * (box[:2] * grid - (i, j) - p) * slope(p)
        d[at][2:4] = scale * (np.log(box[2:] / anchors[a]) - v[at][2:4])

    def class_delta(at: tuple[int, ...], k: int, scale: float) -> None:
        """Raise class k of a slot and lower the others; in a tree, at every level from k up to the root."""
        out, dk = v[at][o + 1 :], d[at][o + 1 :]
        if head.tree is None:
            dk[:] = scale * (0 - out)
            dk[k] = scale * (1 - out[k])
            if head.focal_loss:
                dk *= focal(out[k])
            return
        starts = (*head.tree.starts, head.classes)
        while k >= 0:
            group = int(np.searchsorted(starts, k, side="right")) - 1
            siblings = slice(starts[group], starts[group + 1])
            dk[siblings] = scale * (0 - out[siblings])
            dk[k] = scale * (1 - out[k])
            k = head.tree.parents[k]

    for n, rows in enumerate(truth.reshape(N, -1, 6)):
        ends = np.flatnonzero(rows[:, 0] == 0)
        rows = rows[: ends[0] if ends.size else None][: head.max]
        if head.tree is not None and len(only := rows[(rows[:, 0] > CLASS_ONLY) & (rows[:, 1] > CLASS_ONLY)]):
            k = int(only[0, 4])
            p = v[n, ..., o] * head.tree.hierarchy(v[n, ..., o + 1 :])[..., k]
            class_delta((n, *np.unravel_index(p.argmax(), p.shape)), k, head.class_scale)
            continue
        rows = rows[(rows[:, 4] >= 0) & (rows[:, 4] < head.classes)]
        classes = rows[:, 4].astype(int)
        if head.map is not None:
            classes = np.array(head.map, int)[classes]
        out = v[n, ..., o]
        like = iou(boxes[n][..., None, :], rows[:, :4]) if len(rows) else np.zeros((*out.shape, 1), np.float32)
        best = like.max(axis=-1)
        aim = best if head.classfix == -1 else 0
        d[n, ..., o] = head.noobject_scale * (aim - out) * slope(out)
        if head.classfix != -1:
            close = best > head.thresh
            d[n, ..., o][close] = 0
            if head.classfix > 0:
                for j, i, a in np.argwhere(close):
                    scale = head.class_scale * (float(out[j, i, a]) if head.classfix == 2 else 1)
                    class_delta((n, j, i, a), classes[like[j, i, a].argmax()], scale)
        if ctx.seen < WARM_UP:
            d[n, ..., :2] = 0.01 * (0.5 - place[n]) * slope(place[n])
            d[n, ..., 2:4] = 0.01 * (0 - v[n, ..., 2:4])
        for box, k in zip(rows[:, :4], classes, strict=True):
            i, j = (min(max(int(p * size), 0), size - 1) for p, size in zip(box[:2], (W, H), strict=True))
            shapes = np.zeros((A, 4), np.float32)
            shapes[:, 2:] = anchors if head.bias_match else boxes[n, j, i, :, 2:]
            at = n, j, i, int(iou(shapes, box * np.array([0, 0, 1, 1], np.float32)).argmax())
            box_delta(at, box, head.coord_scale)
            wanted = iou(boxes[at], box) if head.rescore else 1
            d[at][o] = head.object_scale * (wanted - v[at][o]) * slope(v[at][o])
            class_delta(at, int(k), head.class_scale)
    return float((d.astype(np.float64) ** 2).sum()), d.reshape(y.shape)
