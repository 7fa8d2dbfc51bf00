"""[sam]: multiplication by a spatial attention map (src/sam_layer.c)."""

from __future__ import annotations

from dataclasses import dataclass

from ..array import Array, ArrayBackend, Arrays
from ..ops import shortcut
from .base import Activation, Backward, ForwardContext, Layer, Shape, ShapeError, resolve_index
from .blocks import activate


@dataclass(frozen=True, kw_only=True)
class Sam(Layer, section="sam"):
    """Multiply the previous output by `from`, element by element.   (C, H, W), (C, H, W) -> (C, H, W)"""

    names_sources = True
    from_: int
    activation: Activation = "linear"

    def sources(self, index: int) -> tuple[int, ...]:
        return index - 1, resolve_index(index, self.from_)

    def shape(self, *inputs: Shape) -> Shape:
        if inputs[0] != inputs[1]:
            raise ShapeError(f"its inputs differ: (C, H, W) = {inputs[0]} and {inputs[1]}")
        return inputs[0]

    def table_row(self, *inputs: Shape) -> tuple[str, str, str]:
        return "sam", "", ""

    def forward(self, be: ArrayBackend, w: Arrays, *xs: Array, ctx: ForwardContext) -> tuple[Array, Backward]:
        a, b = xs
        y, back = activate(be, shortcut.scale(be, a, b), self.activation)
        return y, lambda dy, grad: shortcut.scale_backward(be, back(dy), a, b)
