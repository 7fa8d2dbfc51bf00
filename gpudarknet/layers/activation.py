"""[activation]: an activation alone (src/activation_layer.c)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .base import Activation as Kind
from .base import ForwardContext, Layer
from .blocks import activate


@dataclass(frozen=True, kw_only=True)
class Activation(Layer, section="activation"):
    """Activate.   (C, H, W) -> same"""

    activation: Kind = "linear"

    def forward(self, be: Any, w: dict[str, Any], *xs: Any, ctx: ForwardContext) -> tuple[Any, Any]:
        y, back = activate(be, xs[0], self.activation)
        return y, lambda dy, grad: (back(dy),)
