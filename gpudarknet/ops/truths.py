"""Ground truths of a batch, as the losses of detection heads use them on NumPy.

Darknet walks the truths of an image one after the other, and later ones overwrite parts of what earlier ones did. Only truths
that act on one box depend on each other, so `turns` computes the first truths of all boxes together, then the second ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..boxes import iou


@dataclass
class Truths:
    """The truths of a batch that count, in order: image n (T,), box (T, 4) and class k (T,)."""

    n: np.ndarray
    box: np.ndarray
    k: np.ndarray

    @classmethod
    def of(cls, truth: np.ndarray, limit: int, class_map: np.ndarray) -> Truths:
        """Select from truth (N, max*6) the first `limit` of an image whose class is in the map; a row with x = 0 ends a list."""
        rows = truth.reshape(len(truth), -1, 6)[:, :limit]
        listed = np.logical_and.accumulate(rows[:, :, 0] != 0, axis=1)
        n, row = np.nonzero(listed & (rows[:, :, 4] >= 0) & (rows[:, :, 4] < len(class_map)))
        return cls(n, rows[n, row, :4], class_map[rows[n, row, 4].astype(int)])

    def cells(self, points: np.ndarray, W: int, H: int) -> tuple[np.ndarray, np.ndarray]:
        """Return column and row (T,) of the cells of a W x H grid that contain points (T, 2), relative to the image."""
        i, j = (points * np.array([W, H], np.float32)).astype(int).T
        return np.clip(i, 0, W - 1), np.clip(j, 0, H - 1)

    def best(self, n: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """Return the indices (K,) of the truths of images n (K,) that boxes (K, 4) overlap most."""
        best = np.zeros(len(n), int)
        for image in np.unique(n):
            rows, own = n == image, np.flatnonzero(self.n == image)
            best[rows] = own[iou(boxes[rows, None], self.box[own]).argmax(axis=1)]
        return best


def best_ious(boxes: np.ndarray, truths: Truths) -> np.ndarray:
    """Return the largest IoU (N, K) of predicted boxes (4, N, K) with the truths of their image, 0 without one.

    The t-th truths of all images are compared at once, in work arrays of (N, K); images are sorted by their number of truths.
    """
    counts = np.bincount(truths.n, minlength=boxes.shape[1])
    order, first = np.argsort(-counts, kind="stable"), np.cumsum(counts) - counts
    x, y, w, h = boxes[:, order]
    left, right, top, bottom, area = x - w / 2, x + w / 2, y - h / 2, y + h / 2, w * h
    best, width, height, work = np.zeros_like(x), *(np.empty_like(x) for _ in range(3))
    zero = np.zeros(x.shape[1:], x.dtype)  # faster than a number
    with np.errstate(all="ignore"):  # a network can output infinite sizes; fmax ignores NaN
        for t in range(counts.max()):
            m = np.count_nonzero(counts > t)
            tx, ty, tw, th = truths.box[first[order[:m]] + t].T[:, :, None]
            inside, i, j, u = best[:m], width[:m], height[:m], work[:m]
            np.subtract(np.minimum(right[:m], tx + tw / 2, out=i), np.maximum(left[:m], tx - tw / 2, out=u), out=i)
            np.subtract(np.minimum(bottom[:m], ty + th / 2, out=j), np.maximum(top[:m], ty - th / 2, out=u), out=j)
            np.multiply(np.maximum(i, zero, out=i), j, out=i)  # below 0 if j is: no overlap either
            np.subtract(np.add(area[:m], tw * th, out=u), i, out=u)
            np.fmax(inside, np.divide(i, u, out=i), out=inside)
    result = np.empty_like(best)
    result[order] = best
    return result


def turns(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield positions of `rows` (K,), so that each group has different rows: first occurrences, second ones, and so on."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    turn = np.empty_like(order)
    turn[order] = np.arange(len(rows)) - np.repeat(starts, np.diff(starts, append=len(rows)))
    for number in range(turn.max(initial=-1) + 1):
        yield np.flatnonzero(turn == number)


def sum_of_squares(a: np.ndarray) -> float:
    """Sum the squares of an array in float64."""
    wide = a.astype(np.float64).ravel()
    return float(wide @ wide)
