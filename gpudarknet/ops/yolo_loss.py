"""The loss of [yolo] and [Gaussian_yolo] (forward_yolo_layer, forward_gaussian_yolo_layer).

These are Darknet's deltas, not exact gradients: they lack the derivative of the sigmoids, and later truths overwrite parts
of those of earlier ones. With `exact` the box deltas of IoU losses are gradients; those of objectness and classes always are
(of the cross entropy). Channels 0, stride, 2*stride, 3*stride of an anchor are its box, then come objectness and the classes.

A slot is one anchor of one cell of one image: an index into (N, A, H*W).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np

from ..array import Array, ArrayBackend, KernelBackend
from ..boxes import iou
from .base import op
from .box_loss import IOU_VARIANTS, box_delta, focal
from .losses import element_strides, finish, list_truths, memory_of, scaled
from .truths import Truths, best_ious, sum_of_squares, turns

CLASS_THRESH = 0.25  # a box without a class above it is background, whatever it overlaps
Reject = Callable[[np.ndarray, int], None]


@dataclass(frozen=True, eq=False)
class AnchorLoss:
    """The settings of the loss of an anchor head; fields without a comment are keys of the section.

    anchors (count, 2): width and height, relative to the network input. anchor_ids (A,): those of this head; places (count,):
    the first index of an anchor in it, or -1. class_map (number of classes in truths,), class_weights (classes,).
    """

    anchors: np.ndarray
    anchor_ids: np.ndarray
    places: np.ndarray
    class_map: np.ndarray
    class_weights: np.ndarray
    weighted: bool  # counters_per_class is given
    exact: bool  # box deltas of IoU losses are gradients
    max: int
    scale_x_y: float
    objectness_smooth: int
    iou_loss: str
    iou_thresh_kind: str
    iou_thresh: float
    ignore_thresh: float
    truth_thresh: float
    label_smooth_eps: float
    max_delta: float
    iou_normalizer: float
    obj_normalizer: float
    cls_normalizer: float
    delta_normalizer: float
    gaussian: bool = False
    new_coords: int = 0
    focal_loss: int = 0
    boxes_cost_iou: bool = False  # the cost has the mean IoU loss of the assigned boxes instead of their squared deltas
    corner: float = 0.0  # the offset from the predicted point to the box center, as a fraction of the box's size
    uc_normalizer: float = 1.0

    def numbers(self) -> list[float]:
        """Return the fields that are numbers, in the order of `Settings` in yolo_loss.cu; of an IoU variant its index."""
        values = [getattr(self, f.name) for f in fields(self) if not isinstance(getattr(self, f.name), np.ndarray)]
        return [list(IOU_VARIANTS).index(v) if isinstance(v, str) else float(v) for v in values]

    @property
    def box_channels(self) -> int:
        """The number of channels of an anchor before the classes."""
        return 9 if self.gaussian else 5

    @property
    def stride(self) -> int:
        """The number of channels from one coordinate to the next: Gaussian boxes have an uncertainty after each."""
        return 2 if self.gaussian else 1


@dataclass
class Targets:
    """Truths that act on slots: slot and truth t (K,), the goal of objectness and its gain (K,).

    assigned: by `assign`, else by `background`. boxed: the truth also attracts the box.
    """

    slot: np.ndarray
    t: np.ndarray
    goal: np.ndarray
    gain: np.ndarray
    assigned: bool
    boxed: bool = True


@op(sums=(0,))
def anchor_loss(
    be: ArrayBackend, y: Array, truth: Array, scale: Array, s: AnchorLoss, reject: Reject | None
) -> tuple[Array, Array]:
    """Compute the loss of an activated map y (N, A*E, H, W) for truth (N, max*6); the cost is the sum of squared deltas.

    reject(delta, E) may zero deltas in place, in CPU memory, before the cost is computed.
    """
    return scaled(*Evaluation(y, truth, s).run(reject), scale)


@anchor_loss.kernel
def anchor_loss_cuda(
    be: KernelBackend, y: Array, truth: Array, scale: Array, s: AnchorLoss, reject: Reject | None
) -> tuple[Array, Array]:
    N, C, H, W = y.shape
    A = len(s.anchor_ids)
    E, slots = C // A, N * A * H * W
    anchors, anchor_ids, places, class_map, class_weights, settings = on_device(be, be.current_device(), s)
    boxes, classes, counts, rows = list_truths(be, truth, class_map, s.max)
    memory = memory_of(y)
    delta, losses = be.zeros(memory.shape), be.empty((N, 2))
    maps = memory, delta, anchors, anchor_ids, settings, A, E, W, H, *element_strides(y)
    truths = boxes, classes, counts, class_weights, rows
    be.launch("yolo_loss.background", slots, *maps, *truths, slots)
    be.launch("yolo_loss.assign", 32 * N, *maps, *truths, places, losses, len(s.anchors), block=32)
    if s.iou_thresh < 1 or s.gaussian:
        be.launch("yolo_loss.average", slots, *maps, slots)
    if reject is not None and not s.gaussian:
        host = be.to_numpy(delta).copy()
        reject(host, E)
        delta = be.asarray(host)
    normalizer = s.delta_normalizer
    if s.boxes_cost_iou:
        return finish(be, y, delta, scale, normalizer=normalizer, per_anchor=E, first=s.box_channels - 1,
                      gain=s.obj_normalizer, losses=losses, mean_gain=s.iou_normalizer)  # fmt: skip
    return finish(be, y, delta, scale, normalizer=normalizer)


@lru_cache(maxsize=64)
def on_device(be: KernelBackend, device: int | None, s: AnchorLoss) -> list[Array]:
    """Return anchors, anchor_ids, places, class_map, class_weights and the numbers of settings on a device."""
    indices = (be.asarray(a, np.int32) for a in (s.anchor_ids, s.places, s.class_map))
    return [be.asarray(s.anchors), *indices, be.asarray(s.class_weights), be.asarray(s.numbers(), np.float32)]


class Evaluation:
    """One evaluation of the loss: v and delta (N, A, E, H*W) are views of the output and its deltas."""

    def __init__(self, y: np.ndarray, truth: np.ndarray, s: AnchorLoss):
        N, C, self.H, self.W = y.shape
        self.s, self.result, self.shape = s, np.zeros_like(y), (N, len(s.anchor_ids), self.H * self.W)
        whole = N, self.shape[1], C // self.shape[1], self.shape[2]
        self.v, self.delta = y.reshape(whole), self.result.reshape(whole)
        self.truths = Truths.of(truth, s.max, s.class_map)
        self.objectness = 4 * s.stride  # its channel
        self.grid = np.array([self.W, self.H], np.float32)
        self.boxes = self.predicted_boxes()

    def predicted_boxes(self) -> np.ndarray:
        """Return the predicted boxes (4, N, A, H*W), relative to the network input."""
        s, P = self.s, self.shape[2]
        raw = self.v[:, :, : self.objectness : s.stride].transpose(2, 0, 1, 3)
        boxes = np.empty(raw.shape, np.float32)
        for c, cells in enumerate((np.arange(P) % self.W, np.arange(P) // self.W)):
            size = 4 * raw[c + 2] ** 2 if s.new_coords else np.exp(raw[c + 2])
            np.multiply(size, s.anchors[s.anchor_ids, c][:, None], out=boxes[c + 2])
            boxes[c] = (raw[c] + cells.astype(np.float32)) / self.grid[c]
            if s.corner:
                boxes[c] += s.corner * boxes[c + 2]
        return boxes

    def run(self, reject: Reject | None) -> tuple[float, np.ndarray]:
        """Return (cost, delta (N, A*E, H, W))."""
        s = self.s
        targets = [*self.background(), self.assign()]
        n, a, p = at = np.unravel_index(np.unique(np.concatenate([t.slot for t in targets])), self.shape)
        rows = Rows(self, *at)
        losses = rows.train(targets)
        self.delta[n, a, :, p] = rows.delta
        if reject is not None and not s.gaussian:
            reject(self.delta, self.delta.shape[2])
        cost = sum_of_squares(self.delta[:, :, self.objectness])
        rows_delta = self.delta[n, a, :, p]  # elsewhere, boxes and classes have no deltas
        cost += sum_of_squares(rows_delta[:, s.box_channels :])
        if s.boxes_cost_iou:
            cost = s.obj_normalizer * cost + (s.iou_normalizer * float(losses.mean()) if losses.size else 0.0)
        else:
            cost += sum_of_squares(rows_delta[:, : self.objectness])
        if s.delta_normalizer != 1:
            self.result *= np.float32(s.delta_normalizer)
        return cost, self.result

    def background(self) -> Iterator[Targets]:
        """Push objectness towards 0, except where the predicted box already matches a truth. Yield what matches otherwise do."""
        s, v = self.s, self.v[:, :, self.objectness]
        weight = np.float32(s.obj_normalizer)
        delta = weight * (0 - v)
        self.delta[:, :, self.objectness] = delta
        if not len(self.truths.n):
            return
        best = best_ious(self.boxes.reshape(4, self.shape[0], -1), self.truths).reshape(self.shape)
        n, a, p = at = np.nonzero(best > s.ignore_thresh)
        probable = (self.v[n, a, s.box_channels :, p] > CLASS_THRESH).any(axis=1)
        n, a, p = at = tuple(index[probable] for index in at)
        if not s.objectness_smooth:
            self.delta[n, a, self.objectness, p] = 0
        elif not s.gaussian:
            self.delta[n, a, self.objectness, p] = np.maximum(delta[at], weight * (best[at] - v[at]))
        else:
            yield self.best_truths(at, best[at] ** 2, boxed=False)
        at = np.nonzero(best > s.truth_thresh)
        if len(at[0]):
            yield self.best_truths(at, best[at] ** 2 if s.objectness_smooth else np.ones_like(best[at]), boxed=True)

    def best_truths(self, at: tuple[np.ndarray, ...], goal: np.ndarray, boxed: bool) -> Targets:
        """Return the targets that pair slots with the truths of their image that they overlap most."""
        best = self.truths.best(at[0], self.boxes[:, at[0], at[1], at[2]].T)
        gain = np.full(len(goal), self.s.obj_normalizer, np.float32)
        return Targets(np.ravel_multi_index(at, self.shape), best, goal, gain, False, boxed)

    def assign(self) -> Targets:
        """Assign each truth to its best anchor and, with iou_thresh, to similar anchors, in its center's cell."""
        s, truths = self.s, self.truths
        shapes = np.zeros((len(s.anchors), 4), np.float32)
        shapes[:, 2:] = s.anchors
        centered = truths.box[:, None] * np.array([0, 0, 1, 1], np.float32)  # (T, 1, 4): all truths against all anchors
        overlap = iou(shapes, centered)
        chosen = np.zeros(overlap.shape, bool)
        if s.iou_thresh < 1:
            similarity = overlap if s.iou_thresh_kind == "iou" else IOU_VARIANTS[s.iou_thresh_kind](shapes, centered)
            chosen = similarity > s.iou_thresh
        chosen[np.arange(len(chosen)), overlap.argmax(axis=1)] = True
        t, anchor = np.nonzero(chosen & (s.places >= 0))
        point = truths.box[:, :2] - s.corner * truths.box[:, 2:]
        i, j = truths.cells(point, self.W, self.H)
        slot = np.ravel_multi_index((truths.n[t], s.places[anchor], (j * self.W + i)[t]), self.shape)
        gain = s.class_weights[truths.k[t]] * np.float32(s.obj_normalizer)
        return Targets(slot, t, np.ones(len(t), np.float32), gain, True)


