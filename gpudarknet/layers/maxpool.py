"""[maxpool] (src/maxpool_layer.c). The bug of Darknet's AVX build in the first columns of stride-1 pools is not reproduced."""

from __future__ import annotations

from dataclasses import dataclass

from ..array import Array, ArrayBackend, Arrays
from ..ops import pool
from .base import Backward, ForwardContext, Layer, Shape, ShapeError, conv_output_length
from .blocks import blur_pool, blur_pool_shape


@dataclass(frozen=True, kw_only=True)
class Pooling(Layer):
    """The geometry of pooling. `padding` is the total over both sides; half of it comes before the image."""

    stride: int = 1
    stride_x: int = -1  # below 1: stride
    stride_y: int = -1
    size: int = -1  # below 1: stride
    padding: int = -1  # below 0: size - 1

    @property
    def strides(self) -> tuple[int, int]:
        """(vertical, horizontal)"""
        return (
            self.stride_y if self.stride_y > 0 else self.stride,
            self.stride_x if self.stride_x > 0 else self.stride,
        )

    @property
    def window(self) -> int:
        """The side of a window."""
        return self.size if self.size > 0 else self.stride

    @property
    def pad_total(self) -> int:
        """The padding of both sides together."""
        return self.padding if self.padding >= 0 else self.window - 1

    def pooled_shape(self, x: Shape, strides: tuple[int, int]) -> Shape:
        """Return the shape of x pooled with these strides."""
        if min(self.window, *strides) < 1:
            raise ShapeError("size and stride must be at least 1")
        if self.pad_total - self.pad_total // 2 >= self.window:
            raise ShapeError(
                f"padding={self.pad_total} leaves windows of {self.window} without a pixel; use at most {2 * self.window - 2}"
            )
        OH, OW = (conv_output_length(n, self.window, s, self.pad_total) for n, s in zip(x[1:], strides, strict=True))
        return x[0], OH, OW

    def shape(self, *inputs: Shape) -> Shape:
        return self.pooled_shape(inputs[0], self.strides)

    def flops(self, *inputs: Shape) -> float:
        _, OH, OW = self.pooled_shape(inputs[0], self.strides)
        return float(self.window**2 * inputs[0][0] * OH * OW)

    def table_cell(self) -> str:
        """Return size/stride for the layer table."""
        sy, sx = self.strides
        return f"{self.window:2d}x{self.window:2d}/{sx:2d}" + (f"x{sy:2d}" if sx != sy else "")


@dataclass(frozen=True, kw_only=True)
class MaxPool(Pooling, section="maxpool", aliases=("max",)):
    """Pool the maximum of each window.   (C, H, W) -> (C, OH, OW); with maxpool_depth over channels -> (out_channels, H, W)"""

    maxpool_depth: int = 0
    out_channels: int = 1
    antialiasing: int = 0
    maxpool_zero_nonmax: int = 0

    @property
    def pool_strides(self) -> tuple[int, int]:
        """The strides of the pooling itself. With antialiasing, the blur that follows it applies the layer's strides."""
        return (1, 1) if self.antialiasing else self.strides

    def shape(self, *inputs: Shape) -> Shape:
        (x,) = inputs
        if self.maxpool_depth:
            if not 1 <= self.out_channels <= x[0]:
                raise ShapeError(f"out_channels={self.out_channels} must be between 1 and its {x[0]} input channels")
            return self.out_channels, *x[1:]
        C, OH, OW = self.pooled_shape(x, self.pool_strides)
        if self.maxpool_zero_nonmax and (OH, OW) != x[1:]:
            raise ShapeError("maxpool_zero_nonmax needs an output as large as the input; use stride=1")
        return (C, *blur_pool_shape((OH, OW), self.antialiasing, self.strides)) if self.antialiasing else (C, OH, OW)

    def table_row(self, *inputs: Shape) -> tuple[str, str, str]:
        return ("max-depth", str(self.out_channels), "") if self.maxpool_depth else ("max", "", self.table_cell())

    def forward(self, be: ArrayBackend, w: Arrays, *xs: Array, ctx: ForwardContext) -> tuple[Array, Backward]:
        (x,) = xs
        if self.maxpool_depth:
            y = pool.maxpool_depth(be, x, self.out_channels)
            return y, lambda dy, grad: (pool.maxpool_depth_backward(be, dy, x, y),)
        _, C, H, W = x.shape
        _, OH, OW = self.pooled_shape((C, H, W), self.pool_strides)
        y = pool.maxpool(be, x, self.window, self.pool_strides, self.pad_total, OH, OW)
        keep = x == y if self.maxpool_zero_nonmax else None
        if keep is not None:
            y = y * keep
        if self.antialiasing:
            y, blur_backward = blur_pool(be, y, self.antialiasing, self.strides)

        def backward(dy: Array, grad: Arrays) -> tuple[Array | None, ...]:
            if self.antialiasing:
                dy = blur_backward(dy)
            if keep is not None:
                dy = dy * keep
            index = pool.maxpool_argmax(be, x, self.window, self.pool_strides, self.pad_total, OH, OW)
            return (pool.maxpool_backward(be, dy, index, H, W, self.window, self.pool_strides, self.pad_total),)

        return y, backward
