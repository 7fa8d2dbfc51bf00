from __future__ import annotations

import math

import numpy as np

from gpudarknet.ops import activation

from . import check, normal


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def softplus(x):
    return math.log1p(math.exp(x)) if x < 30 else x


def stair(x):
    m = math.floor(x)
    return math.floor(x / 2) if m % 2 == 0 else (x - m) + math.floor(x / 2)


def gelu_gradient(y):
    u = 0.0356774 * y**3 + 0.797885 * y
    sech = 1 / math.cosh(u) if abs(u) < 300 else 0.0
    return 0.5 * math.tanh(u) + (0.0535161 * y**3 + 0.398942 * y) * sech**2 + 0.5


def mish_gradient(x):
    t, growth = math.tanh(softplus(x)), 1 - math.exp(-softplus(x))
    return x * (1 - t * t) * growth + t


# name: (f(x), f' as Darknet computes it, of y or of x: the last three)
PLAIN = {
    "linear": (lambda x: x, lambda y: 1),
    "logistic": (sigmoid, lambda y: (1 - y) * y),
    "loggy": (lambda x: 2 * sigmoid(x) - 1, lambda y: 2 * (1 - (y + 1) / 2) * ((y + 1) / 2)),
    "relu": (lambda x: max(x, 0), lambda y: y > 0),
    "relu6": (lambda x: min(max(x, 0), 6), lambda y: 0 < y < 6),
    "leaky": (lambda x: x if x > 0 else 0.1 * x, lambda y: 1 if y > 0 else 0.1),
    "revleaky": (lambda x: x if x > 0 else 0.1 * x, lambda y: 1 if y > 0 else 0.1),
    "relie": (lambda x: x if x > 0 else 0.01 * x, lambda y: 1 if y > 0 else 0.01),
    "ramp": (lambda x: x * (x > 0) + 0.1 * x, lambda y: (y > 0) + 0.1),
    "elu": (lambda x: x if x >= 0 else math.exp(x) - 1, lambda y: 1 if y >= 0 else y + 1),
    "selu": (
        lambda x: 1.0507 * x if x >= 0 else 1.0507 * 1.6732 * (math.exp(x) - 1),
        lambda y: 1.0507 if y >= 0 else y + 1.0507 * 1.6732,
    ),
    "gelu": (lambda x: 0.5 * x * (1 + math.tanh(0.797885 * x + 0.035677 * x**3)), gelu_gradient),
    "tanh": (math.tanh, lambda y: 1 - y * y),
    "plse": (
        lambda x: 0.01 * (x + 4) if x < -4 else 0.01 * (x - 4) + 1 if x > 4 else 0.125 * x + 0.5,
        lambda y: 0.01 if y < 0 or y > 1 else 0.125,
    ),
    "stair": (stair, lambda y: y != math.floor(y)),
    "hardtan": (lambda x: min(max(x, -1), 1), lambda y: -1 < y < 1),
    "lhtan": (
        lambda x: 0.001 * x if x < 0 else 0.001 * (x - 1) + 1 if x > 1 else x,
        lambda y: 1 if 0 < y < 1 else 0.001,
    ),
    "swish": (lambda x: x * sigmoid(x), lambda x: x * sigmoid(x) + sigmoid(x) * (1 - x * sigmoid(x))),
    "mish": (lambda x: x * math.tanh(softplus(x)), mish_gradient),
    "hard_mish": (
        lambda x: x if x > 0 else x * x / 2 + x if x > -2 else 0,
        lambda x: 1 if x > 0 else x + 1 if x > -2 else 0,
    ),
}
NAMES = [(name,) for name in activation.FUNCTIONS]
SPECIAL = [0, -0.0, 1, -1, 2, -2, 3, -3, 4, -4, 6, -6, 19.5, 21, 90, -90, 150, -150, 0.5, -0.5, 1e-3, -1e-3, 5.5, -5.5]


def make(rng, N, C, H, W, name):
    x = 3 * normal(rng, N, C, H, W)
    x.flat[1 : 1 + len(SPECIAL)] = SPECIAL[: x.size - 1]
    return x, name


def each(f, x):
    return np.array([f(float(v)) for v in x.flat], float).reshape(x.shape)


@check(activation.activate, make, *NAMES, half="x")
def activate(x, name):
    return each(PLAIN[name][0], x)


def make_backward(rng, N, C, H, W, name):
    x, _ = make(rng, N, C, H, W, name)
    y = activate(x.astype(np.float32), name)
    return normal(rng, N, C, H, W), x if name in activation.NEEDS_INPUT else None, y, name


@check(activation.activate_backward, make_backward, *NAMES, half="dy x y", atol=1e-5)
def activate_backward(dy, x, y, name):
    return dy * each(PLAIN[name][1], y if x is None else x)


def make_channels(rng, N, C, H, W, mode):
    return 2 * normal(rng, N, C, H, W), mode


@check(activation.normalize_channels, make_channels, (0,), (1,), (2,), half="x")
def normalize_channels(x, mode):
    y = np.empty(x.shape)
    for n, h, w in np.ndindex(x.shape[0], *x.shape[2:]):
        v = x[n, :, h, w]
        r = {0: np.maximum(v, 0), 1: np.exp(v), 2: np.exp(v - v.max())}[mode]
        y[n, :, h, w] = r / (1e-4 + r.sum())
    return y


def make_channels_backward(rng, N, C, H, W, mode):
    return normal(rng, N, C, H, W), normalize_channels(2 * normal(rng, N, C, H, W), mode), mode


@check(activation.normalize_channels_backward, make_channels_backward, (0,), (1,), (2,), half="dy y")
def normalize_channels_backward(dy, y, mode):
    dx = np.empty(y.shape)
    for n, h, w in np.ndindex(y.shape[0], *y.shape[2:]):
        d, v = dy[n, :, h, w], y[n, :, h, w]
        dx[n, :, h, w] = (
            np.diag(v) - (mode != 0) * np.outer(v, v)
        ) @ d  # mode 0: the diagonal, as Darknet's CUDA build
    return dx
