"""One step of an optimiser, in place, on one array of weights (update_convolutional_layer in Darknet)."""

from __future__ import annotations

from typing import Any

from .base import op


@op
def sgd(be: Any, w: Any, g: Any, rate: float, momentum: float, decay: float) -> None:
    """Move w (any shape) along g, in place; both float32, flat order irrelevant.

    g is Darknet's accumulated negative gradient, which already holds the momentum of the past; `rate` is the learning rate
    divided by the batch, `decay` is multiplied by it: g -= decay * w; w += rate * g; g *= momentum.
    """
    g -= decay * w
    w += rate * g
    g *= momentum


@sgd.kernel
def sgd_cuda(be: Any, w: Any, g: Any, rate: float, momentum: float, decay: float) -> None:
    be.launch("optimizers.sgd", w.size, w, g, w.size, rate, momentum, decay)


@op
def adam(
    be: Any,
    w: Any,
    g: Any,
    m: Any,
    v: Any,
    rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
    t: int,
) -> None:
    """Move w along g by Adam in place, m and v being its moments; g is set to 0. (Darknet's order; t counts from 1)"""
    g -= decay * w
    m *= beta1
    m += (1 - beta1) * g
    v *= beta2
    v += (1 - beta2) * g * g
    w += rate * (m / (1 - beta1**t)) / (be.xp.sqrt(v / (1 - beta2**t)) + eps)
    g[...] = 0


@adam.kernel
def adam_cuda(
    be: Any,
    w: Any,
    g: Any,
    m: Any,
    v: Any,
    rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
    t: int,
) -> None:
    c1, c2 = 1 - beta1**t, 1 - beta2**t
    be.launch("optimizers.adam", w.size, w, g, m, v, w.size, rate, beta1, beta2, eps, decay, c1, c2)
