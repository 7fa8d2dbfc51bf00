"""Sums and products of feature maps: shortcut, SORT-shortcut, scale_channels, sam.

Where maps differ in channels, only the channels that both have take part (Darknet's shortcut_multilayer_cpu).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..op import op


@op
def shortcut(be: Any, xs: Sequence[Any], v: Any) -> Any:
    """Add maps: xs[0] (N, C, H, W), the others (N, Ci, H, W) -> (N, C, H, W) on their first min(C, Ci) channels.

    v is None, or (len(xs), C) or (len(xs), 1): the factor of each map, per channel or for all.
    """
    y = xs[0].copy() if v is None else xs[0] * v[0].reshape(-1, 1, 1)
    for t, x in enumerate(xs[1:], 1):
        n = min(y.shape[1], x.shape[1])
        y[:, :n] += x[:, :n] if v is None else x[:, :n] * v[t][:n].reshape(-1, 1, 1)
    return y


@op
def shortcut_backward(be: Any, dy: Any, xs: Sequence[Any], v: Any) -> Any:
    """Return (dxs, dv) of `shortcut`: one dx per map, dv of v's shape (None without factors)."""
    C = dy.shape[1]
    dxs = []
    dv = None if v is None else be.zeros(v.shape, dy.dtype)
    for t, x in enumerate(xs):
        n = min(C, x.shape[1])
        if v is None and x.shape[1] == C:
            dxs.append(dy)
            continue
        dx = be.zeros(x.shape, dy.dtype)
        dx[:, :n] = dy[:, :n] if v is None else dy[:, :n] * v[t][:n].reshape(-1, 1, 1)
        dxs.append(dx)
        if v is not None:
            total = (dy[:, :n] * x[:, :n]).sum(axis=(0, 2, 3))
            dv[t, :n] = total if v.shape[1] > 1 else total.sum()
    return tuple(dxs), dv


@op
def sort_shortcut(be: Any, a: Any, b: Any, eps: float, slope: float) -> Any:
    """Second-order response transform: a (N, C, H, W), b (N, Cb, H, W) -> y = a + b + sqrt(max(R(a) R(b), 0) + eps).

    R(x) = x where x > 0, else slope * x; channels of a that b lacks are copied. (Wang et al. 2017, arXiv 1703.06993)
    """
    xp, n = be.xp, min(a.shape[1], b.shape[1])
    y = a.copy()
    p, q = a[:, :n], b[:, :n]
    product = xp.where(p > 0, p, slope * p) * xp.where(q > 0, q, slope * q)
    y[:, :n] += q + xp.sqrt(xp.maximum(product, 0) + eps)
    return y


@op
def sort_shortcut_backward(be: Any, dy: Any, a: Any, b: Any, eps: float, slope: float) -> Any:
    """Return (da, db) of `sort_shortcut`: da = dy (1 + R'(a) R(b) / (2 sqrt(R(a) R(b) + eps))) where R(a) R(b) > 0, else dy.

    The subgradient at a = 0 is taken as 0, as in the authors' own layer.
    """
    xp, n = be.xp, min(a.shape[1], b.shape[1])
    p, q, d = a[:, :n], b[:, :n], dy[:, :n]
    rp, rq = xp.where(p > 0, p, slope * p), xp.where(q > 0, q, slope * q)
    product = rp * rq
    half = xp.where(product > 0, d / (2 * xp.sqrt(xp.maximum(product, 0) + eps)), 0)
    da, db = dy.copy(), be.zeros(b.shape, dy.dtype)
    da[:, :n] += half * rq * xp.where(p > 0, 1, slope)
    db[:, :n] = d + half * rp * xp.where(q > 0, 1, slope)
    return da, db


@op
def scale(be: Any, x: Any, s: Any) -> Any:
    """Multiply x (N, C, H, W) by s: (N, C, 1, 1) per channel, (N, 1, H, W) per pixel, or (N, C, H, W)."""
    return x * s


@op
def scale_backward(be: Any, dy: Any, x: Any, s: Any) -> Any:
    """Return (dx, ds) of `scale`; ds is summed over what s does not distinguish."""
    axes = tuple(i for i in (1, 2, 3) if s.shape[i] == 1 and x.shape[i] > 1)
    ds = dy * x
    return dy * s, ds.sum(axis=axes, keepdims=True) if axes else ds
