from __future__ import annotations

import numpy as np

from gpudarknet.ops import norm

from . import check, normal


def make(rng, N, C, H, W):
    return normal(rng, N, C, H, W), normal(rng, C), rng.uniform(0.1, 2, C), normal(rng, C), normal(rng, C)


@check(norm.batch_norm, make, half="x")
def batch_norm(x, mean, variance, scale, bias):
    y = np.empty(x.shape)
    for c in range(x.shape[1]):
        y[:, c] = (x[:, c] - mean[c]) / np.sqrt(variance[c] + 1e-5) * scale[c] + bias[c]
    return y


@check(
    norm.batch_statistics, lambda rng, *shape: (100 + normal(rng, *shape),), half="x", atol=1e-3
)  # far from 0: no cancellation
@check(norm.batch_statistics, lambda rng, N, C, H, W: (normal(rng, 7, C, H + 40, W + 45),))  # several parts
def batch_statistics(x):
    return np.array([x[:, c].mean() for c in range(x.shape[1])]), np.array([x[:, c].var() for c in range(x.shape[1])])


def make_backward(rng, N, C, H, W):
    x = 3 + normal(rng, N, C, H, W)
    return normal(rng, N, C, H, W), x, *batch_statistics(x), normal(rng, C)


def make_backward_parts(rng, N, C, H, W):
    return make_backward(rng, 7, C, H + 40, W + 45)


@check(norm.batch_norm_backward, make_backward, half="dy x", atol=1e-4)
@check(norm.batch_norm_backward, make_backward_parts, rtol=1e-4, atol=1e-2)  # dscale, dbias: sums of 15000 values
def batch_norm_backward(dy, x, mean, variance, scale):
    dx, dscale, dbias = np.empty(x.shape), np.empty(scale.shape), np.empty(scale.shape)
    for c in range(x.shape[1]):
        std = np.sqrt(variance[c] + 1e-5)
        normalized = (x[:, c] - mean[c]) / std
        dscale[c], dbias[c] = (dy[:, c] * normalized).sum(), dy[:, c].sum()
        dx[:, c] = scale[c] / std * (dy[:, c] - dy[:, c].mean() - normalized * (dy[:, c] * normalized).mean())
    return dx, dscale, dbias


def make_lrn(rng, N, C, H, W, size):
    return normal(rng, N, C, H, W), norm.lrn_windows(C, size), 0.01, 0.75, 1.0


@check(norm.lrn, make_lrn, (5,), (3,), (4,), half="x")
def lrn(x, windows, alpha, beta, kappa):
    y = np.empty(x.shape)
    for c in range(x.shape[1]):
        total = kappa + alpha * sum(windows[c, k] * x[:, k] ** 2 for k in range(x.shape[1]))
        y[:, c] = x[:, c] * total**-beta
    return y


def make_lrn_backward(rng, N, C, H, W, size):
    return normal(rng, N, C, H, W), *make_lrn(rng, N, C, H, W, size)


@check(norm.lrn_backward, make_lrn_backward, (5,), (3,), half="dy x")
def lrn_backward(dy, x, windows, alpha, beta, kappa):
    """The directional derivative of sum(dy * lrn) along each channel's own input, by the chain rule."""
    C = x.shape[1]
    totals = [kappa + alpha * sum(windows[c, k] * x[:, k] ** 2 for k in range(C)) for c in range(C)]
    dx = np.empty(x.shape)
    for c in range(C):
        dx[:, c] = dy[:, c] * totals[c] ** -beta
        for k in range(C):
            slope = -beta * totals[k] ** (-beta - 1) * alpha * windows[k, c] * 2 * x[:, c]
            dx[:, c] += dy[:, k] * x[:, k] * slope
    return dx


def make_softmax(rng, N, C, H, W, groups, temperature):
    K = C * W + groups
    starts = (0, *sorted(rng.choice(np.arange(1, K), groups - 1, replace=False).tolist()))
    return 20 * normal(rng, N * H, K), starts, temperature


@check(norm.softmax, make_softmax, (1, 1.0), (2, 0.5), (1, 3.0), half="x", rtol=1e-4)  # the exponent has an error too
def softmax(x, starts, temperature):
    y = np.empty(x.shape)
    for a, b in zip(starts, (*starts[1:], x.shape[1]), strict=True):
        e = np.exp(x[:, a:b] / temperature - x[:, a:b].max(axis=1, keepdims=True) / temperature)
        y[:, a:b] = e / e.sum(axis=1, keepdims=True)
    return y
