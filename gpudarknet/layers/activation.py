"""[activation]: an activation alone (src/activation_layer.c)."""

from __future__ import annotations

from dataclasses import dataclass

from ..array import Array, ArrayBackend, Arrays
from .base import Activation as Kind
from .base import Backward, ForwardContext, Layer
from .blocks import activate


@dataclass(frozen=True, kw_only=True)
class Activation(Layer, section="activation"):
    """Activate.   (C, H, W) -> same"""

    activation: Kind = "linear"

    def forward(self, be: ArrayBackend, w: Arrays, *xs: Array, ctx: ForwardContext) -> tuple[Array, Backward]:
        y, back = activate(be, xs[0], self.activation)
        return y, lambda dy, grad: (back(dy),)
