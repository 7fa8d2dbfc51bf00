"""The loss of [region] (forward_region_layer in src/region_layer.c)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np

from ..array import Array, ArrayBackend, KernelBackend
from ..boxes import iou
from .base import op
from .box_loss import focal
from .losses import BLOCK, finish, list_truths, memory_of, scaled
from .truths import Truths, best_ious, sum_of_squares, turns

CLASS_ONLY = 100000  # a truth whose x and y exceed this has a class but no box


@dataclass(frozen=True)
class ClassTree:
    """A tree of classes, for each (classes,): its parent or -1, and the range [first, last) of its group of siblings."""

    parent: np.ndarray
    first: np.ndarray
    last: np.ndarray


@dataclass(frozen=True, eq=False)
class RegionLoss:
    """The settings of the loss of a [region] head: keys of the section.

    anchors (A, 2) in cells. class_map (number of classes in truths,): the class of each.
    """

    anchors: np.ndarray
    class_map: np.ndarray
    tree: ClassTree | None
    max: int
    coords: int
    bias_match: int
    rescore: int
    thresh: float
    classfix: int
    focal_loss: int
    coord_scale: float
    object_scale: float
    noobject_scale: float
    class_scale: float

    def numbers(self) -> list[float]:
        """Return the fields that are numbers, in the order of `Settings` in region_loss.cu."""
        values = [getattr(self, f.name) for f in fields(self)]
        return [float(v) for v in values if isinstance(v, (int, float))]


@op(sums=(0,))
def region_loss(
    be: ArrayBackend, y: Array, truth: Array, scale: Array, s: RegionLoss, prior: bool
) -> tuple[Array, Array]:
    """Compute the loss of an activated map y (N, C, H, W) for truth (N, max*6); the cost is the sum of squared deltas.

    The memory of y is in the order (N, H, W, A, coords + 1 + classes). prior: also pull all boxes towards their anchors.
    """
    N, _, H, W = y.shape
    A, o = len(s.anchors), s.coords
    delta = np.zeros_like(y)
    v, d = (memory_of(a).reshape(N, H * W, A, -1) for a in (y, delta))
    anchors = s.anchors / np.array([W, H], np.float32)
    position, boxes = predicted_boxes(v, anchors, W, H)
    truth = truth[:, : s.max * 6]
    unboxed = class_only(truth, v, d, s)  # images
    truths = Truths.of(np.where(unboxed[:, None], 0, truth), s.max, s.class_map)

    # objectness towards 0, except where the predicted box already matches a truth
    out = v[..., o]
    best = best_ious(boxes.reshape(4, N, -1), truths).reshape(out.shape)
    goal = best if s.classfix == -1 else 0
    d[..., o] = np.where(unboxed[:, None, None], 0, s.noobject_scale * (goal - out) * slope(out))
    if s.classfix != -1:
        n, p, a = at = np.nonzero(best > s.thresh)
        d[n, p, a, o] = 0
        if s.classfix > 0:
            gain = s.class_scale * (out[at] if s.classfix == 2 else np.ones(len(n), np.float32))
            k = truths.k[truths.best(n, boxes[:, n, p, a].T)]
            d[n, p, a, o + 1 :] = class_deltas(v[n, p, a, o + 1 :], d[n, p, a, o + 1 :], k, gain, s)
    if prior:
        boxed = ~unboxed
        d[boxed, ..., :2] = 0.01 * (0.5 - position[boxed]) * slope(position[boxed])
        d[boxed, ..., 2:4] = 0.01 * (0 - v[boxed, ..., 2:4])

    # each truth: the anchor that fits best, in its center's cell
    i, j = truths.cells(truths.box[:, :2], W, H)
    n, p, k = truths.n, j * W + i, truths.k
    shapes = np.zeros((len(n), A, 4), np.float32)
    shapes[..., 2:] = anchors if s.bias_match else boxes[2:, n, p].transpose(1, 2, 0)
    a = iou(shapes, truths.box[:, None] * np.array([0, 0, 1, 1], np.float32)).argmax(axis=1)
    at = n, p, a
    center, e = position[at], v[at]
    xy = s.coord_scale * (truths.box[:, :2] * (W, H) - np.stack([i, j], axis=1) - center) * slope(center)
    wh = s.coord_scale * (np.log(truths.box[:, 2:] / anchors[a]) - e[:, 2:4])
    aim = iou(boxes[:, n, p, a].T, truths.box) if s.rescore else 1
    objectness = s.object_scale * (aim - e[:, o]) * slope(e[:, o])
    gain = np.full(len(n), s.class_scale, np.float32)
    for turn in turns(np.ravel_multi_index(at, out.shape)):
        at = n[turn], p[turn], a[turn]
        d[(*at, slice(0, 2))], d[(*at, slice(2, 4))], d[(*at, o)] = xy[turn], wh[turn], objectness[turn]
        classes = (*at, slice(o + 1, None))
        d[classes] = class_deltas(v[classes], d[classes], k[turn], gain[turn], s)
    return scaled(sum_of_squares(d), delta, scale)


@region_loss.kernel
def region_loss_cuda(
    be: KernelBackend, y: Array, truth: Array, scale: Array, s: RegionLoss, prior: bool
) -> tuple[Array, Array]:
    N, C, H, W = y.shape
    A, memory = len(s.anchors), memory_of(y)
    anchors, class_map, settings, tree = on_device(be, be.current_device(), s)
    boxes, classes, counts, rows = list_truths(be, truth, class_map, s.max)
    delta, count, unboxed = be.zeros(memory.shape), N * A * H * W, None
    if tree is not None:
        unboxed, limit = be.empty((N,), np.int32), min(rows, s.max)
        sizes = rows, limit, A, C // A, W, H
        be.launch(
            "region_loss.class_only", N * BLOCK, truth, memory, delta, tree, settings, unboxed, *sizes, block=BLOCK
        )
    arguments = memory, delta, anchors, tree, settings, boxes, classes, counts, rows, A, C // A, W, H
    be.launch("region_loss.background", count, *arguments, unboxed, count, int(prior))
    be.launch("region_loss.assign", 32 * N, *arguments, unboxed, block=32)
    return finish(be, y, delta, scale)


@lru_cache(maxsize=64)
def on_device(be: KernelBackend, device: int | None, s: RegionLoss) -> tuple[Array, Array, Array, Array | None]:
    """Return anchors, class_map, the numbers of settings and the tree (3, classes) on a device."""
    tree = None if s.tree is None else np.stack([s.tree.parent, s.tree.first, s.tree.last])
    return (be.asarray(s.anchors, np.float32), be.asarray(s.class_map, np.int32), be.asarray(s.numbers(), np.float32),
            None if tree is None else be.asarray(tree, np.int32))  # fmt: skip


def predicted_boxes(v: np.ndarray, anchors: np.ndarray, W: int, H: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for v (N, H*W, A, E) the positions in their cells (N, H*W, A, 2) and the boxes (4, N, H*W, A)."""
    cells = np.arange(H * W)[:, None]
    position = 1 / (1 + np.exp(-v[..., :2]))
    boxes = np.empty((4, *v.shape[:3]), np.float32)
    for c, (offset, size) in enumerate(((cells % W, W), (cells // W, H))):
        boxes[c] = (position[..., c] + offset.astype(np.float32)) / np.float32(size)
        boxes[c + 2] = np.exp(v[..., c + 2]) * anchors[:, c]
    return position, boxes


def slope(y: np.ndarray) -> np.ndarray:
    """Return the derivative of the sigmoid whose value is y."""
    return (1 - y) * y


def class_deltas(out: np.ndarray, delta: np.ndarray, k: np.ndarray, scale: np.ndarray, s: RegionLoss) -> np.ndarray:
    """Return the class deltas (K, classes) of boxes with outputs `out` and truths k (K,), times scale (K,).

    In a tree they replace those in `delta` at every level from k up to the root.
    """
    each = np.arange(len(k))
    if s.tree is None:
        new = np.zeros_like(out)
        new[each, k] = 1
        new = scale[:, None] * (new - out)
        return new * focal(out[each, k])[:, None] if s.focal_loss else new
    new, column = delta.copy(), np.arange(out.shape[1])
    while len(each):
        siblings = (s.tree.first[k][:, None] <= column) & (column < s.tree.last[k][:, None])
        goal = (column == k[:, None]).astype(np.float32)
        new[each] = np.where(siblings, scale[each, None] * (goal - out[each]), new[each])
        k = s.tree.parent[k]
        each, k = each[k >= 0], k[k >= 0]
    return new


def class_only(truth: np.ndarray, v: np.ndarray, d: np.ndarray, s: RegionLoss) -> np.ndarray:
    """Return which images (N,) have a truth without a box, and train the box with the highest probability of its class."""
    unboxed, o = np.zeros(len(truth), bool), s.coords
    if s.tree is None:
        return unboxed
    rows = truth.reshape(len(truth), -1, 6)
    listed = np.logical_and.accumulate(rows[:, :, 0] != 0, axis=1)
    known = (rows[:, :, 4] >= 0) & (rows[:, :, 4] < len(s.tree.parent))
    found = listed & (rows[:, :, 0] > CLASS_ONLY) & (rows[:, :, 1] > CLASS_ONLY) & known
    scale = np.full(1, s.class_scale, np.float32)
    for n in np.flatnonzero(found.any(axis=1)):
        unboxed[n] = True
        path = [int(rows[n, found[n].argmax(), 4])]
        while (parent := int(s.tree.parent[path[-1]])) >= 0:
            path.append(parent)
        probability = v[n, ..., o + 1 + path[-1]]
        for k in path[-2::-1]:
            probability = probability * v[n, ..., o + 1 + k]
        p, a = np.unravel_index((v[n, ..., o] * probability).argmax(), probability.shape)
        classes = n, [p], [a], slice(o + 1, None)
        d[classes] = class_deltas(v[classes], d[classes], np.array(path[:1]), scale, s)
    return unboxed
