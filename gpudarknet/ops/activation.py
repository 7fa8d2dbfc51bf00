"""Darknet's activation functions and their gradients.

Like Darknet, derivatives are computed from the OUTPUT y, except those of swish, mish and hard_mish, which need the input x.
Three of them, marked below, are not the derivative of the forward function. They are Darknet's and are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..array import Array, ArrayBackend, KernelBackend
from .base import op


def _sigmoid(xp: ModuleType, x: Array) -> Array:
    return 1 / (1 + xp.exp(-xp.clip(x, -80, None)))  # exp(80) is finite in float32; below it the result is 0


def _tanh_softplus(xp: ModuleType, x: Array) -> Array:
    e = xp.exp(xp.minimum(x, 20))  # tanh(log(1 + e)) = n / (n + 2): no logarithm, exact at both ends
    n = e * (e + 2)
    return n / (n + 2)


def _stair(xp: ModuleType, x: Array) -> Array:
    m = xp.floor(x)
    return xp.where(m % 2 == 0, xp.floor(x / 2), (x - m) + xp.floor(x / 2))


def _gelu_gradient(xp: ModuleType, x: Array, y: Array) -> Array:
    u = 0.0356774 * y**3 + 0.797885 * y  # Darknet uses y in place of x
    return 0.5 * xp.tanh(u) + (0.0535161 * y**3 + 0.398942 * y) * (1 - xp.tanh(u) ** 2) + 0.5


def _mish_gradient(xp: ModuleType, x: Array, y: Array) -> Array:
    t = _tanh_softplus(xp, x)
    return x * (1 - t * t) * _sigmoid(xp, x) + t


def _swish_gradient(xp: ModuleType, x: Array, y: Array) -> Array:
    return y + _sigmoid(xp, x) * (1 - y)


def _select(xp: ModuleType, condition: Array, a: float, b: float, like: Array) -> Array:
    y = condition.astype(like.dtype)  # NumPy's `where` is eight times slower: it branches at every element
    y *= a - b
    y += b
    return y


Pair = tuple[Callable[[ModuleType, Array], Array], Callable[[ModuleType, Any, Array], Array]]

# name -> (forward(xp, x), derivative(xp, x, y)); a derivative that is not in NEEDS_INPUT may get None for x.
# The order is that of the function codes in kernels/activation.cu.
FUNCTIONS: dict[str, Pair] = {
    "linear": (lambda xp, x: x, lambda xp, x, y: xp.ones_like(y)),
    "logistic": (_sigmoid, lambda xp, x, y: (1 - y) * y),
    "loggy": (lambda xp, x: 2 * _sigmoid(xp, x) - 1, lambda xp, x, y: 2 * (1 - (y + 1) / 2) * (y + 1) / 2),
    "relu": (lambda xp, x: xp.maximum(x, 0), lambda xp, x, y: (y > 0).astype(y.dtype)),
    "relu6": (lambda xp, x: xp.clip(x, 0, 6), lambda xp, x, y: ((y > 0) & (y < 6)).astype(y.dtype)),
    "leaky": (lambda xp, x: xp.maximum(x, 0.1 * x), lambda xp, x, y: _select(xp, y > 0, 1, 0.1, y)),
    "revleaky": (
        lambda xp, x: xp.maximum(x, 0.1 * x),
        lambda xp, x, y: _select(xp, y > 0, 1, 0.1, y),
    ),
    "relie": (
        lambda xp, x: xp.maximum(x, 0.01 * x),
        lambda xp, x, y: _select(xp, y > 0, 1, 0.01, y),
    ),
    "ramp": (lambda xp, x: xp.maximum(x, 0) + 0.1 * x, lambda xp, x, y: (y > 0) + 0.1 * xp.ones_like(y)),
    "elu": (
        lambda xp, x: xp.where(x >= 0, x, xp.expm1(xp.minimum(x, 0))),
        lambda xp, x, y: xp.where(y >= 0, 1, y + 1),
    ),
    "selu": (  # Darknet adds the product of the constants instead of multiplying; kept
        lambda xp, x: 1.0507 * xp.where(x >= 0, x, 1.6732 * xp.expm1(xp.minimum(x, 0))),
        lambda xp, x, y: xp.where(y >= 0, 1.0507, y + 1.0507 * 1.6732),
    ),
    "gelu": (lambda xp, x: 0.5 * x * (1 + xp.tanh(0.797885 * x + 0.035677 * x**3)), _gelu_gradient),
    "tanh": (lambda xp, x: xp.tanh(x), lambda xp, x, y: 1 - y * y),
    "plse": (
        lambda xp, x: xp.where(x < -4, 0.01 * (x + 4), xp.where(x > 4, 0.01 * (x - 4) + 1, 0.125 * x + 0.5)),
        lambda xp, x, y: xp.where((y < 0) | (y > 1), 0.01, 0.125),
    ),
    "stair": (_stair, lambda xp, x, y: (xp.floor(y) != y).astype(y.dtype)),
    "hardtan": (lambda xp, x: xp.clip(x, -1, 1), lambda xp, x, y: ((y > -1) & (y < 1)).astype(y.dtype)),
    "lhtan": (
        lambda xp, x: xp.where(x < 0, 0.001 * x, xp.where(x > 1, 0.001 * (x - 1) + 1, x)),
        lambda xp, x, y: xp.where((y > 0) & (y < 1), 1, 0.001),
    ),
    "swish": (lambda xp, x: x * _sigmoid(xp, x), _swish_gradient),
    "mish": (lambda xp, x: x * _tanh_softplus(xp, x), _mish_gradient),
    "hard_mish": (
        lambda xp, x: xp.where(x > 0, x, xp.where(x > -2, x * x / 2 + x, 0)),
        lambda xp, x, y: xp.where(x > 0, 1, xp.where(x > -2, x + 1, 0)),
    ),
}
NAMES = tuple(FUNCTIONS)
NEEDS_INPUT = frozenset({"swish", "mish", "hard_mish"})
NORMALIZERS = ("normalize_channels", "normalize_channels_softmax", "normalize_channels_softmax_maxval")


def apply(be: ArrayBackend, x: Array, kind: str) -> Array:
    """Activate x with any of Darknet's functions, (N, C, ...) -> same shape; x itself for linear."""
    if kind == "linear":
        return x
    return normalize_channels(be, x, NORMALIZERS.index(kind)) if kind in NORMALIZERS else activate(be, x, kind)


