from __future__ import annotations

import numpy as np

from gpudarknet.ops import shortcut as ops

from . import check, normal

# variants: channels of each map as multiples of C, factors (0: none, 1: one for all, 2: one per channel)
VARIANTS = [((1, 1), 0), ((1,), 0), ((1,), 2), ((2, 1), 0), ((1, 2), 0), ((1, 1, 2, 1), 0), ((1, 1), 1), ((2, 1, 3), 2)]


def make(rng, N, C, H, W, multiples, factors):
    xs = [normal(rng, N, C * k, H, W) for k in multiples]
    v = None if not factors else normal(rng, len(xs), 1 if factors == 1 else C * multiples[0])
    return xs, v


@check(ops.shortcut, make, *VARIANTS, half="xs")
def shortcut(xs, v):
    y = np.zeros(xs[0].shape)
    for t, x in enumerate(xs):
        for c in range(min(x.shape[1], y.shape[1])):
            factor = 1 if v is None else v[t, c % v.shape[1]]
            y[:, c] += factor * x[:, c]
    return y


def make_backward(rng, N, C, H, W, multiples, factors):
    xs, v = make(rng, N, C, H, W, multiples, factors)
    return normal(rng, *xs[0].shape), xs, v


@check(ops.shortcut_backward, make_backward, *VARIANTS, half="dy xs", rtol=1e-4, atol=1e-4)  # dv: a sum over whole maps
def shortcut_backward(dy, xs, v):
    dxs = [np.zeros(x.shape) for x in xs]
    dv = None if v is None else np.zeros(v.shape)
    for t, x in enumerate(xs):
        for c in range(min(x.shape[1], dy.shape[1])):
            dxs[t][:, c] = dy[:, c] * (1 if v is None else v[t, c % v.shape[1]])
            if dv is not None:
                dv[t, c % v.shape[1]] += (dy[:, c] * x[:, c]).sum()
    return tuple(dxs), dv


# variants: channels of b as a multiple of C, eps, slope of the inner rectifier
SORT = [(1, 1e-4, 0.0), (1, 1e-2, 0.1), (2, 1e-3, 0.0), (0.5, 1e-3, 0.0)]


def make_sort(rng, N, C, H, W, multiple, eps, slope):
    a, b = normal(rng, N, C, H, W), normal(rng, N, max(1, int(C * multiple)), H, W)
    a[:, :, :, ::3] = 0  # where the derivative is a matter of convention
    return a, b, eps, slope


@check(ops.sort_shortcut, make_sort, *SORT, half="a b")
def sort_shortcut(a, b, eps, slope):
    def R(x):
        return np.maximum(x, 0) + slope * np.minimum(x, 0)

    y = a.copy()
    for c in range(min(a.shape[1], b.shape[1])):
        y[:, c] += b[:, c] + np.sqrt(np.maximum(R(a[:, c]) * R(b[:, c]), 0) + eps)
    return y


def make_sort_backward(rng, N, C, H, W, multiple, eps, slope):
    a, b, eps, slope = make_sort(rng, N, C, H, W, multiple, eps, slope)
    return normal(rng, N, C, H, W), a, b, eps, slope


@check(ops.sort_shortcut_backward, make_sort_backward, *SORT, half="dy a b")
def sort_shortcut_backward(dy, a, b, eps, slope):
    def R(x):
        return np.maximum(x, 0) + slope * np.minimum(x, 0)

    da, db = dy.copy(), np.zeros(b.shape)
    for c in range(min(a.shape[1], b.shape[1])):
        p, q = a[:, c], b[:, c]
        both = R(p) * R(q)
        bend = np.where(both > 0, 0.5 / np.sqrt(np.maximum(both, 0) + eps), 0)
        da[:, c] = dy[:, c] * (1 + bend * R(q) * np.where(p > 0, 1, slope))
        db[:, c] = dy[:, c] * (1 + bend * R(p) * np.where(q > 0, 1, slope))
    return da, db


def make_scale(rng, N, C, H, W, kind):
    return normal(rng, N, C, H, W), normal(
        rng, *{"channel": (N, C, 1, 1), "pixel": (N, 1, H, W), "map": (N, C, H, W)}[kind]
    )


@check(ops.scale, make_scale, ("channel",), ("pixel",), ("map",), half="x s")
def scale(x, s):
    y = np.empty(x.shape)
    for n, c, h, w in np.ndindex(x.shape):
        y[n, c, h, w] = x[n, c, h, w] * s[n, c % s.shape[1], h % s.shape[2], w % s.shape[3]]
    return y


def make_scale_backward(rng, N, C, H, W, kind):
    return normal(rng, N, C, H, W), *make_scale(rng, N, C, H, W, kind)


@check(ops.scale_backward, make_scale_backward, ("channel",), ("pixel",), ("map",), half="dy x s", atol=1e-5)
def scale_backward(dy, x, s):
    ds = np.zeros(s.shape)
    for n, c, h, w in np.ndindex(x.shape):
        ds[n, c % s.shape[1], h % s.shape[2], w % s.shape[3]] += dy[n, c, h, w] * x[n, c, h, w]
    return scale(dy, s), ds
