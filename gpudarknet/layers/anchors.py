"""Anchors, and the base class of detection heads that have them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np

from ..array import Array, ArrayBackend
from ..ops.yolo_loss import AnchorLoss, anchor_loss
from .base import DetectionHead, LossContext, Shape, ShapeError
from .class_tree import ClassMap
from .limits import BELOW_ONE, NOT_NEGATIVE, POSITIVE, Diagnostic, Limit, between

ANCHOR_COUNT = between(1, 1 << 16)  # the upper limit is for hostile cfgs


def anchor_array(values: Sequence[float] | None, count: int) -> np.ndarray:
    """Return `count` anchors (count, 2) as widths and heights; 0.5 if the cfg has none."""
    flat = np.full(2 * count, 0.5, np.float32)
    listed = np.array(values or (), np.float32)[: flat.size]
    flat[: listed.size] = listed
    return flat.reshape(-1, 2)


def anchor_diagnostics(values: Sequence[float] | None, needed: int, used: int) -> Iterator[Diagnostic]:
    """Yield diagnostics of the list `anchors` of a head that predicts the first `needed` of them and compares with `used`."""
    if values is None:
        return
    message = f"anchors has {len(values)} values; {{}} anchors need {{}}, a width and a height for each"
    if len(values) < 2 * needed - 1:
        yield Diagnostic("anchors", message.format(needed, 2 * needed))
    for k, value in enumerate(values[: 2 * needed], 1):
        if not value > 0:
            yield Diagnostic("anchors", f"anchors: value {k} is {value:g} and must be above 0, a width or a height")
    if len(values) % 2:  # a published cfg lacks the last height
        yield Diagnostic("anchors", message.format(used, 2 * used), "training")
    elif len(values) < 2 * used:
        yield Diagnostic("anchors", f"{message.format(used, 2 * used)}; as in Darknet the others are 0.5", "warning")


def map_diagnostics(classes: ClassMap | None, count: int) -> Iterator[Diagnostic]:
    """Yield a diagnostic if a class map names a class that a head of `count` classes does not have."""
    for k, index in enumerate(classes or (), 1):
        if not 0 <= index < count:
            yield Diagnostic(
                "map", f"map: its line {k} is class {index}, and must be between 0 and classes - 1 = {count - 1}"
            )
            return


@dataclass(frozen=True, kw_only=True)
class AnchorHead(DetectionHead):
    """The base of [yolo] and [Gaussian_yolo]. Anchors are in pixels of the network input; `mask` selects those of this head."""

    ignored = frozenset(
        "track_history_size sim_thresh dets_for_track dets_for_show track_ciou_norm embedding_layer".split()
    )
    fallback: ClassVar[dict[str, str]] = {"iou_loss": "iou", "iou_thresh_kind": "iou", "nms_kind": "default"}
    box_channels: ClassVar[int]  # channels per anchor, without the classes
    limits = ANCHOR_COUNT.of("num")
    training_limits: ClassVar[dict[str, Limit]] = {
        **NOT_NEGATIVE.of("iou_normalizer", "obj_normalizer", "cls_normalizer", "delta_normalizer"),
        **NOT_NEGATIVE.of("ignore_thresh", "truth_thresh", "random"),
        **BELOW_ONE.of("label_smooth_eps"),
        **POSITIVE.of("max_delta"),
    }

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
    counters_per_class: tuple[int, ...] | None = None
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

    @property
    def input_scale(self) -> float:
        return self.random

    def anchor_sizes(self) -> np.ndarray:
        """Return all anchors (count, 2) as widths and heights in pixels; 0.5 if the cfg has none."""
        return anchor_array(self.anchors, self.num_anchors)

    @property
    def input_channels(self) -> int:
        return len(self.anchor_ids) * (self.classes + self.box_channels)

    @property
    def section_settings(self) -> dict[str, Any]:
        """The settings of its loss that are keys of one section only."""
        raise NotImplementedError

    def loss(self, be: ArrayBackend, x: Array, y: Array, truth: Array, ctx: LossContext) -> tuple[Array, Array]:
        """truth (N, boxes*6): rows x, y, w, h, class, track, relative to the image; the first row with x = 0 ends the list."""
        settings = loss_settings(self, ctx.width, ctx.height, ctx.exact)
        return anchor_loss(be, y, truth, ctx.loss_scale(be), settings, ctx.reject)

    def diagnostics(self) -> Iterator[Diagnostic]:
        yield from super().diagnostics()
        mask = ",".join(map(str, self.anchor_ids))
        if min(self.anchor_ids) < 0 or max(self.anchor_ids) >= self.num_anchors:
            yield Diagnostic("mask", f"mask={mask} must name anchors between 0 and num - 1 = {self.num_anchors - 1}")
        if len(set(self.anchor_ids)) < len(self.anchor_ids):
            yield Diagnostic("mask", f"mask={mask} repeats an anchor; only its first place is trained", "warning")
        yield from anchor_diagnostics(self.anchors, max(self.anchor_ids) + 1, self.num)
        counters = self.counters_per_class
        if counters is not None and len(counters) != self.classes:
            yield Diagnostic(
                "counters_per_class",
                f"counters_per_class has {len(counters)} values, classes={self.classes}; it needs one per class",
            )
        if min(counters or (0,)) < 0:
            yield Diagnostic(
                "counters_per_class", f"counters_per_class: {min(counters or ())} is not a number of objects"
            )
        yield from map_diagnostics(self.map, self.classes)

    def shape(self, *inputs: Shape) -> Shape:
        C, H, W = inputs[0]
        wanted = self.input_channels
        if wanted != C:
            raise ShapeError(
                f"{len(self.anchor_ids)} anchors and {self.classes} classes need {wanted} input channels, there are {C};"
                f" set filters={wanted} in the layer before it"
            )
        return inputs[0]


@lru_cache(maxsize=64)
def loss_settings(head: AnchorHead, width: int, height: int, exact: bool) -> AnchorLoss:
    """Return what `anchor_loss` needs to know of a head in a network whose input has this size in pixels."""
    ids, weights = head.anchor_ids, np.ones(head.classes, np.float32)
    if head.counters_per_class:
        counters = np.maximum(head.counters_per_class, 1)  # a class without objects counts as one with one
        weights = np.minimum(counters.max() / counters, head.max_delta).astype(np.float32)
    named = {f.name for f in fields(AnchorLoss)} & {f.name for f in fields(AnchorHead)} - {"anchors"}
    return AnchorLoss(
        anchors=head.anchor_sizes() / np.array([width, height], np.float32),
        anchor_ids=np.array(ids),
        places=np.array([ids.index(k) if k in ids else -1 for k in range(head.num_anchors)]),
        class_map=np.arange(head.classes) if head.map is None else np.array(head.map),
        class_weights=weights,
        weighted=bool(head.counters_per_class),
        exact=exact,
        **{name: getattr(head, name) for name in named},
        **head.section_settings,
    )
