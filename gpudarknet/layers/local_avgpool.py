"""[local_avgpool]: average pooling (src/maxpool_layer.c)."""

from __future__ import annotations

from dataclasses import dataclass

from ..array import Array, ArrayBackend, Arrays
from ..ops import pool
from .base import Backward, ForwardContext, Shape
from .maxpool import Pooling


@dataclass(frozen=True, kw_only=True)
class LocalAvgPool(Pooling, section="local_avgpool", aliases=("local_avg",)):
    """Average each window, without padding.   (C, H, W) -> (C, OH, OW)"""

    def table_row(self, *inputs: Shape) -> tuple[str, str, str]:
        return "avg", "", self.table_cell()

    def forward(self, be: ArrayBackend, w: Arrays, *xs: Array, ctx: ForwardContext) -> tuple[Array, Backward]:
        (x,) = xs
        _, C, H, W = x.shape
        _, OH, OW = self.pooled_shape((C, H, W), self.strides)
        window = (self.window, self.strides, self.pad_total)
        y = pool.local_avgpool(be, x, *window, OH, OW)
        return y, lambda dy, grad: (pool.local_avgpool_backward(be, dy, H, W, *window),)
