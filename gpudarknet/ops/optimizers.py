"""Optimizer steps on one array of weights, in place (update_convolutional_layer in Darknet)."""

from __future__ import annotations

from ..array import Array, ArrayBackend, KernelBackend
from .base import op


@op
def sgd(be: ArrayBackend, w: Array, buf: Array, rate: float, momentum: float, decay: float) -> None:
    """Make a step of SGD with momentum on w (any shape), in place: buf -= decay * w; w += rate * buf; buf *= momentum.

    buf is Darknet's accumulated negative gradient plus the momentum of earlier steps. `rate` is the learning rate divided by
    the batch size, `decay` the weight decay multiplied by it. Both arrays are float32.
    """
    buf -= decay * w
    w += rate * buf
    buf *= momentum


@sgd.kernel
def sgd_cuda(be: KernelBackend, w: Array, buf: Array, rate: float, momentum: float, decay: float) -> None:
    be.launch("optimizers.sgd", w.size, w, buf, w.size, rate, momentum, decay)


@op
def adam(
    be: ArrayBackend,
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
    t: int,
) -> None:
    """Make a step of Adam on w along g, in place; m and v are its moments. Sets g to 0. t counts from 1."""
    g -= decay * w
    m *= beta1
    m += (1 - beta1) * g
    v *= beta2
    v += (1 - beta2) * g * g
    w += rate * (m / (1 - beta1**t)) / (be.xp.sqrt(v / (1 - beta2**t)) + eps)
    g[...] = 0


@adam.kernel
def adam_cuda(
    be: KernelBackend,
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
    t: int,
) -> None:
    c1, c2 = 1 - beta1**t, 1 - beta2**t
    be.launch("optimizers.adam", w.size, w, g, m, v, w.size, rate, beta1, beta2, eps, decay, c1, c2)
