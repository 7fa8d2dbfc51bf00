"""The losses of [softmax], [cost] and [detection], and what all losses share: layouts, the cost, truths on a GPU.

A loss returns (cost, delta): cost (1,) is what Darknet reports, summed over the batch; delta is Darknet's negative gradient times
scale (1,), with shape, type and memory layout of the output: NCHW, or the NCHW view of NHWC memory. It costs no synchronization.
"""

from __future__ import annotations

import numpy as np

from ..array import Array, ArrayBackend, KernelBackend
from ..boxes import iou
from .base import op
from .truths import sum_of_squares

PART = 4096  # elements whose costs a block adds, as in losses.cu
BLOCK = 256
IGNORE_LABEL = -1234.0  # truth value of classes without a label, which have no loss


def memory_of(y: Array) -> Array:
    """Return the C-contiguous array (N, C, H, W) or (N, H, W, C) that a map (N, C, H, W) views."""
    return y if y.flags.c_contiguous else y.transpose(0, 2, 3, 1)


def map_of(memory: Array, y: Array) -> Array:
    """Return the map (N, C, H, W) that views memory of the same layout as that of y."""
    return memory if y.flags.c_contiguous else memory.transpose(0, 3, 1, 2)


def element_strides(y: Array) -> tuple[int, int]:
    """Return the distances in memory from one channel of a map to the next, and from one pixel to the next."""
    _, C, H, W = y.shape
    return (H * W, 1) if y.flags.c_contiguous else (1, C)


def channels_last(y: Array) -> tuple[int, int]:
    """Return (C, P) of a map (N, C, H, W) in NHWC memory, with P = H*W; (1, C*P) if it is in NCHW memory."""
    _, C, H, W = y.shape
    return (1, C * H * W) if y.flags.c_contiguous else (C, H * W)


def scaled(cost: float, delta: Array, scale: Array) -> tuple[Array, Array]:
    """Return cost as an array (1,), and delta times scale."""
    return np.array([cost]), delta if scale[0] == 1 else delta * np.float32(scale[0])


