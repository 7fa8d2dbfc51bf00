"""[yolo]: boxes of YOLOv3, v4 and v7 (src/yolo_layer.c)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from ..ops import yolo
from .base import DetectionHead, ForwardContext, LossContext, Shape, ShapeError, anchor_sizes
from .class_tree import ClassMap
from .yolo_loss import anchor_loss

MOST = 1 << 16  # anchors; no memory is asked for what a hostile cfg names


@dataclass(frozen=True, kw_only=True)
class AnchorHead(DetectionHead):
    """What [yolo] and [Gaussian_yolo] share: anchors in pixels of the network input, of which `mask` names this head's."""

    ignored = frozenset(
        "track_history_size sim_thresh dets_for_track dets_for_show track_ciou_norm embedding_layer".split()
    )
    fallback: ClassVar[dict[str, str]] = {"iou_loss": "iou", "iou_thresh_kind": "iou", "nms_kind": "default"}
    box: ClassVar[int]  # numbers per anchor beside the classes

    num: int = 1
    mask: tuple[int, ...] | None = None  # default: all anchors
    anchors: tuple[float, ...] | None = None
    scale_x_y: float = 1.0
    objectness_smooth: int = 0
    iou_normalizer: float = 0.75
    obj_normalizer: float = 1.0
    cls_normalizer: float = 1.0
    delta_normalizer: float = 1.0
    iou_loss: Literal["mse", "giou", "diou", "ciou", "iou"] = "mse"
    iou_thresh_kind: Literal["mse", "giou", "diou", "ciou", "iou"] = "iou"
    iou_thresh: float = 1.0
    ignore_thresh: float = 0.5
    truth_thresh: float = 1.0
    label_smooth_eps: float = 0.0
    max_delta: float = float("inf")
    counters_per_class: tuple[float, ...] | None = None
    jitter: float = 0.2
    resize: float = 1.0
    random: float = 0.0
    map: ClassMap | None = None

    @property
    def count(self) -> int:
        """How many anchors there are: num, or more where mask names further ones that the cfg lists (a published one does)."""
        return max(self.num, min(max(self.used, default=-1) + 1, len(self.anchors or ()) // 2))

    @property
    def used(self) -> tuple[int, ...]:
        """The anchors of this head, as numbers into all anchors."""
        return self.mask if self.mask is not None else tuple(range(self.num))

    def sizes(self) -> np.ndarray:
        """Return all anchors (count, 2) as widths and heights in pixels; 0.5 where the cfg gives none."""
        return anchor_sizes(self.anchors, self.count)

    def shape(self, *inputs: Shape) -> Shape:
        C, H, W = inputs[0]
        if self.count > MOST:
            raise ShapeError(f"num={self.num} anchors are more than the {MOST} that any network needs")
        if self.classes < 1 or not self.used or min(self.used) < 0 or max(self.used) >= self.count:
            raise ShapeError(
                f"mask={','.join(map(str, self.used))} must name anchors between 0 and num - 1 = {self.count - 1}"
            )
        wanted = len(self.used) * (self.classes + self.box)
        if wanted != C:
            raise ShapeError(
                f"{len(self.used)} anchors and {self.classes} classes need {wanted} input channels, there are {C};"
                f" set filters={wanted} in the layer before it"
            )
        return inputs[0]


@dataclass(frozen=True, kw_only=True)
class Yolo(AnchorHead, section="yolo"):
    """Turn raw numbers into box positions, objectness and class probabilities.   (A*(5 + classes), H, W) -> same

    Redmon and Farhadi 2018, arXiv 1804.02767; scale_x_y: Bochkovskiy et al. 2020, arXiv 2004.10934; new_coords:
    Wang et al. 2020, arXiv 2011.08036.
    """

    box = 5
    new_coords: int = 0
    focal_loss: int = 0
    show_details: int = 1

    def forward(self, be: Any, w: dict[str, Any], *xs: Any, ctx: ForwardContext) -> tuple[Any, Any]:
        y = yolo.yolo_activate(be, xs[0], len(self.used), self.scale_x_y, self.new_coords)
        return y, lambda dy, grad: (dy,)  # the loss gives delta with respect to the raw numbers

    def detections(self, be: Any, y: Any, net_w: int, net_h: int, thresh: float) -> np.ndarray:
        anchors = be.asarray(self.sizes()[list(self.used)])
        return be.to_numpy(yolo.yolo_decode(be, y, anchors, net_w, net_h, thresh, self.new_coords))

    def loss(self, x: np.ndarray, y: np.ndarray, truth: np.ndarray, ctx: LossContext) -> tuple[float, np.ndarray]:
        """truth (N, boxes*6): rows x, y, w, h, class, track, relative to the image; the first row with x = 0 ends a list."""
        return anchor_loss(self, y, truth, ctx, gaussian=False)
