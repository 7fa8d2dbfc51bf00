"""[reorg], YOLOv2's passthrough, and [reorg3d], plain space-to-depth (src/reorg_old_layer.c, src/reorg_layer.c)."""

from __future__ import annotations

from dataclasses import dataclass

from ..array import Array, ArrayBackend, Arrays
from ..ops import reorg
from .base import Backward, ForwardContext, Layer, Shape, ShapeError
from .limits import COUNT


@dataclass(frozen=True, kw_only=True)
class Reorg(Layer, section="reorg"):
    """Rearrange pixels and channels as YOLOv2 does.   (C, H, W) -> (C*s*s, H/s, W/s), reverse: (C/s/s, H*s, W*s)

    Not space-to-depth of the input: Darknet passes wrong dimensions to its index map, which amounts to viewing the input as
    (C/s/s, H*s, W*s), applying space-to-depth, and viewing the result as (C*s*s, H/s, W/s).
    """

    limits = COUNT.of("stride")

    stride: int = 1
    reverse: int = 0

    def shape(self, *inputs: Shape) -> Shape:
        (C, H, W), s = inputs[0], self.stride
        if C % (s * s) or (not self.reverse and (H % s or W % s)):
            raise ShapeError(f"stride={s} must divide the width and height {W} x {H}, and its square the {C} channels")
        return (C // (s * s), H * s, W * s) if self.reverse else (C * s * s, H // s, W // s)

    def table_row(self, *inputs: Shape) -> tuple[str, str, str]:
        return "reorg_old", "", f"/ {self.stride}"

    def forward(self, be: ArrayBackend, w: Arrays, *xs: Array, ctx: ForwardContext) -> tuple[Array, Backward]:
        (x,) = xs
        s, xs_, (N, C, H, W) = self.stride, x.shape, x.shape
        if self.reverse:
            y = reorg.depth_to_space(be, x, s)
            return y, lambda dy, grad: (reorg.space_to_depth(be, dy, s),)
        large, small = (N, C // (s * s), H * s, W * s), (N, C * s * s, H // s, W // s)
        y = reorg.space_to_depth(be, x.reshape(large), s).reshape(small)
        return y, lambda dy, grad: (reorg.depth_to_space(be, dy.reshape(xs_), s).reshape(xs_),)


@dataclass(frozen=True, kw_only=True)
class Reorg3d(Layer, section="reorg3d"):
    """Move s x s blocks of pixels into channels.   (C, H, W) -> (C*s*s, H/s, W/s), reverse: (C/s/s, H*s, W*s)

    Its reverse is not the inverse: Darknet views the input in the output's shape, then applies depth-to-space.
    """

    limits = COUNT.of("stride")

    stride: int = 1
    reverse: int = 0

    def shape(self, *inputs: Shape) -> Shape:
        (C, H, W), s = inputs[0], self.stride
        if C % s**4 if self.reverse else (H % s or W % s):
            raise ShapeError(
                f"stride={s} must divide the width and height {W} x {H}; with reverse, its fourth power the {C} channels"
            )
        return (C // (s * s), H * s, W * s) if self.reverse else (C * s * s, H // s, W // s)

    def table_row(self, *inputs: Shape) -> tuple[str, str, str]:
        return "reorg", "", f"/ {self.stride}"

    def forward(self, be: ArrayBackend, w: Arrays, *xs: Array, ctx: ForwardContext) -> tuple[Array, Backward]:
        (x,) = xs
        s, (N, C, H, W) = self.stride, x.shape
        if not self.reverse:
            y = reorg.space_to_depth(be, x, s)
            return y, lambda dy, grad: (reorg.depth_to_space(be, dy, s),)
        large = (N, C // (s * s), H * s, W * s)
        wide = reorg.depth_to_space(be, x.reshape(large), s)
        y = wide.reshape(large)
        return y, lambda dy, grad: (reorg.space_to_depth(be, dy.reshape(wide.shape), s).reshape(x.shape),)
