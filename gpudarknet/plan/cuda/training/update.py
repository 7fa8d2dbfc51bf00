"""The update of all weights, in a launch per optimizer (kernels/update.cu; PyTorch's foreach and fused optimizers).

Weights, gradients of a step, momentum and Adam's moments are flat float32 buffers with the same offsets. ops/optimizers.py
defines the optimizers, train/step.py the momentum, train/loss_scale.py the loss scale. A step:

    check_finite    clears status[FINITE] if a gradient or the cost is not finite
    sgd, adam       do nothing then
    adjust_loss_scale

The host writes the learning rate to `rates` before each step, and reads `status` and the loss scale when it wants to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ....array import Array
from .kernel_call import KernelCall
from .segments import BLOCK, SEGMENT_BLOCK, first_blocks

FINITE, GROWTH_TRACKER, SKIPPED, FAILED = range(4)  # the elements of `status`, int32, as in the kernels
STATUS = (1, 0, 0, 0)  # before the first step


class Segment(NamedTuple):
    """An array of weights: `size` elements from `offset` on.

    active: whether this step updates it; otherwise its gradient is kept as momentum. rate: the layer's factor of the learning
    rate. decay: the weight decay times the batch size, 0 for biases and scales. clip: limit of weights, 0 for none.
    """

    offset: int
    size: int
    active: bool = True
    rate: float = 1.0
    decay: float = 0.0
    grad_clip: float = math.inf
    clip: float = 0.0


def descriptors(segments: Sequence[Segment]) -> tuple[np.ndarray, int]:
    """Return what the kernels read, (segments, 8): int32, the last four the bits of float32; and their blocks."""
    first, blocks = first_blocks(s.size for s in segments)
    rows = np.zeros((len(segments), 8), np.int32)
    rows[:, 0] = first
    rows[:, 1:4] = [(s.offset, s.size, s.active) for s in segments]
    rows[:, 4:].view(np.float32)[...] = [(s.rate, s.decay, s.grad_clip, s.clip) for s in segments]
    return rows, blocks


def check_finite(grads: Array, costs: Array | None, status: Array) -> KernelCall:
    """Clear status[FINITE] if one of the gradients or costs is infinite or NaN."""
    blocks = -(-grads.size // SEGMENT_BLOCK)
    args = (grads, costs, status, grads.size, 0 if costs is None else costs.size)
    return KernelCall("update.check_finite", blocks * BLOCK, args, BLOCK)


def sgd(
    w: Array, momentum: Array, grads: Array, rates: Array, loss_scale: Array, status: Array, segments: Array, blocks: int,
    factor: float,
) -> KernelCall:  # fmt: skip
    """Make a step of SGD on segments (`descriptors`); rates[0]: the learning rate over the batch size; factor: of momentum."""
    args = (w, momentum, grads, rates, loss_scale, status, segments, len(segments), factor)
    return KernelCall("update.sgd", blocks * BLOCK, args, BLOCK)


def adam(
    w: Array, momentum: Array, m: Array, v: Array, grads: Array, rates: Array, loss_scale: Array, status: Array,
    segments: Array, blocks: int, beta1: float, beta2: float, eps: float,
) -> KernelCall:  # fmt: skip
    """Make a step of Adam on segments (`descriptors`); rates (3,): the learning rate, 1 - beta1^t, 1 - beta2^t."""
    args = (w, momentum, m, v, grads, rates, loss_scale, status, segments, len(segments), beta1, beta2, eps)
    return KernelCall("update.adam", blocks * BLOCK, args, BLOCK)


def adjust_loss_scale(loss_scale: Array, status: Array, dynamic: bool, interval: int, min_scale: float) -> KernelCall:
    """Adjust a dynamic loss scale; see train/loss_scale.py, which has the constants."""
    return KernelCall("update.adjust_loss_scale", 1, (loss_scale, status, dynamic, interval, min_scale), 32)