def like(y: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return values in an array of shape, type and memory layout of y."""
    result = np.empty_like(y)
    result[...] = values
    return result


def finish(
    be: KernelBackend, y: Array, delta: Array, scale: Array, *, normalizer: float = 1.0, per_anchor: int = 1, first: int = 0,
    gain: float = 1.0, losses: Array | None = None, mean_gain: float = 0.0,
) -> tuple[Array, Array]:  # fmt: skip
    """Return (cost, delta) from float32 deltas in memory of the layout of y.

    delta is multiplied by normalizer and scale (1,). The cost is gain times the sum of squares of the channels from `first` of
    `per_anchor` on, plus mean_gain times the mean IoU loss: losses (N, 2) has the sum and number of each image.
    """
    out, parts = be.empty(delta.shape, y.dtype), be.empty((-(-delta.size // PART),))
    inner = element_strides(y)[0]
    be.launch("losses.scale_deltas", parts.size * BLOCK, delta, scale, out, parts, delta.size, inner, per_anchor, first,
           normalizer, block=BLOCK)  # fmt: skip
    return sum_parts(be, parts, gain, losses, mean_gain), map_of(out, y)


def sum_parts(
    be: KernelBackend, parts: Array, gain: float = 1.0, losses: Array | None = None, mean_gain: float = 0.0
) -> Array:
    """Return gain times the sum of parts, plus mean_gain times the mean IoU loss, as an array (1,)."""
    cost, N = be.empty((1,)), 0 if losses is None else len(losses)
    be.launch("losses.sum_parts", BLOCK, parts, losses, cost, parts.size, N, gain, mean_gain, block=BLOCK)
    return cost


def list_truths(be: KernelBackend, truth: Array, class_map: Array, limit: int) -> tuple[Array, Array, Array, int]:
    """Select the truths (N, rows*6) that count -> boxes (N, rows, 4), classes (N, rows), counts (N,), rows; see `Truths.of`."""
    rows = truth.reshape(len(truth), -1, 6)
    N, count, _ = rows.shape
    boxes, classes, counts = be.empty((N, count, 4)), be.empty((N, count), np.int32), be.empty((N,), np.int32)
    sizes = count, min(limit, count), class_map.size
    be.launch("losses.list_truths", 32 * N, rows, class_map, boxes, classes, counts, *sizes, block=32)
    return boxes, classes, counts, count


@op(sums=(0,))
def softmax_loss(be: ArrayBackend, y: Array, truth: Array, scale: Array) -> tuple[Array, Array]:
    """Cross entropy of probabilities y (N, C, H, W) and truth t (N, C*H*W): delta = t - y, cost = sum of -log y where t is not 0.

    Both are 0 where t is -1234: without a label.
    """
    t = truth.reshape(y.shape)
    labelled = t != IGNORE_LABEL
    with np.errstate(divide="ignore"):
        cost = -np.log(y[labelled & (t != 0)], dtype=np.float64).sum()
    return scaled(float(cost), like(y, np.where(labelled, t - y, 0)), scale)


@softmax_loss.kernel
def softmax_loss_cuda(be: KernelBackend, y: Array, truth: Array, scale: Array) -> tuple[Array, Array]:
    memory, t = memory_of(y), truth.reshape(y.shape)
    delta, parts = be.empty(memory.shape, y.dtype), be.empty((-(-y.size // PART),))
    be.launch("losses.softmax_loss", parts.size * BLOCK, memory, t, scale, delta, parts, y.size, *channels_last(y),
              IGNORE_LABEL, block=BLOCK)  # fmt: skip
    return sum_parts(be, parts), map_of(delta, y)


@op(sums=(0,))
def cost_loss(be: ArrayBackend, x: Array, truth: Array, scale: Array, kind: str) -> tuple[Array, Array]:
    """Compare x (N, C, H, W) with truth t (N, C*H*W).

    sse: delta = t - x, cost = sum of delta^2; smooth: delta is clipped to +-1; masked: both are 0 where t is -1234.
    """
    t = truth.reshape(x.shape)
    error = np.where(t == IGNORE_LABEL, 0, t - x) if kind == "masked" else t - x
    if kind != "smooth":
        return scaled(float((error * error).sum(dtype=np.float64)), like(x, error), scale)
    size = np.abs(error)
    cost = np.where(size < 1, error * error, 2 * size - 1).sum(dtype=np.float64)
    return scaled(float(cost), like(x, np.clip(error, -1, 1)), scale)


@cost_loss.kernel
def cost_loss_cuda(be: KernelBackend, x: Array, truth: Array, scale: Array, kind: str) -> tuple[Array, Array]:
    memory, t = memory_of(x), truth.reshape(x.shape)
    delta, parts = be.empty(memory.shape, x.dtype), be.empty((-(-x.size // PART),))
    be.launch("losses.cost_loss", parts.size * BLOCK, memory, t, scale, delta, parts, x.size, *channels_last(x),
              int(kind == "masked"), int(kind == "smooth"), IGNORE_LABEL, block=BLOCK)  # fmt: skip
    return sum_parts(be, parts), map_of(delta, x)


@op(sums=(0,))
def detection_loss(
    be: ArrayBackend, y: Array, truth: Array, draws: Array | None, scale: Array, S: int, B: int, K: int, sqrt: int,
    rescore: int, forced: int, coord_scale: float, object_scale: float, noobject_scale: float, class_scale: float,
) -> tuple[Array, Array]:  # fmt: skip
    """Compute the loss of [detection] for an output y of N * S*S*(K + 5*B) values and truth (N, S*S*(1 + K + 4)).

    truth: for each cell 1 if it holds an object, its class one-hot, x and y in it, w, h. draws (N, S*S): the box of a cell
    that is trained; None chooses the best one.
    """
    N = len(y)
    flat = y.reshape(N, -1)
    delta = np.zeros_like(flat)

    def split(a: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """View an array as classes (N, cells, K), confidences (N, cells, B), boxes (N, cells, B, 4)."""
        return (a[:, : S * S * K].reshape(N, S * S, K), a[:, S * S * K : S * S * (K + B)].reshape(N, S * S, B),
                a[:, S * S * (K + B) :].reshape(N, S * S, B, 4))  # fmt: skip

    (p, conf, box), (dp, dconf, dbox) = split(flat), split(delta)
    cells = truth.reshape(N, S * S, 1 + K + 4)
    dconf[...] = noobject_scale * (0 - conf)
    n, c = np.nonzero(cells[..., 0])
    dp[n, c] = class_scale * (cells[n, c, 1 : 1 + K] - p[n, c])
    wanted, out = cells[n, c, 1 + K :], box[n, c]  # (M, 4), (M, B, 4)
    target, pred = wanted[:, None].copy(), out.copy()
    target[..., :2] /= S
    pred[..., :2] /= S
    if sqrt:
        pred[..., 2:] **= 2
    overlaps = iou(pred, target)
    distances = ((pred - target) ** 2).sum(axis=-1)
    best = np.where(overlaps.max(axis=1) > 0, overlaps.argmax(axis=1), distances.argmin(axis=1))
    if forced:
        best = (wanted[:, 2] * wanted[:, 3] < 0.1).astype(int)
    if draws is not None:
        best = draws[n, c]
    aim = overlaps[np.arange(len(n)), best] if rescore else 1
    dconf[n, c, best] = object_scale * (aim - conf[n, c, best])
    if sqrt:
        wanted = np.concatenate([wanted[:, :2], np.sqrt(wanted[:, 2:])], axis=1)
    dbox[n, c, best] = coord_scale * (wanted - box[n, c, best])
    return scaled(sum_of_squares(delta), like(y, delta.reshape(y.shape)), scale)


@detection_loss.kernel
def detection_loss_cuda(
    be: KernelBackend, y: Array, truth: Array, draws: Array | None, scale: Array, S: int, B: int, K: int, sqrt: int,
    rescore: int, forced: int, coord_scale: float, object_scale: float, noobject_scale: float, class_scale: float,
) -> tuple[Array, Array]:  # fmt: skip
    memory = memory_of(y)
    delta, cells = be.empty(memory.shape), truth.reshape(len(y), S * S, 1 + K + 4)
    be.launch(
        "losses.detection_loss", len(y) * S * S, memory, cells, draws, delta, len(y) * S * S, S, B, K, *channels_last(y), sqrt,
        rescore, forced, coord_scale, object_scale, noobject_scale, class_scale,
    )  # fmt: skip
    return finish(be, y, delta, scale)
