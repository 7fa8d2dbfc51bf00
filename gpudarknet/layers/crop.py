"""[crop]: the center of the image, in training a random part; values from -1 to 1 (src/crop_layer.c)."""

from __future__ import annotations

from dataclasses import dataclass

from ..array import Array, ArrayBackend, Arrays
from .base import Backward, ForwardContext, Layer, Shape, ShapeError
from .limits import COUNT


@dataclass(frozen=True, kw_only=True)
class Crop(Layer, section="crop"):
    """Cut out crop_height x crop_width pixels, and map [0, 1] to [-1, 1] unless noadjust.   (C, H, W) -> (C, CH, CW)

    Training draws one position and flip for the whole batch, as Darknet's CPU build does. Angle, saturation and exposure,
    which its CUDA build changes here, are left to the data loader.
    """

    ignored = frozenset({"angle", "saturation", "exposure", "shift"})

    limits = COUNT.of("crop_height", "crop_width")

    crop_height: int = 1
    crop_width: int = 1
    flip: int = 0
    noadjust: int = 0

    def shape(self, *inputs: Shape) -> Shape:
        C, H, W = inputs[0]
        if self.crop_height > H or self.crop_width > W:
            raise ShapeError(f"crop {self.crop_width} x {self.crop_height} does not fit into {W} x {H}")
        return C, self.crop_height, self.crop_width

    def table_row(self, *inputs: Shape) -> tuple[str, str, str]:
        return "crop", "", f"{self.crop_width} x {self.crop_height}"

    def forward(self, be: ArrayBackend, w: Arrays, *xs: Array, ctx: ForwardContext) -> tuple[Array, Backward]:
        (x,) = xs
        H, W = x.shape[2:]
        top, left, flip = (H - self.crop_height) // 2, (W - self.crop_width) // 2, False
        if ctx.train:
            top = int(ctx.rng.integers(0, H - self.crop_height + 1))
            left = int(ctx.rng.integers(0, W - self.crop_width + 1))
            flip = bool(self.flip and ctx.rng.random() < 0.5)
        y = x[:, :, top : top + self.crop_height, left : left + self.crop_width]
        y = y[:, :, :, ::-1] if flip else y
        y = be.xp.ascontiguousarray(y) if self.noadjust else 2 * y - 1

        def backward(dy: Array, grad: Arrays) -> tuple[Array | None, ...]:
            dx = be.zeros(x.shape, dy.dtype)
            part = dy[:, :, :, ::-1] if flip else dy
            dx[:, :, top : top + self.crop_height, left : left + self.crop_width] = part if self.noadjust else 2 * part
            return (dx,)

        return y, backward
