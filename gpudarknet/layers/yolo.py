"""[yolo]: the detection head of YOLOv3, v4 and v7 (src/yolo_layer.c)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..array import Array, ArrayBackend, Arrays
from ..ops import yolo
from .anchors import AnchorHead
from .base import Backward, ForwardContext


@dataclass(frozen=True, kw_only=True)
class Yolo(AnchorHead, section="yolo"):
    """Activate raw outputs: box positions, objectness and class probabilities.   (A*(5 + classes), H, W) -> same

    Redmon and Farhadi 2018, arXiv 1804.02767; scale_x_y: Bochkovskiy et al. 2020, arXiv 2004.10934; new_coords:
    Wang et al. 2020, arXiv 2011.08036. Of OpenCV's keys, which Darknet does not read, `thresh` and `nms_threshold` concern
    only the rows that cv2dnn returns.
    """

    box_channels = 5
    new_coords: int = 0
    focal_loss: int = 0
    show_details: int = 1
    thresh: float = 0.2
    nms_threshold: float = 0.0

    def forward(self, be: ArrayBackend, w: Arrays, *xs: Array, ctx: ForwardContext) -> tuple[Array, Backward]:
        y = yolo.yolo_activate(be, xs[0], len(self.anchor_ids), self.scale_x_y, self.new_coords)
        return y, lambda dy, grad: (dy,)  # the loss returns delta with respect to the input

    def decode(self, be: ArrayBackend, y: Array, net_w: int, net_h: int, thresh: float) -> np.ndarray:
        anchors = be.asarray(self.anchor_sizes()[list(self.anchor_ids)])
        return be.to_numpy(yolo.yolo_decode(be, y, anchors, net_w, net_h, thresh, self.new_coords))

    @property
    def section_settings(self) -> dict[str, Any]:
        boxes_cost_iou = self.iou_loss != "mse" and bool(self.show_details)
        return dict(new_coords=self.new_coords, focal_loss=self.focal_loss, boxes_cost_iou=boxes_cost_iou)
