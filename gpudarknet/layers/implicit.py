"""[implicit]: learned values that depend on no input (src/representation_layer.c)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..array import Array, ArrayBackend, Arrays
from .base import Backward, ForwardContext, Layer, Shape, Weight, accumulate, reduce_sum
from .limits import COUNT


@dataclass(frozen=True, kw_only=True)
class Implicit(Layer, section="implicit"):
    """Output the same learned map for every image.   nothing -> (filters, atoms, 1).   w: weight (filters, atoms, 1)"""

    weight_decay_params = ("weight",)

    limits = COUNT.of("filters", "atoms")

    mean: float = 0.0
    std: float = 0.2
    filters: int = 128
    atoms: int = 1

    def shape(self, *inputs: Shape) -> Shape:
        return self.filters, self.atoms, 1

    def weights(self, *inputs: Shape) -> list[Weight]:
        def fill(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
            return (self.mean + rng.uniform(-self.std, self.std, shape)).astype(np.float32)

        return [("weight", (self.filters, self.atoms, 1), fill)]

    def table_row(self, *inputs: Shape) -> tuple[str, str, str]:
        return "implicit", str(self.filters), ""

    def forward(self, be: ArrayBackend, w: Arrays, *xs: Array, ctx: ForwardContext) -> tuple[Array, Backward]:
        weight = w["weight"].astype(xs[0].dtype, copy=False)
        y = be.xp.ascontiguousarray(be.xp.broadcast_to(weight, (xs[0].shape[0], *weight.shape)))

        def backward(dy: Array, grad: Arrays) -> tuple[Array | None, ...]:
            accumulate(grad, "weight", reduce_sum(dy, axis=0))
            return (None,)

        return y, backward