def apply_backward(be: ArrayBackend, dy: Array, x: Array | None, y: Array, kind: str) -> Array:
    """Multiply dy by the activation's derivative, all of one shape (N, C, ...)."""
    if kind == "linear":
        return dy
    if kind in NORMALIZERS:
        return normalize_channels_backward(be, dy, y, NORMALIZERS.index(kind))
    return activate_backward(be, dy, x, y, kind)


@op
def activate(be: ArrayBackend, x: Array, kind: str) -> Array:
    """Apply an elementwise activation, x of any shape -> y of the same shape (src/activations.c)."""
    return FUNCTIONS[kind][0](be.xp, x).astype(x.dtype, copy=False)


@activate.kernel
def activate_cuda(be: KernelBackend, x: Array, kind: str) -> Array:
    y = be.empty(x.shape, x.dtype)
    be.launch("activation.activate", x.size, x, y, x.size, NAMES.index(kind))
    return y


@op
def activate_backward(be: ArrayBackend, dy: Array, x: Array | None, y: Array, kind: str) -> Array:
    """Multiply dy by f' at (x, y), all of one shape; x may be None for functions that do not need it."""
    return (dy * FUNCTIONS[kind][1](be.xp, x, y)).astype(dy.dtype, copy=False)


@activate_backward.kernel
def activate_backward_cuda(be: KernelBackend, dy: Array, x: Array | None, y: Array, kind: str) -> Array:
    dx = be.empty(dy.shape, dy.dtype)
    be.launch("activation.activate_backward", dy.size, dy, x, y, dx, dy.size, NAMES.index(kind))
    return dx


@op
def normalize_channels(be: ArrayBackend, x: Array, mode: int) -> Array:
    """Normalize each pixel over its channels, (N, C, H, W) -> same: mode 0 relu, 1 softmax, 2 softmax of x - max.

    y = r / (1e-4 + sum over C of r), r = max(x, 0) or exp(x) or exp(x - max).
    """
    xp = be.xp
    if mode == 0:
        r = xp.maximum(x, 0)
    else:
        r = xp.exp(x - x.max(axis=1, keepdims=True) if mode == 2 else x)
    return r / (1e-4 + r.sum(axis=1, keepdims=True))


@normalize_channels.kernel
def normalize_channels_cuda(be: KernelBackend, x: Array, mode: int) -> Array:
    N, C, H, W = x.shape
    y = be.empty(x.shape, x.dtype)
    be.launch("activation.normalize_channels", N * H * W, x, y, N * H * W, C, H * W, mode)
    return y


@op
def normalize_channels_backward(be: ArrayBackend, dy: Array, y: Array, mode: int) -> Array:
    """Return the gradient at the input of `normalize_channels`, from dy (N, C, H, W) and its output y.

    Exact for the softmax modes (up to the 1e-4). Mode 0 would need the sum, which cannot be recovered from y.
    Like Darknet's CUDA build, multiply by y where y > 0 instead.
    """
    if mode == 0:
        return dy * be.xp.maximum(y, 0)
    return y * (dy - (dy * y).sum(axis=1, keepdims=True))


@normalize_channels_backward.kernel
def normalize_channels_backward_cuda(be: KernelBackend, dy: Array, y: Array, mode: int) -> Array:
    N, C, H, W = y.shape
    dx = be.empty(y.shape, y.dtype)
    be.launch("activation.normalize_channels_backward", N * H * W, dy, y, dx, N * H * W, C, H * W, mode)
    return dx
