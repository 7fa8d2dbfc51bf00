"""Join feature maps along their channels, and take them apart again (src/route_layer.c)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..op import op


@op
def concat(be: Any, xs: Sequence[Any], groups: int, group_id: int) -> Any:
    """Join slice group_id of `groups` equal channel slices of each x (N, Ci, H, W) -> (N, sum Ci // groups, H, W)."""
    parts = []
    for x in xs:
        n = x.shape[1] // groups
        parts.append(x[:, group_id * n : (group_id + 1) * n])
    return be.xp.concatenate(parts, axis=1) if len(parts) > 1 or groups > 1 else parts[0]


@op
def split(be: Any, dy: Any, channels: tuple[int, ...], groups: int, group_id: int) -> Any:
    """Undo `concat`: dy (N, sum Ci // groups, H, W) -> one (N, Ci, H, W) per source, zero outside its slice."""
    N, _, H, W = dy.shape
    dxs, start = [], 0
    for C in channels:
        n = C // groups
        dx = be.zeros((N, C, H, W), dy.dtype)
        dx[:, group_id * n : (group_id + 1) * n] = dy[:, start : start + n]
        dxs.append(dx)
        start += n
    return tuple(dxs)
