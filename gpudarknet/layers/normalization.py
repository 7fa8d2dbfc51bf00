"""[normalization]: local response normalization (src/normalization_layer.c)."""

from __future__ import annotations

from dataclasses import dataclass

from ..array import Array, ArrayBackend, Arrays
from ..ops import norm
from .base import Backward, ForwardContext, Layer, Shape
from .limits import COUNT


@dataclass(frozen=True, kw_only=True)
class Normalization(Layer, section="normalization", aliases=("lrn",)):
    """Divide by a power of the neighboring channels' sum of squares.   (C, H, W) -> same

    y = x * (kappa + alpha * sum of x^2)^-beta over Darknet's own windows of `size` channels; alpha is not divided by size.
    """

    limits = COUNT.of("size")

    alpha: float = 0.0001
    beta: float = 0.75
    kappa: float = 1.0
    size: int = 5

    def table_row(self, *inputs: Shape) -> tuple[str, str, str]:
        return "lrn", "", str(self.size)

    def forward(self, be: ArrayBackend, w: Arrays, *xs: Array, ctx: ForwardContext) -> tuple[Array, Backward]:
        (x,) = xs
        windows = be.asarray(norm.lrn_windows(x.shape[1], self.size))
        parameters = (self.alpha, self.beta, self.kappa)
        return norm.lrn(be, x, windows, *parameters), lambda dy, grad: (
            norm.lrn_backward(be, dy, x, windows, *parameters),
        )
