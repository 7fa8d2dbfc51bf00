"""Sums and products of feature maps: shortcut, SORT-shortcut, scale_channels, sam.

Elements of maps of different shapes are paired in memory order, per image, up to the shorter one: with equal height and
width these are the common channels (shortcut_multilayer_cpu in Darknet's src/blas.c).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from ..array import Array, ArrayBackend, KernelBackend
from .base import op

BLOCK = 256  # threads of a reduction


def _rows(x: Array) -> Array:
    return x.reshape(x.shape[0], -1)


def _factor(v: Array, plane: int, n: int) -> Array:
    """Repeat the factors v (C,) or (1,) for the first n elements of maps with `plane` pixels per channel."""
    return v if v.size == 1 else v.repeat(plane)[:n]


@op
def shortcut(be: ArrayBackend, xs: Sequence[Array], v: Array | None) -> Array:
    """Add maps: xs[0] (N, C, H, W), the others (N, Ci, Hi, Wi) -> (N, C, H, W), on the elements that both have.

    v is None, or (len(xs), C) or (len(xs), 1): the factor of each map, per channel of the result or for all.
    """
    N, C, H, W = xs[0].shape
    y = xs[0].copy() if v is None else xs[0] * v[0].reshape(-1, 1, 1)
    rows = _rows(y)
    for t, x in enumerate(xs[1:], 1):
        n = min(rows.shape[1], x[0].size)
        part = _rows(x)[:, :n]
        rows[:, :n] += part if v is None else part * _factor(v[t], H * W, n)
    return y


@shortcut.kernel
def shortcut_cuda(be: KernelBackend, xs: Sequence[Array], v: Array | None) -> Array:
    A, P = xs[0][0].size, xs[0][0, 0].size
    y, total, va = be.empty(xs[0].shape, xs[0].dtype), xs[0], None if v is None else v[0]
    for t in range(
        1, max(len(xs), 2)
    ):  # the first pass adds two maps, each later pass one more; a single map takes a pass too
        b, vb = (xs[t], None if v is None else v[t]) if t < len(xs) else (None, None)
        B, V = 0 if b is None else b[0].size, 1 if v is None else v.shape[1]
        be.launch("shortcut.add", y.size, total, b, va, vb, y, y.size, A, B, P, V)
        total, va = y, None
    return y


@op(sums=(1,))
def shortcut_backward(
    be: ArrayBackend, dy: Array, xs: Sequence[Array], v: Array | None
) -> tuple[tuple[Array, ...], Array | None]:
    """Return (dxs, dv) of `shortcut`: one dx per map, dv of v's shape (None without factors)."""
    N, C, H, W = dy.shape
    dxs, rows = [], _rows(dy)
    dv = None if v is None else be.zeros(v.shape, dy.dtype)
    for t, x in enumerate(xs):
        n = min(rows.shape[1], x[0].size)
        dx = be.zeros(x.shape, dy.dtype)
        _rows(dx)[:, :n] = rows[:, :n] if v is None else rows[:, :n] * _factor(v[t], H * W, n)
        dxs.append(dx)
        if v is not None and dv is not None:
            products = be.zeros(rows.shape, dy.dtype)
            products[:, :n] = rows[:, :n] * _rows(x)[:, :n]
            dv[t] = products.reshape(dy.shape).sum(axis=(0, 2, 3)) if v.shape[1] > 1 else products.sum()
    return tuple(dxs), dv


@shortcut_backward.kernel
def shortcut_backward_cuda(
    be: KernelBackend, dy: Array, xs: Sequence[Array], v: Array | None
) -> tuple[tuple[Array, ...], Array | None]:
    N, C, H, W = dy.shape
    A, P, V = C * H * W, H * W, 1 if v is None else v.shape[1]
    dxs, dv = [], None if v is None else be.empty(v.shape)
    for t, x in enumerate(xs):
        dx, B = be.empty(x.shape, dy.dtype), x[0].size
        be.launch("shortcut.add_backward", dx.size, dy, None if v is None else v[t], dx, dx.size, A, B, P, V)
        dxs.append(dx)
        if dv is not None:
            totals = be.empty((C,))
            be.launch("shortcut.channel_products", C * BLOCK, dy, x, totals, N, A, B, P, block=BLOCK)
            dv[t] = totals if V > 1 else totals.sum()
    return tuple(dxs), dv


def _rectify(xp: ModuleType, x: Array, slope: float) -> Array:
    """R(x): x where it is positive, else slope * x."""
    return (xp.maximum if slope <= 1 else xp.minimum)(x, slope * x)


