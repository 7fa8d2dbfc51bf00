"""The loss of [yolo] and [Gaussian_yolo] (forward_yolo_layer, forward_gaussian_yolo_layer).

These are Darknet's deltas, not exact gradients: they lack the derivative of the sigmoids, and later truths overwrite parts
of those of earlier ones. With LossContext.exact the box deltas of IoU losses are gradients; those of objectness
and classes always are (of the cross entropy). Channels 0, stride, 2*stride, 3*stride of an anchor are its box, then come
objectness and the classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..boxes import iou
from .anchors import AnchorHead
from .base import LossContext
from .box_loss import IOU_VARIANTS, box_delta, focal


@dataclass
class Target:
    """A cell's anchor (image n, anchor a, row j, column i) that is assigned a truth: box (4,), class k, its class weight."""

    n: int
    a: int
    j: int
    i: int
    box: np.ndarray
    k: int
    weight: float


@dataclass
class AnchorLoss:
    """One evaluation: v and delta (N, A, channels, H, W), the output and its deltas; boxes (N, A, H, W, 4), the predictions."""

    head: AnchorHead
    ctx: LossContext
    v: np.ndarray
    gaussian: bool = False
    targets: list[Target] = field(default_factory=list)
    assigned: list[int] = field(
        default_factory=list
    )  # indices of the targets that `assign` made, which the cost counts

    def __post_init__(self) -> None:
        head, (_, _, _, H, W) = self.head, self.v.shape
        self.stride = (head.box_channels - 1) // 4  # Gaussian boxes have an uncertainty after each coordinate
        self.net = np.array([self.ctx.width, self.ctx.height], np.float32)
        self.anchors = head.anchor_sizes() / self.net  # all anchors, relative to the network input
        self.delta = np.zeros_like(self.v)
        raw = self.v[:, :, 0 : 4 * self.stride : self.stride].transpose(0, 1, 3, 4, 2)
        cells = np.stack(np.meshgrid(np.arange(W), np.arange(H)), axis=-1).astype(np.float32)
        self.boxes = np.empty(raw.shape, np.float32)
        self.boxes[..., :2] = (raw[..., :2] + cells) / np.array([W, H], np.float32)
        size = 4 * raw[..., 2:] ** 2 if self.new_coords else np.exp(raw[..., 2:])
        self.boxes[..., 2:] = size * self.anchors[list(head.anchor_ids)][:, None, None]
        self.boxes[..., :2] += self.corner * self.boxes[..., 2:]
        self.class_weights = np.ones(head.classes)
        if head.counters_per_class:
            counters = np.maximum(head.counters_per_class, 1)  # a class without objects counts as one with one
            self.class_weights = np.minimum(counters.max() / counters, head.max_delta)

    @property
    def new_coords(self) -> bool:
        """Whether width and height are squares of the outputs, not exponentials."""
        return bool(getattr(self.head, "new_coords", 0))

    @property
    def corner(self) -> float:
        """The offset from the predicted point to the box center, as a fraction of the box's size."""
        return {"center": 0.0, "left_top": 0.5, "right_bottom": -0.5}[getattr(self.head, "yolo_point", "center")]

    def run(self, truth: np.ndarray) -> tuple[float, np.ndarray]:
        """truth (N, max, 6) -> (cost, delta (N, A, channels, H, W))."""
        head = self.head
        for n, rows in enumerate(truth):
            ends = np.flatnonzero(rows[:, 0] == 0)
            rows = rows[: ends[0] if ends.size else None][: head.max]
            rows = rows[(rows[:, 4] >= 0) & (rows[:, 4] < head.num_truth_classes)]
            classes = rows[:, 4].astype(int)
            if head.map is not None:
                classes = np.array(head.map, int)[classes]
            self.background(n, rows[:, :4], classes)
            self.assign(n, rows[:, :4], classes)
        iou_losses = self.regress_boxes()
        if head.iou_thresh < 1 or self.gaussian:  # an anchor with several classes has one box: average its deltas
            positive = (self.delta[:, :, head.box_channels :] > 0).sum(axis=2, keepdims=True)
            if not self.gaussian:
                positive *= self.delta[:, :, 4:5] != 0
            self.delta[:, :, : head.box_channels - 1] /= np.maximum(positive, 1)
        if self.ctx.reject is not None and not self.gaussian:
            self.ctx.reject(self.delta, self.delta.shape[2])
        return self.cost(iou_losses), self.delta

    def background(self, n: int, boxes: np.ndarray, classes: np.ndarray) -> None:
        """Push objectness in image n towards 0, except where the predicted box already matches a truth."""
        head, o = self.head, self.head.box_channels - 1
        v, delta = self.v[n], self.delta[n]
        weight = np.float32(head.obj_normalizer)
        delta[:, o] = weight * (0 - v[:, o])
        if not len(boxes):
            return
        ious = iou(self.boxes[n][..., None, :], boxes)  # (A, H, W, T)
        best = ious.max(axis=-1)
        match = np.where((v[:, head.box_channels :] > 0.25).any(axis=1), best, 0)
        ignored = match > head.ignore_thresh
        if not head.objectness_smooth:
            delta[:, o][ignored] = 0
        elif not self.gaussian:
            delta[:, o] = np.where(ignored, np.maximum(delta[:, o], weight * (match - v[:, o])), delta[:, o])
        else:
            for a, j, i in np.argwhere(ignored):
                t = ious[a, j, i].argmax()
                delta[a, o, j, i] = weight * (match[a, j, i] ** 2 - v[a, o, j, i])
                self.classify(Target(n, a, j, i, boxes[t], classes[t], self.class_weights[classes[t]]))
        for a, j, i in np.argwhere(best > head.truth_thresh):
            t = ious[a, j, i].argmax()
            k, goal = classes[t], best[a, j, i] ** 2 if head.objectness_smooth else 1
            delta[a, o, j, i] = weight * (goal - v[a, o, j, i])
            target = Target(n, a, j, i, boxes[t], k, self.class_weights[k])
            self.classify(target)
            if head.objectness_smooth:
                c = head.box_channels + k
                delta[a, c, j, i] = self.class_weights[k] * (goal - v[a, c, j, i])
            self.targets.append(target)

    def assign(self, n: int, boxes: np.ndarray, classes: np.ndarray) -> None:
        """Assign each truth of image n to its best anchor and, with iou_thresh, to similar anchors, in its center's cell."""
        head, o, (H, W) = self.head, self.head.box_channels - 1, self.v.shape[3:]
        shapes = np.zeros((len(self.anchors), 4), np.float32)
        shapes[:, 2:] = self.anchors
        centered = boxes[:, None] * np.array([0, 0, 1, 1], np.float32)  # (T, 1, 4): all truths against all anchors
        best_anchors = iou(shapes, centered).argmax(axis=1).tolist()
        similarity = IOU_VARIANTS[head.iou_thresh_kind](shapes, centered) if head.iou_thresh < 1 else None
        candidates = sorted(set(head.anchor_ids))
        for t, (box, k, best) in enumerate(zip(boxes, classes.tolist(), best_anchors, strict=True)):
            point = box[:2] - self.corner * box[2:]
            i, j = (min(max(int(p * size), 0), size - 1) for p, size in zip(point, (W, H), strict=True))
            anchors = [best] if best in head.anchor_ids else []
            if similarity is not None:
                anchors += [m for m in candidates if m != best and similarity[t, m] > head.iou_thresh]
            for anchor in anchors:
                target = Target(n, head.anchor_ids.index(anchor), j, i, box, int(k), float(self.class_weights[k]))
                at = n, target.a, o, j, i
                if self.gaussian or not head.objectness_smooth or self.delta[at] == 0:
                    self.delta[at] = target.weight * head.obj_normalizer * (1 - self.v[at])
                self.classify(target)
                self.targets.append(target)
                self.assigned.append(len(self.targets) - 1)

    def classify(self, target: Target) -> None:
        """Set the class deltas of a target. If another truth has set them, only set that of the further class."""
        head = self.head
        at = target.n, target.a, slice(head.box_channels, None), target.j, target.i
        out, delta, k = self.v[at], self.delta[at], target.k
        smooth = head.label_smooth_eps
        high, low = 1 - smooth + 0.5 * smooth, 0.5 * smooth
        weighted = bool(head.counters_per_class)
        if delta[0 if self.gaussian else k]:
            delta[k] = (high - out[k]) * (target.weight if weighted else 1)
            return
        goal = np.full(head.classes, low, np.float32)
        goal[k] = high
        if getattr(head, "focal_loss", 0):
            goal[:] = 0
            goal[k] = 1
            delta[:] = (goal - out) * focal(out[k])
            return
        delta[:] = goal - out
        if weighted:
            delta[k] *= target.weight * head.cls_normalizer

    def regress_boxes(self) -> np.ndarray:
        """Add the box deltas of all targets; return 1 - IoU (or GIoU) of the assigned ones."""
        if not self.targets:
            return np.zeros(0, np.float32)
        head, s, (H, W) = self.head, self.stride, self.v.shape[3:]
        n, a, j, i = (np.array([getattr(t, key) for t in self.targets]) for key in "naji")
        truth = np.stack([t.box for t in self.targets]).astype(np.float32)
        gain = np.array([t.weight for t in self.targets], np.float32) * np.float32(head.iou_normalizer)
        out = np.stack([self.v[n, a, c * s, j, i] for c in range(4)], axis=1)
        pred = self.boxes[n, a, j, i]
        anchor = self.anchors[np.array(head.anchor_ids)[a]]
        relative = truth[:, 2:] / anchor
        goal = np.empty_like(out)
        point = truth[:, :2] - self.corner * truth[:, 2:]
        goal[:, :2] = point * np.array([W, H], np.float32) - np.stack([i, j], axis=1)
        goal[:, 2:] = np.sqrt(relative / 4) if self.new_coords else np.log(relative)
        scale = (2 - truth[:, 2] * truth[:, 3])[:, None]
        with np.errstate(all="ignore"):  # `add` replaces values that are not finite by 0, as Darknet does
            if self.gaussian:
                sigma = np.stack([self.v[n, a, c * s + 1, j, i] for c in range(4)], axis=1)
                delta, sigma_delta = gaussian_delta(goal - out, sigma, scale)
            else:
                delta = scale * (goal - out)
            if head.iou_loss != "mse":
                nonempty = pred.copy()
                nonempty[:, 2:][nonempty[:, 2:] == 0] = 1
                delta = box_delta(nonempty, truth, head.iou_loss, self.ctx.exact)
                if self.ctx.exact:
                    delta = self.to_raw(delta, out, pred)
                else:
                    # Darknet's rule for corners; in the derivative, the size would get a part of the point's
                    delta[:, :2] -= self.corner * delta[:, 2:]
                    delta[:, 2:] *= 1 if self.new_coords else np.exp(out[:, 2:])
        delta = delta * gain[:, None]
        clipped = head.iou_loss != "mse" or self.gaussian
        self.add(n, a, 0, j, i, delta, clipped)
        if self.gaussian:
            self.add(n, a, 1, j, i, sigma_delta * getattr(head, "uc_normalizer", 1.0), True)
        assigned = np.array(self.assigned, int)
        return 1 - IOU_VARIANTS["giou" if head.iou_loss == "giou" else "iou"](pred[assigned], truth[assigned])

    def to_raw(self, delta: np.ndarray, out: np.ndarray, pred: np.ndarray) -> np.ndarray:
        """Convert a gradient (K, 4) for boxes to one for the layer's input; out (K, 4) is its output there."""
        (H, W), s = self.v.shape[3:], np.float32(self.head.scale_x_y)
        position = (out[:, :2] + 0.5 * (s - 1)) / s
        slope = np.ones_like(position) if self.new_coords else position * (1 - position)
        size = delta[:, 2:] + self.corner * delta[:, :2]
        size *= 2 * pred[:, 2:] / out[:, 2:] if self.new_coords else pred[:, 2:]
        return np.concatenate([delta[:, :2] * s * slope / np.array([W, H], np.float32), size], axis=1)

    def add(
        self, n: np.ndarray, a: np.ndarray, first: int, j: np.ndarray, i: np.ndarray, delta: np.ndarray, clipped: bool
    ) -> None:
        """Add delta (K, 4) to the box channels first, first + stride, ... of K targets."""
        if clipped:
            delta = np.where(np.isfinite(delta), delta, 0)
            delta = np.clip(delta, -self.head.max_delta, self.head.max_delta)
        for c in range(4):
            np.add.at(
                self.delta, (n, a, np.full_like(n, first + c * self.stride), j, i), delta[:, c].astype(np.float32)
            )

    def cost(self, iou_losses: np.ndarray) -> float:
        """Return Darknet's cost: the sum of squared deltas; with show_details, the IoU loss instead of the boxes' share."""
        head, delta = self.head, self.delta.astype(np.float64)
        if head.iou_loss == "mse" or not getattr(head, "show_details", 0):
            return float((delta * delta).sum())
        rest = delta[:, :, head.box_channels - 1 :]
        boxes = head.iou_normalizer * float(iou_losses.mean()) if iou_losses.size else 0.0
        return boxes + head.obj_normalizer * float((rest * rest).sum())


def gaussian_delta(error: np.ndarray, sigma: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the deltas (K, 4) of the means and of the uncertainties, for errors and uncertainties (K, 4)."""
    z, softened = error / sigma, sigma + 0.3
    density = np.exp(-z * z / 2) / (np.sqrt(2 * np.pi) * softened)
    factor = 0.5 * scale * density / (density + 1e-9)
    return factor * z / sigma, factor * (z * z / sigma - 1 / softened)


def anchor_loss(
    head: AnchorHead, y: np.ndarray, truth: np.ndarray, ctx: LossContext, gaussian: bool
) -> tuple[float, np.ndarray]:
    """y (N, A*channels, H, W), truth (N, max*6) -> (cost, delta of y's shape)."""
    N, C, H, W = y.shape
    A = len(head.anchor_ids)
    cost, delta = AnchorLoss(head, ctx, y.reshape(N, A, C // A, H, W), gaussian).run(truth.reshape(N, -1, 6))
    return cost, delta.reshape(y.shape) * np.float32(head.delta_normalizer)
