"""The loss of [yolo] and [Gaussian_yolo] (forward_yolo_layer, forward_gaussian_yolo_layer).

Darknet's deltas, not exact gradients: there is no derivative of the sigmoids, and later truths overwrite parts of what
earlier ones wrote. With Goal.exact the IoU losses' box deltas are gradients; those of objectness and classes are anyhow (of
the cross entropy). Entry 0, step, 2*step, 3*step of an anchor are its box, then objectness, then the classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..boxes import iou
from .anchors import AnchorHead
from .base import LossContext
from .box_loss import LIKENESS, box_delta, focal


@dataclass
class Target:
    """A slot (image n, anchor a, row j, column i) that shall hold a truth: box (4,), class k, multiplier of its class."""

    n: int
    a: int
    j: int
    i: int
    box: np.ndarray
    k: int
    multiplier: float


@dataclass
class AnchorLoss:
    """One evaluation: v and d (N, A, entries, H, W) are output and delta, boxes (N, A, H, W, 4) what is predicted."""

    head: AnchorHead
    ctx: LossContext
    v: np.ndarray
    gaussian: bool = False
    targets: list[Target] = field(default_factory=list)
    scored: list[int] = field(default_factory=list)  # the targets that the cost counts

    def __post_init__(self) -> None:
        head, (_, _, _, H, W) = self.head, self.v.shape
        self.step = (head.box_channels - 1) // 4  # Gaussian boxes have an uncertainty after each number
        self.net = np.array([self.ctx.width, self.ctx.height], np.float32)
        self.sizes = head.anchor_sizes() / self.net  # all anchors, relative to the network's input
        self.d = np.zeros_like(self.v)
        raw = self.v[:, :, 0 : 4 * self.step : self.step].transpose(0, 1, 3, 4, 2)
        cells = np.stack(np.meshgrid(np.arange(W), np.arange(H)), axis=-1).astype(np.float32)
        self.boxes = np.empty(raw.shape, np.float32)
        self.boxes[..., :2] = (raw[..., :2] + cells) / np.array([W, H], np.float32)
        size = 4 * raw[..., 2:] ** 2 if self.new_coords else np.exp(raw[..., 2:])
        self.boxes[..., 2:] = size * self.sizes[list(head.anchor_ids)][:, None, None]
        self.boxes[..., :2] += self.corner * self.boxes[..., 2:]
        self.multipliers = np.ones(head.classes)
        if head.counters_per_class:
            counters = np.array(head.counters_per_class)
            self.multipliers = np.minimum(counters.max() / np.maximum(counters, 1), head.max_delta)

    @property
    def new_coords(self) -> bool:
        """Whether width and height are squares, not exponentials."""
        return bool(getattr(self.head, "new_coords", 0))

    @property
    def corner(self) -> float:
        """Add this share of the size to the predicted point to get the centre."""
        return {"center": 0.0, "left_top": 0.5, "right_bottom": -0.5}[getattr(self.head, "yolo_point", "center")]

    def run(self, truth: np.ndarray) -> tuple[float, np.ndarray]:
        """truth (N, max, 6) -> (cost, delta (N, A, entries, H, W))."""
        head = self.head
        for n, rows in enumerate(truth):
            ends = np.flatnonzero(rows[:, 0] == 0)
            rows = rows[: ends[0] if ends.size else None][: head.max]
            rows = rows[(rows[:, 4] >= 0) & (rows[:, 4] < head.classes)]
            classes = rows[:, 4].astype(int)
            if head.map is not None:
                classes = np.array(head.map, int)[classes]
            self.background(n, rows[:, :4], classes)
            self.assign(n, rows[:, :4], classes)
        likenesses = self.move_boxes()
        if head.iou_thresh < 1 or self.gaussian:  # a slot of several classes has one box: its delta is their mean
            positive = (self.d[:, :, head.box_channels :] > 0).sum(axis=2, keepdims=True)
            if not self.gaussian:
                positive *= self.d[:, :, 4:5] != 0
            self.d[:, :, : head.box_channels - 1] /= np.maximum(positive, 1)
        if self.ctx.reject is not None and not self.gaussian:
            self.ctx.reject(self.d, self.d.shape[2])
        return self.cost(likenesses), self.d

    def background(self, n: int, boxes: np.ndarray, classes: np.ndarray) -> None:
        """Draw every objectness of image n to 0, but for slots whose box already resembles a truth's."""
        head, o = self.head, self.head.box_channels - 1
        v, d = self.v[n], self.d[n]
        normal = np.float32(head.obj_normalizer)
        d[:, o] = normal * (0 - v[:, o])
        if not len(boxes):
            return
        like = iou(self.boxes[n][..., None, :], boxes)  # (A, H, W, T)
        best = like.max(axis=-1)
        match = np.where((v[:, head.box_channels :] > 0.25).any(axis=1), best, 0)
        close = match > head.ignore_thresh
        if not head.objectness_smooth:
            d[:, o][close] = 0
        elif not self.gaussian:
            d[:, o] = np.where(close, np.maximum(d[:, o], normal * (match - v[:, o])), d[:, o])
        else:
            for a, j, i in np.argwhere(close):
                t = like[a, j, i].argmax()
                d[a, o, j, i] = normal * (match[a, j, i] ** 2 - v[a, o, j, i])
                self.classify(Target(n, a, j, i, boxes[t], classes[t], self.multipliers[classes[t]]))
        for a, j, i in np.argwhere(best > head.truth_thresh):
            t = like[a, j, i].argmax()
            k, aim = classes[t], best[a, j, i] ** 2 if head.objectness_smooth else 1
            d[a, o, j, i] = normal * (aim - v[a, o, j, i])
            target = Target(n, a, j, i, boxes[t], k, self.multipliers[k])
            self.classify(target)
            if head.objectness_smooth:
                d[a, head.box_channels + k, j, i] = self.multipliers[k] * (aim - v[a, head.box_channels + k, j, i])
            self.targets.append(target)

    def assign(self, n: int, boxes: np.ndarray, classes: np.ndarray) -> None:
        """Give each truth of image n the slots that shall hold it: the best anchor's, and with iou_thresh like ones'."""
        head, o, (H, W) = self.head, self.head.box_channels - 1, self.v.shape[3:]
        shape = np.zeros((len(self.sizes), 4), np.float32)
        shape[:, 2:] = self.sizes
        centred = boxes[:, None] * np.array([0, 0, 1, 1], np.float32)  # (T, 1, 4): all truths with all anchors
        bests = iou(shape, centred).argmax(axis=1).tolist()
        likes = LIKENESS[head.iou_thresh_kind](shape, centred) if head.iou_thresh < 1 else None
        used = sorted(set(head.anchor_ids))
        for t, (box, k, best) in enumerate(zip(boxes, classes.tolist(), bests, strict=True)):
            point = box[:2] - self.corner * box[2:]
            i, j = (min(max(int(p * size), 0), size - 1) for p, size in zip(point, (W, H), strict=True))
            anchors = [best] if best in head.anchor_ids else []
            if likes is not None:
                anchors += [m for m in used if m != best and likes[t, m] > head.iou_thresh]
            for anchor in anchors:
                target = Target(n, head.anchor_ids.index(anchor), j, i, box, int(k), float(self.multipliers[k]))
                at = n, target.a, o, j, i
                if self.gaussian or not head.objectness_smooth or self.d[at] == 0:
                    self.d[at] = target.multiplier * head.obj_normalizer * (1 - self.v[at])
                self.classify(target)
                self.targets.append(target)
                self.scored.append(len(self.targets) - 1)

    def classify(self, target: Target) -> None:
        """Write a slot's class deltas; a slot that another truth has classified only gets the further class."""
        head = self.head
        at = target.n, target.a, slice(head.box_channels, None), target.j, target.i
        out, d, k = self.v[at], self.d[at], target.k
        smooth = head.label_smooth_eps
        high, low = 1 - smooth + 0.5 * smooth, 0.5 * smooth
        given = bool(head.counters_per_class)
        if d[0 if self.gaussian else k]:
            d[k] = (high - out[k]) * (target.multiplier if given else 1)
            return
        wanted = np.full(head.classes, low, np.float32)
        wanted[k] = high
        if getattr(head, "focal_loss", 0):
            wanted[:] = 0
            wanted[k] = 1
            d[:] = (wanted - out) * focal(out[k])
            return
        d[:] = wanted - out
        if given:
            d[k] *= target.multiplier * head.cls_normalizer

    def move_boxes(self) -> np.ndarray:
        """Add the box deltas of all targets; return 1 - IoU (or GIoU) of those that `assign` made."""
        if not self.targets:
            return np.zeros(0, np.float32)
        head, s, (H, W) = self.head, self.step, self.v.shape[3:]
        n, a, j, i = (np.array([getattr(t, key) for t in self.targets]) for key in "naji")
        truth = np.stack([t.box for t in self.targets]).astype(np.float32)
        gain = np.array([t.multiplier for t in self.targets], np.float32) * np.float32(head.iou_normalizer)
        raw = np.stack([self.v[n, a, c * s, j, i] for c in range(4)], axis=1)
        pred = self.boxes[n, a, j, i]
        anchor = self.sizes[np.array(head.anchor_ids)[a]]
        relative = truth[:, 2:] / anchor
        wanted = np.empty_like(raw)
        point = truth[:, :2] - self.corner * truth[:, 2:]
        wanted[:, :2] = point * np.array([W, H], np.float32) - np.stack([i, j], axis=1)
        wanted[:, 2:] = np.sqrt(relative / 4) if self.new_coords else np.log(relative)
        scale = (2 - truth[:, 2] * truth[:, 3])[:, None]
        with np.errstate(all="ignore"):  # what is not finite becomes 0 below, as in Darknet
            if self.gaussian:
                sigma = np.stack([self.v[n, a, c * s + 1, j, i] for c in range(4)], axis=1)
                step, spread = gaussian_delta(wanted - raw, sigma, scale)
            else:
                step = scale * (wanted - raw)
            if head.iou_loss != "mse":
                solid = pred.copy()
                solid[:, 2:][solid[:, 2:] == 0] = 1
                step = box_delta(solid, truth, head.iou_loss, self.ctx.exact)
                if self.ctx.exact:
                    step = self.to_raw(step, raw, pred)
                else:
                    # Darknet's step for a corner; in the derivative it is the size that gets a part of the point
                    step[:, :2] -= self.corner * step[:, 2:]
                    step[:, 2:] *= 1 if self.new_coords else np.exp(raw[:, 2:])
        step = step * gain[:, None]
        bounded = head.iou_loss != "mse" or self.gaussian
        self.add(n, a, 0, j, i, step, bounded)
        if self.gaussian:
            self.add(n, a, 1, j, i, spread * getattr(head, "uc_normalizer", 1.0), True)
        scored = np.array(self.scored, int)
        return 1 - LIKENESS["giou" if head.iou_loss == "giou" else "iou"](pred[scored], truth[scored])

    def to_raw(self, step: np.ndarray, out: np.ndarray, pred: np.ndarray) -> np.ndarray:
        """Take a gradient (K, 4) with respect to boxes to the numbers before the layer; out (K, 4) is its output there."""
        (H, W), s = self.v.shape[3:], np.float32(self.head.scale_x_y)
        place = (out[:, :2] + 0.5 * (s - 1)) / s
        slope = np.ones_like(place) if self.new_coords else place * (1 - place)
        size = step[:, 2:] + self.corner * step[:, :2]
        size *= 2 * pred[:, 2:] / out[:, 2:] if self.new_coords else pred[:, 2:]
        return np.concatenate([step[:, :2] * s * slope / np.array([W, H], np.float32), size], axis=1)

    def add(self, n: Any, a: Any, first: int, j: Any, i: Any, step: np.ndarray, bounded: bool) -> None:
        """Add step (K, 4) to the box entries first, first + step, ... of K slots."""
        if bounded:
            step = np.where(np.isfinite(step), step, 0)
            step = np.clip(step, -self.head.max_delta, self.head.max_delta)
        for c in range(4):
            np.add.at(self.d, (n, a, np.full_like(n, first + c * self.step), j, i), step[:, c].astype(np.float32))

    def cost(self, losses: np.ndarray) -> float:
        """Return what Darknet shows: squared deltas; of [yolo] with show_details, an IoU loss in place of the box's."""
        head, d = self.head, self.d.astype(np.float64)
        if head.iou_loss == "mse" or not getattr(head, "show_details", 0):
            return float((d * d).sum())
        rest = d[:, :, head.box_channels - 1 :]
        boxes = head.iou_normalizer * float(losses.mean()) if losses.size else 0.0
        return boxes + head.obj_normalizer * float((rest * rest).sum())


def gaussian_delta(error: np.ndarray, sigma: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the deltas (K, 4) of the means and of the uncertainties, for errors and uncertainties (K, 4)."""
    z, wide = error / sigma, sigma + 0.3
    density = np.exp(-z * z / 2) / (np.sqrt(2 * np.pi) * wide)
    factor = 0.5 * scale * density / (density + 1e-9)
    return factor * z / sigma, factor * (z * z / sigma - 1 / wide)


def anchor_loss(
    head: AnchorHead, y: np.ndarray, truth: np.ndarray, ctx: LossContext, gaussian: bool
) -> tuple[float, np.ndarray]:
    """y (N, A*entries, H, W), truth (N, max*6) -> (cost, delta of y's shape)."""
    N, C, H, W = y.shape
    A = len(head.anchor_ids)
    cost, delta = AnchorLoss(head, ctx, y.reshape(N, A, C // A, H, W), gaussian).run(truth.reshape(N, -1, 6))
    return cost, delta.reshape(y.shape) * np.float32(head.delta_normalizer)
