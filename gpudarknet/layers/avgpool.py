"""[avgpool]: global average pooling (src/avgpool_layer.c)."""

from __future__ import annotations

from dataclasses import dataclass

from ..array import Array, ArrayBackend, Arrays
from ..ops import pool
from .base import Backward, ForwardContext, Layer, Shape


@dataclass(frozen=True, kw_only=True)
class AvgPool(Layer, section="avgpool", aliases=("avg",)):
    """Average every channel.   (C, H, W) -> (C, 1, 1)"""

    cpu_delta = "kept"

    def shape(self, *inputs: Shape) -> Shape:
        return inputs[0][0], 1, 1

    def table_row(self, *inputs: Shape) -> tuple[str, str, str]:
        return "avg", "", ""

    def forward(self, be: ArrayBackend, w: Arrays, *xs: Array, ctx: ForwardContext) -> tuple[Array, Backward]:
        H, W = xs[0].shape[2:]
        return pool.avgpool(be, xs[0]), lambda dy, grad: (pool.avgpool_backward(be, dy, H, W),)
