"""[region]: the detection head of YOLOv2 and YOLO9000 (src/region_layer.c)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..array import Array, ArrayBackend, Arrays
from ..boxes import iou
from ..ops import norm, yolo
from .anchors import ANCHOR_COUNT, anchor_array, anchor_diagnostics, map_diagnostics
from .base import Backward, DetectionHead, ForwardContext, LossContext, Shape, ShapeError
from .box_loss import focal
from .class_tree import ClassMap, Tree
from .limits import NOT_NEGATIVE, Diagnostic, Limit

ANCHOR_PRIOR_IMAGES = 12800  # for so many images, all boxes are also pulled towards their anchors
CLASS_ONLY = 100000  # a truth whose x and y exceed this has a class but no box


@dataclass(frozen=True, kw_only=True)
class Region(DetectionHead, section="region"):
    """Activate objectness and class probabilities; boxes stay raw.   (num*(coords + 1 + classes), H, W) -> same

    The memory layout of the output does not match its shape: it is (H, W, num, coords + 1 + classes), as in Darknet and as
    users of YOLOv2 outputs expect. Anchors are in cells of the output grid. Redmon and Farhadi 2016, arXiv 1612.08242.
    """

    ignored = frozenset({"log"})
    limits = ANCHOR_COUNT.of("num") | Limit("must be at least 4", lambda v: v >= 4).of("coords")
    training_limits = NOT_NEGATIVE.of(
        "coord_scale", "object_scale", "noobject_scale", "class_scale", "thresh", "random"
    )

    coords: int = 4
    num: int = 1
    softmax: int = 0
    anchors: tuple[float, ...] | None = None
    tree: Tree | None = None
    map: ClassMap | None = None
    bias_match: int = 0
    rescore: int = 0
    thresh: float = 0.5
    classfix: int = 0
    focal_loss: int = 0
    absolute: int = 0
    sqrt: int = 0
    random: float = 0.0
    coord_scale: float = 1.0
    object_scale: float = 1.0
    noobject_scale: float = 1.0
    class_scale: float = 1.0
    mask_scale: float = 1.0

    def anchor_sizes(self) -> np.ndarray:
        """Return the anchors (num, 2) as widths and heights in cells; 0.5 if the cfg has none."""
        return anchor_array(self.anchors, self.num)

    @property
    def num_labels(self) -> int:
        return self.num_truth_classes

    @property
    def input_scale(self) -> float:
        return self.random

    def diagnostics(self) -> Iterator[Diagnostic]:
        yield from super().diagnostics()
        if self.tree is not None and len(self.tree.names) != self.classes:
            yield Diagnostic(
                "tree", f"tree: has {len(self.tree.names)} classes, classes={self.classes}; they must be equal"
            )
        yield from map_diagnostics(self.map, self.classes)
        yield from anchor_diagnostics(self.anchors, self.num, self.num)

    @property
    def input_channels(self) -> int:
        return self.num * (self.coords + 1 + self.classes)

    def shape(self, *inputs: Shape) -> Shape:
        C = inputs[0][0]
        needed = self.input_channels
        if needed != C:
            raise ShapeError(
                f"{self.num} anchors and {self.classes} classes need {needed} input channels, there are {C};"
                f" set filters={needed} in the layer before it"
            )
        return inputs[0]

    def forward(self, be: ArrayBackend, w: Arrays, *xs: Array, ctx: ForwardContext) -> tuple[Array, Backward]:
        N, _, H, W = xs[0].shape
        y = yolo.region_activate(be, xs[0], self.num, self.coords)
        if self.tree is not None or self.softmax:
            rows = y.reshape(-1, self.coords + 1 + self.classes)
            classes = be.xp.ascontiguousarray(rows[:, self.coords + 1 :])
            rows[:, self.coords + 1 :] = norm.softmax(be, classes, self.tree.starts if self.tree else (0,), 1.0)

        def backward(
            dy: Array, grad: Arrays
        ) -> tuple[Array | None, ...]:  # the loss returns delta with respect to the input
            cells = dy.reshape(N, H * W, -1).transpose(0, 2, 1)
            return (be.xp.ascontiguousarray(cells).reshape(xs[0].shape),)

        return y, backward

    def decode(self, be: ArrayBackend, y: Array, net_w: int, net_h: int, thresh: float) -> np.ndarray:
        """Decode boxes. With a tree, a box has one class, the deepest above 0.5; with a map, the mapped classes."""
        if self.tree is not None or self.map is not None or self.classfix == -1:
            y, thresh = self.select_classes(be, y, thresh)
        return be.to_numpy(yolo.region_decode(be, y, be.asarray(self.anchor_sizes()), thresh, self.coords))

    def select_classes(self, be: ArrayBackend, y: Array, thresh: float) -> tuple[Array, float]:
        """Apply tree, map and classfix to the classes of y; return it with its threshold."""
        N, _, H, W = y.shape
        v = be.to_numpy(y).reshape(N, H, W, self.num, -1)
        box, objectness, p = np.split(v, [self.coords, self.coords + 1], axis=-1)
        if self.classfix == -1:
            objectness = np.where(objectness < 0.5, 0, objectness)
        if self.map is not None:
            p = p[..., list(self.map)]  # without multiplying the levels of the tree, as in Darknet
        elif self.tree is not None:  # Darknet thresholds objectness, then returns the class probability alone
            p, objectness = self.deepest_class(p) * (objectness > thresh), np.ones_like(objectness)
            thresh = min(thresh, 0.0)
        joined = np.concatenate([box, objectness, p], axis=-1)
        return be.asarray(joined.reshape(N, -1, H, W), np.float32), thresh

    def deepest_class(self, p: np.ndarray) -> np.ndarray:
        """Zero classes (..., classes) but the last in file order whose product with its ancestors is above 0.5."""
        assert self.tree is not None
        p = self.tree.hierarchy(p)
        above: np.ndarray = np.greater(p, 0.5)
        last = above.shape[-1] - 1 - above[..., ::-1].argmax(axis=-1)
        kept = np.zeros_like(p)
        np.put_along_axis(kept, last[..., None], np.take_along_axis(p, last[..., None], -1), -1)
        return kept * above.any(axis=-1, keepdims=True)

    def loss(self, x: np.ndarray, y: np.ndarray, truth: np.ndarray, ctx: LossContext) -> tuple[float, np.ndarray]:
        """truth (N, boxes*6): rows x, y, w, h, class, track, relative to the image; the first row with x = 0 ends the list."""
        return region_loss(self, y, truth, ctx)


def slope(y: np.ndarray) -> np.ndarray:
    """Return the derivative of the sigmoid whose value is y."""
    return (1 - y) * y


def region_loss(head: Region, y: np.ndarray, truth: np.ndarray, ctx: LossContext) -> tuple[float, np.ndarray]:
    """Return (cost, delta) as forward_region_layer does.

    y (N, C, H, W) in [cell][anchor][entry] order, truth (N, boxes*6); delta in the order of y.
    """
    N, _, H, W = y.shape
    A, o = head.num, head.coords
    v = y.reshape(N, H, W, A, -1)
    delta = np.zeros_like(v)
    anchors = head.anchor_sizes() / np.array([W, H], np.float32)
    cells = np.stack(np.meshgrid(np.arange(W), np.arange(H)), axis=-1).astype(np.float32)[:, :, None]  # (H, W, 1, 2)
    grid = np.array([W, H], np.float32)
    position = 1 / (1 + np.exp(-v[..., :2]))
    boxes = np.concatenate([(position + cells) / grid, np.exp(v[..., 2:4]) * anchors], axis=-1)

    def box_delta(at: tuple[int, ...], box: np.ndarray, scale: float) -> None:
        """Move the box at (n, j, i, a) towards a truth (x, y, w, h)."""
        n, j, i, a = at
        p = position[at]
        delta[at][:2] = scale * (box[:2] * grid - (i, j) - p) * slope(p)
        delta[at][2:4] = scale * (np.log(box[2:] / anchors[a]) - v[at][2:4])

    def class_delta(at: tuple[int, ...], k: int, scale: float) -> None:
        """Set the class deltas of a box to class k; in a tree, at every level from k up to the root."""
        out, dk = v[at][o + 1 :], delta[at][o + 1 :]
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
        rows = rows[(rows[:, 4] >= 0) & (rows[:, 4] < head.num_truth_classes)]
        classes = rows[:, 4].astype(int)
        if head.map is not None:
            classes = np.array(head.map, int)[classes]
        out = v[n, ..., o]
        ious = iou(boxes[n][..., None, :], rows[:, :4]) if len(rows) else np.zeros((*out.shape, 1), np.float32)
        best = ious.max(axis=-1)
        goal = best if head.classfix == -1 else 0
        delta[n, ..., o] = head.noobject_scale * (goal - out) * slope(out)
        if head.classfix != -1:
            ignored = best > head.thresh
            delta[n, ..., o][ignored] = 0
            if head.classfix > 0:
                for j, i, a in np.argwhere(ignored):
                    scale = head.class_scale * (float(out[j, i, a]) if head.classfix == 2 else 1)
                    class_delta((n, j, i, a), classes[ious[j, i, a].argmax()], scale)
        if ctx.seen < ANCHOR_PRIOR_IMAGES:
            delta[n, ..., :2] = 0.01 * (0.5 - position[n]) * slope(position[n])
            delta[n, ..., 2:4] = 0.01 * (0 - v[n, ..., 2:4])
        for box, k in zip(rows[:, :4], classes, strict=True):
            i, j = (min(max(int(p * size), 0), size - 1) for p, size in zip(box[:2], (W, H), strict=True))
            shapes = np.zeros((A, 4), np.float32)
            shapes[:, 2:] = anchors if head.bias_match else boxes[n, j, i, :, 2:]
            at = n, j, i, int(iou(shapes, box * np.array([0, 0, 1, 1], np.float32)).argmax())
            box_delta(at, box, head.coord_scale)
            goal = iou(boxes[at], box) if head.rescore else 1
            delta[at][o] = head.object_scale * (goal - v[at][o]) * slope(v[at][o])
            class_delta(at, int(k), head.class_scale)
    return float((delta.astype(np.float64) ** 2).sum()), delta.reshape(y.shape)
