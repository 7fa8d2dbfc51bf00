"""[sort_shortcut]: a residual connection with a second-order term (Wang et al. 2017, arXiv 1703.06993)."""

from __future__ import annotations

from dataclasses import dataclass

from ..array import Array, ArrayBackend, Arrays
from ..ops import shortcut
from .base import Activation, Backward, ForwardContext, Layer, Shape, ShapeError, resolve_index, size_mismatch_warning
from .blocks import activate
from .limits import Limit


@dataclass(frozen=True, kw_only=True)
class SortShortcut(Layer, section="sort_shortcut"):
    """Add two maps and the root of their product: y = a + b + sqrt(R(a) R(b) + eps).   (C, H, W), (Cb, H, W) -> (C, H, W)

    The second-order response transform: a is the previous layer, b is `from`, R is ReLU with negative slope `slope`. If a or
    b is not positive, y is their sum plus sqrt(eps). The authors' layer has eps 0.01; the default here, 0.0001, is that of
    the discussion.
    """

    names_sources = True
    # eps bounds the gradient, which is 1 / (2 sqrt(eps)) at zero
    limits = Limit("must be above 0 and finite", lambda v: 0 < v < float("inf")).of("eps")

    from_: tuple[int, ...]
    activation: Activation = "linear"
    eps: float = 1e-4
    slope: float = 0.0

    def sources(self, index: int) -> tuple[int, ...]:
        return index - 1, *(resolve_index(index, layer) for layer in self.from_)

    def shape(self, *inputs: Shape) -> Shape:
        if len(inputs) != 2:
            raise ShapeError(
                f"from names {len(inputs) - 1} layers; the transform is of two maps, so name exactly one", "from"
            )
        return inputs[0]

    def shape_warning(self, *inputs: Shape) -> str | None:
        return size_mismatch_warning(inputs)

    def flops(self, *inputs: Shape) -> float:
        C, H, W = inputs[0]
        return 3.0 * C * H * W

    def table_row(self, *inputs: Shape) -> tuple[str, str, str]:
        return "sort", "", ""

    def forward(self, be: ArrayBackend, w: Arrays, *xs: Array, ctx: ForwardContext) -> tuple[Array, Backward]:
        a, b = xs
        y, back = activate(be, shortcut.sort_shortcut(be, a, b, self.eps, self.slope), self.activation)
        return y, lambda dy, grad: shortcut.sort_shortcut_backward(be, back(dy), a, b, self.eps, self.slope)