def _rectifier_slope(x: Array, slope: float) -> Array:
    """R'(x): 1 where x is positive, else slope."""
    return (x > 0).astype(x.dtype) * (1 - slope) + slope


@op
def sort_shortcut(be: ArrayBackend, a: Array, b: Array, eps: float, slope: float) -> Array:
    """Second-order response transform: a (N, C, H, W), b (N, Cb, Hb, Wb) -> y = a + b + sqrt(max(R(a) R(b), 0) + eps).

    R(x) = x where x > 0, else slope * x; unpaired elements of a are copied. (Wang et al. 2017, arXiv 1703.06993)
    """
    xp, n = be.xp, min(a[0].size, b[0].size)
    y = a.copy()
    p, q = _rows(a)[:, :n], _rows(b)[:, :n]
    product = _rectify(xp, p, slope) * _rectify(xp, q, slope)
    _rows(y)[:, :n] += q + xp.sqrt(xp.maximum(product, 0) + eps)
    return y


@sort_shortcut.kernel
def sort_shortcut_cuda(be: KernelBackend, a: Array, b: Array, eps: float, slope: float) -> Array:
    y = be.empty(a.shape, a.dtype)
    be.launch("shortcut.sort_shortcut", y.size, a, b, y, y.size, a[0].size, b[0].size, eps, slope)
    return y


@op
def sort_shortcut_backward(
    be: ArrayBackend, dy: Array, a: Array, b: Array, eps: float, slope: float
) -> tuple[Array, Array]:
    """Return (da, db) of `sort_shortcut`: da = dy (1 + R'(a) R(b) / (2 sqrt(R(a) R(b) + eps))) where R(a) R(b) > 0, else dy.

    The subgradient at a = 0 is 0, as in the authors' layer.
    """
    xp, n = be.xp, min(a[0].size, b[0].size)
    p, q, d = _rows(a)[:, :n], _rows(b)[:, :n], _rows(dy)[:, :n]
    rp, rq = _rectify(xp, p, slope), _rectify(xp, q, slope)
    product = rp * rq
    half = (product > 0) * d / (2 * xp.sqrt(xp.maximum(product, 0) + eps))
    da, db = dy.copy(), be.zeros(b.shape, dy.dtype)
    _rows(da)[:, :n] += half * rq * _rectifier_slope(p, slope)
    _rows(db)[:, :n] = d + half * rp * _rectifier_slope(q, slope)
    return da, db


@sort_shortcut_backward.kernel
def sort_shortcut_backward_cuda(
    be: KernelBackend, dy: Array, a: Array, b: Array, eps: float, slope: float
) -> tuple[Array, Array]:
    A, B = a[0].size, b[0].size
    n = a.shape[0] * max(A, B)
    da, db = be.empty(a.shape, dy.dtype), be.empty(b.shape, dy.dtype)
    be.launch("shortcut.sort_shortcut_backward", n, dy, a, b, da, db, n, A, B, eps, slope)
    return da, db


@op
def scale(be: ArrayBackend, x: Array, s: Array) -> Array:
    """Multiply x (N, C, H, W) by s: (N, C, 1, 1) per channel, (N, 1, H, W) per pixel, or (N, C, H, W)."""
    return x * s


@scale.kernel
def scale_cuda(be: KernelBackend, x: Array, s: Array) -> Array:
    _, C, H, W = x.shape
    y = be.empty(x.shape, x.dtype)
    be.launch("shortcut.scale", x.size, x, s, y, x.size, C, H * W, s.shape[1], s.shape[2] * s.shape[3])
    return y


@op
def scale_backward(be: ArrayBackend, dy: Array, x: Array, s: Array) -> tuple[Array, Array]:
    """Return (dx, ds) of `scale`; ds is summed over the axes that s broadcasts."""
    axes = tuple(i for i in (1, 2, 3) if s.shape[i] == 1 and x.shape[i] > 1)
    ds = dy * x
    return dy * s, ds.sum(axis=axes, keepdims=True) if axes else ds


@scale_backward.kernel
def scale_backward_cuda(be: KernelBackend, dy: Array, x: Array, s: Array) -> tuple[Array, Array]:
    _, C, H, W = x.shape
    if s.shape == x.shape:
        return scale_cuda(be, dy, s), scale_cuda(be, dy, x)
    ds = be.empty(s.shape, s.dtype)
    sizes = C, H * W, s.shape[1], s.shape[2] * s.shape[3]
    be.launch("shortcut.scale_backward", s.size * 32, dy, x, ds, s.size, *sizes)
    return scale_cuda(be, dy, s), ds
