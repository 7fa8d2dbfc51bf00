"""[batchnorm]: batch norm without an activation (src/batchnorm_layer.c)."""

from __future__ import annotations

from dataclasses import dataclass

from ..array import Array, ArrayBackend, Arrays
from .base import Backward, ForwardContext, Layer, Shape, Weight, ones, zeros
from .blocks import batch_norm


@dataclass(frozen=True, kw_only=True)
class BatchNorm(Layer, section="batchnorm"):
    """Normalize each channel.   (C, H, W) -> same.   w: bias, scale, mean, variance (C,)"""

    def weights(self, *inputs: Shape) -> list[Weight]:
        C = inputs[0][0]
        return [("bias", (C,), zeros), ("scale", (C,), ones), ("mean", (C,), zeros), ("variance", (C,), zeros)]

    def forward(self, be: ArrayBackend, w: Arrays, *xs: Array, ctx: ForwardContext) -> tuple[Array, Backward]:
        y, back = batch_norm(be, w, xs[0], ctx)
        return y, lambda dy, grad: (back(dy, grad),)