class Rows:
    """The slots on which truths act: output v, deltas (R, E) and predicted boxes (R, 4), which it copies.

    n, a, p: their images, anchors and cells, sorted.
    """

    def __init__(self, loss: Evaluation, n: np.ndarray, a: np.ndarray, p: np.ndarray):
        self.loss, self.s, self.n, self.a, self.p = loss, loss.s, n, a, p
        self.v, self.delta = loss.v[n, a, :, p], loss.delta[n, a, :, p]
        self.boxes = loss.boxes[:, n, a, p].T
        self.slot = np.ravel_multi_index((n, a, p), loss.shape)

    def train(self, targets: list[Targets]) -> np.ndarray:
        """Set the deltas for all targets; return 1 - IoU (or GIoU) of the assigned boxes."""
        s, o, truths = self.s, self.loss.objectness, self.loss.truths
        losses = np.zeros(0, np.float32)
        for group in targets:
            row = np.searchsorted(self.slot, group.slot)
            boxes = self.box_deltas(row, group.t) if group.boxed else []
            for turn in turns(row):
                r, t = row[turn], group.t[turn]
                k = truths.k[t]
                weight = s.class_weights[k]
                goal, delta = group.goal[turn], self.delta[r, o]
                keep = (delta != 0) if group.assigned and s.objectness_smooth and not s.gaussian else False
                self.delta[r, o] = np.where(keep, delta, group.gain[turn] * (goal - self.v[r, o]))
                self.classify(r, k, weight)
                if group.boxed and not group.assigned and s.objectness_smooth:
                    c = s.box_channels + k
                    self.delta[r, c] = weight * (goal - self.v[r, c])
                for channels, values in boxes:
                    self.delta[r, channels] += values[turn]
            if group.assigned:
                variant = IOU_VARIANTS["giou" if s.iou_loss == "giou" else "iou"]
                losses = 1 - variant(self.boxes[row], truths.box[group.t])
        if s.iou_thresh < 1 or s.gaussian:  # a slot with several classes has one box: average its deltas
            positive = (self.delta[:, s.box_channels :] > 0).sum(axis=1, keepdims=True)
            if not s.gaussian:
                positive *= self.delta[:, o : o + 1] != 0
            self.delta[:, :o] /= np.maximum(positive, 1)
        return losses

    def classify(self, r: np.ndarray, k: np.ndarray, weight: np.ndarray) -> None:
        """Set the class deltas of different rows r. If another truth has set a row's, only set that of the further class."""
        s, each = self.s, np.arange(len(r))
        out, old = self.v[r, s.box_channels :], self.delta[r, s.box_channels :]
        high, low = 1 - s.label_smooth_eps + 0.5 * s.label_smooth_eps, 0.5 * s.label_smooth_eps
        delta = np.full_like(out, 0 if s.focal_loss else low)
        delta[each, k] = 1 if s.focal_loss else high
        delta -= out
        if s.focal_loss:
            delta *= focal(out[each, k])[:, None]
        elif s.weighted:
            delta[each, k] *= weight * np.float32(s.cls_normalizer)
        set_before = old[each, 0 if s.gaussian else k] != 0
        old[each, k] = (high - out[each, k]) * (weight if s.weighted else 1)
        self.delta[r, s.box_channels :] = np.where(set_before[:, None], old, delta)

    def box_deltas(self, r: np.ndarray, t: np.ndarray) -> list[tuple[slice, np.ndarray]]:
        """Return the deltas (K, 4) of the boxes of rows r towards truths t, by their channels."""
        s, truth, iou_loss = self.s, self.loss.truths.box[t], self.s.iou_loss != "mse"
        coordinates, uncertainties = (slice(first, self.loss.objectness, s.stride) for first in (0, 1))
        out, deltas = self.v[r, coordinates], []
        with np.errstate(all="ignore"):  # `clip` replaces values that are not finite by 0, as Darknet does
            if not iou_loss or s.gaussian:
                error, scale = self.errors(r, truth, out), (2 - truth[:, 2] * truth[:, 3])[:, None]
                delta = scale * error
            if s.gaussian:
                delta, sigma_delta = gaussian_delta(error, self.v[r, uncertainties], scale)
                deltas.append((uncertainties, self.clip(sigma_delta * s.uc_normalizer)))
            if iou_loss:
                delta = self.iou_deltas(truth, self.boxes[r], out)
        gain = s.class_weights[self.loss.truths.k[t]] * np.float32(s.iou_normalizer)
        delta = delta * gain[:, None]
        return [*deltas, (coordinates, self.clip(delta) if iou_loss or s.gaussian else delta)]

    def errors(self, r: np.ndarray, truth: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Return what the outputs (K, 4) of rows r lack to predict truths (K, 4)."""
        s, loss = self.s, self.loss
        point, relative = truth[:, :2] - s.corner * truth[:, 2:], truth[:, 2:] / s.anchors[s.anchor_ids[self.a[r]]]
        goal = np.empty_like(out)
        goal[:, 0] = point[:, 0] * loss.grid[0] - self.p[r] % loss.W
        goal[:, 1] = point[:, 1] * loss.grid[1] - self.p[r] // loss.W
        goal[:, 2:] = np.sqrt(relative / 4) if s.new_coords else np.log(relative)
        return goal - out

    def iou_deltas(self, truth: np.ndarray, pred: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Return the deltas (K, 4) of an IoU loss, for boxes pred (K, 4) and the outputs (K, 4) that predict them."""
        s, nonempty = self.s, pred.copy()
        nonempty[:, 2:][nonempty[:, 2:] == 0] = 1
        delta = box_delta(nonempty, truth, s.iou_loss, s.exact)
        if s.exact:
            return self.to_raw(delta, out, pred)
        # Darknet's rule for corners; in the derivative, the size would get a part of the point's
        delta[:, :2] -= s.corner * delta[:, 2:]
        delta[:, 2:] *= 1 if s.new_coords else np.exp(out[:, 2:])
        return delta

    def to_raw(self, delta: np.ndarray, out: np.ndarray, pred: np.ndarray) -> np.ndarray:
        """Convert a gradient (K, 4) for boxes to one for the layer's input; out (K, 4) is its output there."""
        s, scale = self.s, np.float32(self.s.scale_x_y)
        position = (out[:, :2] + 0.5 * (scale - 1)) / scale
        slope = np.ones_like(position) if s.new_coords else position * (1 - position)
        size = delta[:, 2:] + s.corner * delta[:, :2]
        size *= 2 * pred[:, 2:] / out[:, 2:] if s.new_coords else pred[:, 2:]
        return np.concatenate([delta[:, :2] * scale * slope / self.loss.grid, size], axis=1)

    def clip(self, delta: np.ndarray) -> np.ndarray:
        """Clip deltas to +-max_delta; those that are not finite become 0."""
        return np.clip(np.where(np.isfinite(delta), delta, 0), -self.s.max_delta, self.s.max_delta)


def gaussian_delta(error: np.ndarray, sigma: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the deltas (K, 4) of the means and of the uncertainties, for errors and uncertainties (K, 4)."""
    z, softened = error / sigma, sigma + 0.3
    density = np.exp(-z * z / 2) / (np.sqrt(2 * np.pi) * softened)
    factor = 0.5 * scale * density / (density + 1e-9)
    return factor * z / sigma, factor * (z * z / sigma - 1 / softened)
