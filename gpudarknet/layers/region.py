"""[region]: the detection head of YOLOv2 and YOLO9000 (src/region_layer.c)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np

from ..array import Array, ArrayBackend, Arrays
from ..ops import norm, yolo
from ..ops.region_loss import ClassTree, RegionLoss, region_loss
from .anchors import ANCHOR_COUNT, anchor_array, anchor_diagnostics, map_diagnostics
from .base import Backward, DetectionHead, ForwardContext, LossContext, Shape, ShapeError
from .class_tree import ClassMap, Tree
from .limits import NOT_NEGATIVE, Diagnostic, Limit

ANCHOR_PRIOR_IMAGES = 12800  # for so many images, all boxes are also pulled towards their anchors


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

    def loss(self, be: ArrayBackend, x: Array, y: Array, truth: Array, ctx: LossContext) -> tuple[Array, Array]:
        """truth (N, boxes*6): rows x, y, w, h, class, track, relative to the image; the first row with x = 0 ends the list."""
        prior = ctx.seen < ANCHOR_PRIOR_IMAGES
        return region_loss(be, y, truth, ctx.loss_scale(be), loss_settings(self), prior)


@lru_cache(maxsize=64)
def loss_settings(head: Region) -> RegionLoss:
    """Return what `region_loss` needs to know of a head."""
    tree = None
    if head.tree is not None:
        first, last = np.array(head.tree.groups).T
        sizes = last - first
        tree = ClassTree(np.array(head.tree.parents), np.repeat(first, sizes), np.repeat(last, sizes))
    class_map = np.arange(head.classes) if head.map is None else np.array(head.map)
    keys = {f.name: getattr(head, f.name) for f in fields(RegionLoss) if f.name != "class_map"}
    return RegionLoss(**{**keys, "anchors": head.anchor_sizes(), "class_map": class_map, "tree": tree})
