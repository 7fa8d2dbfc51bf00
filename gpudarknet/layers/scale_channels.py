"""[scale_channels]: the scaling of squeeze-and-excitation (src/scale_channels_layer.c)."""

from __future__ import annotations

from dataclasses import dataclass

from ..array import Array, ArrayBackend, Arrays
from ..ops import shortcut
from .base import Activation, Backward, ForwardContext, Layer, Shape, ShapeError, resolve_index
from .blocks import activate


@dataclass(frozen=True, kw_only=True)
class ScaleChannels(Layer, section="scale_channels"):
    """Multiply the map `from` by the previous output.   (C, 1, 1) or, with scale_wh, (1, H, W); (C, H, W) -> (C, H, W)"""

    names_sources = True
    from_: int
    scale_wh: int = 0
    activation: Activation = "linear"

    def sources(self, index: int) -> tuple[int, ...]:
        return index - 1, resolve_index(index, self.from_)

    def shape(self, *inputs: Shape) -> Shape:
        s, x = inputs
        wanted = (1, *x[1:]) if self.scale_wh else (x[0], 1, 1)
        if s != wanted:
            raise ShapeError(
                f"it scales a map (C, H, W) = {x} and needs {wanted} from the layer before it, which has {s}"
            )
        return x

    def table_row(self, *inputs: Shape) -> tuple[str, str, str]:
        return "scale", "", ""

    def forward(self, be: ArrayBackend, w: Arrays, *xs: Array, ctx: ForwardContext) -> tuple[Array, Backward]:
        s, x = xs
        y, back = activate(be, shortcut.scale(be, x, s), self.activation)

        def backward(dy: Array, grad: Arrays) -> tuple[Array | None, ...]:
            dx, ds = shortcut.scale_backward(be, back(dy), x, s)
            return ds, dx

        return y, backward
