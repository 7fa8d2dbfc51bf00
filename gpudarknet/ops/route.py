"""Concatenate feature maps along channels, and split them again (src/route_layer.c)."""

from __future__ import annotations

from collections.abc import Sequence

from ..array import Array, ArrayBackend, KernelBackend
from .base import op


@op
def concat(be: ArrayBackend, xs: Sequence[Array], groups: int, group_id: int) -> Array:
    """Concatenate slice group_id of `groups` equal channel slices of each x (N, Ci, H, W) -> (N, sum Ci // groups, H, W)."""
    parts = []
    for x in xs:
        n = x.shape[1] // groups
        parts.append(x[:, group_id * n : (group_id + 1) * n])
    return be.xp.concatenate(parts, axis=1) if len(parts) > 1 or groups > 1 else parts[0]


@concat.kernel
def concat_cuda(be: KernelBackend, xs: Sequence[Array], groups: int, group_id: int) -> Array:
    if len(xs) == 1 and groups == 1:
        return xs[0]
    N, _, H, W = xs[0].shape
    K = sum(x.shape[1] // groups for x in xs)
    y, to = be.empty((N, K, H, W), xs[0].dtype), 0
    for x in xs:
        C = x.shape[1]
        F = C // groups
        n = N * F * H * W
        be.launch("route.copy_channels", n, x, y, n, H * W, F, C, group_id * F, K, to)
        to += F
    return y


@op
def split(be: ArrayBackend, dy: Array, channels: tuple[int, ...], groups: int, group_id: int) -> tuple[Array, ...]:
    """Return the gradients of `concat`: dy (N, sum Ci // groups, H, W) -> (N, Ci, H, W) per source, 0 outside its slice."""
    N, _, H, W = dy.shape
    dxs, start = [], 0
    for C in channels:
        n = C // groups
        dx = be.zeros((N, C, H, W), dy.dtype)
        dx[:, group_id * n : (group_id + 1) * n] = dy[:, start : start + n]
        dxs.append(dx)
        start += n
    return tuple(dxs)


@split.kernel
def split_cuda(
    be: KernelBackend, dy: Array, channels: tuple[int, ...], groups: int, group_id: int
) -> tuple[Array, ...]:
    N, K, H, W = dy.shape
    dxs, start = [], 0
    for C in channels:
        F = C // groups
        dx = be.empty((N, C, H, W), dy.dtype)
        be.launch("route.spread_channels", dx.size, dy, dx, dx.size, H * W, F, K, start, C, group_id * F)
        dxs.append(dx)
        start += F
    return tuple(dxs)
