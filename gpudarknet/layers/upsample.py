"""[upsample]: nearest-neighbor upsampling (src/upsample_layer.c)."""

from __future__ import annotations

from dataclasses import dataclass

from ..array import Array, ArrayBackend, Arrays
from ..ops import upsample
from .base import Backward, ForwardContext, Layer, Shape, ShapeError


@dataclass(frozen=True, kw_only=True)
class Upsample(Layer, section="upsample"):
    """Repeat every pixel stride x stride times; a negative stride sums blocks instead.   (C, H, W) -> (C, H*s, W*s)"""

    stride: int = 2
    scale: float = 1.0

    def shape(self, *inputs: Shape) -> Shape:
        (C, H, W), s = inputs[0], self.stride
        if s == 0 or (s < 0 and min(H, W) < -s):
            raise ShapeError(f"stride={s} leaves nothing of {W} x {H} pixels")
        return (C, H * s, W * s) if s > 0 else (C, H // -s, W // -s)

    def table_row(self, *inputs: Shape) -> tuple[str, str, str]:
        return ("upsample" if self.stride > 0 else "downsample"), "", f"{abs(self.stride)}x"

    def forward(self, be: ArrayBackend, w: Arrays, *xs: Array, ctx: ForwardContext) -> tuple[Array, Backward]:
        (x,) = xs
        s, (H, W) = abs(self.stride), x.shape[2:]
        if self.stride > 0:
            y = upsample.upsample(be, x, s, self.scale)
            return y, lambda dy, grad: (upsample.downsample(be, dy, s, self.scale),)
        y = upsample.downsample(be, x, s, self.scale)

        def backward(dy: Array, grad: Arrays) -> tuple[Array | None, ...]:
            dx = be.zeros(x.shape, dy.dtype)
            dx[:, :, : H // s * s, : W // s * s] = upsample.upsample(be, dy, s, self.scale)
            return (dx,)

        return y, backward
