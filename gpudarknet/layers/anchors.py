"""Anchors, and the base class of detection heads that have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from .base import DetectionHead, Shape, ShapeError
from .class_tree import ClassMap

MAX_ANCHORS = 1 << 16  # a limit for hostile cfgs


def anchor_array(values: Sequence[float] | None, count: int) -> np.ndarray:
    """Return `count` anchors (count, 2) as widths and heights; 0.5 if the cfg has none."""
    flat = np.full(2 * count, 0.5, np.float32)
    listed = np.array(values or (), np.float32)[: flat.size]
    flat[: listed.size] = listed
    return flat.reshape(-1, 2)


@dataclass(frozen=True, kw_only=True)
class AnchorHead(DetectionHead):
    """The base of [yolo] and [Gaussian_yolo]. Anchors are in pixels of the network input; `mask` selects those of this head."""

    ignored = frozenset(
        "track_history_size sim_thresh dets_for_track dets_for_show track_ciou_norm embedding_layer".split()
    )
    fallback: ClassVar[dict[str, str]] = {"iou_loss": "iou", "iou_thresh_kind": "iou", "nms_kind": "default"}
    box_channels: ClassVar[int]  # channels per anchor, without the classes

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
    def num_anchors(self) -> int:
        """The number of anchors: num, or more if mask selects further listed anchors, as in one published cfg."""
        return max(self.num, min(max(self.anchor_ids, default=-1) + 1, len(self.anchors or ()) // 2))

    @property
    def anchor_ids(self) -> tuple[int, ...]:
        """The indices of this head's anchors."""
        return self.mask if self.mask is not None else tuple(range(self.num))

    def anchor_sizes(self) -> np.ndarray:
        """Return all anchors (count, 2) as widths and heights in pixels; 0.5 if the cfg has none."""
        return anchor_array(self.anchors, self.num_anchors)

    @property
    def input_channels(self) -> int:
        return len(self.anchor_ids) * (self.classes + self.box_channels)

    def shape(self, *inputs: Shape) -> Shape:
        C, H, W = inputs[0]
        if self.num_anchors > MAX_ANCHORS:
            raise ShapeError(f"num={self.num} anchors are too many; the limit is {MAX_ANCHORS}")
        if (
            self.classes < 1
            or not self.anchor_ids
            or min(self.anchor_ids) < 0
            or max(self.anchor_ids) >= self.num_anchors
        ):
            raise ShapeError(
                f"mask={','.join(map(str, self.anchor_ids))} must name anchors between 0 and num - 1 = {self.num_anchors - 1}"
            )
        wanted = self.input_channels
        if wanted != C:
            raise ShapeError(
                f"{len(self.anchor_ids)} anchors and {self.classes} classes need {wanted} input channels, there are {C};"
                f" set filters={wanted} in the layer before it"
            )
        return inputs[0]
