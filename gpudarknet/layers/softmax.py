"""[softmax] and [cost]: the ends of classifiers (src/softmax_layer.c, src/cost_layer.c)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..ops import norm
from .base import Layer, Run, Shape, ShapeError
from .files import Tree


@dataclass(frozen=True, kw_only=True)
class Softmax(Layer, section="softmax", aliases=("soft",)):
    """Turn each of `groups` parts of an image's numbers into probabilities.   (C, H, W) -> same

    With a tree, into one distribution per group of siblings. Its delta is made by the loss and passes unchanged.
    """

    unsupported = frozenset({"spatial"})

    groups: int = 1
    temperature: float = 1.0
    tree: Tree | None = None
    noloss: int = 0

    def shape(self, *inputs: Shape) -> Shape:
        C, H, W = inputs[0]
        if self.groups < 1 or C * H * W % self.groups:
            raise ShapeError(f"groups={self.groups} does not divide its {C * H * W} inputs")
        if self.temperature == 0:
            raise ShapeError("temperature must not be 0")
        if self.tree is not None and len(self.tree.names) * self.groups != C * H * W:
            raise ShapeError(f"the tree has {len(self.tree.names)} classes, its input {C * H * W // self.groups}")
        return inputs[0]

    def forward(self, be: Any, w: dict[str, Any], *xs: Any, run: Run) -> tuple[Any, Any]:
        (x,) = xs
        rows = x.reshape(x.shape[0] * self.groups, -1)
        y = norm.softmax(be, rows, self.tree.starts if self.tree else (0,), self.temperature)
        return y.reshape(x.shape), lambda dy, grad: (dy,)


@dataclass(frozen=True, kw_only=True)
class Cost(Layer, section="cost"):
    """Compare with the truth in training. Without one its output is 0, as in Darknet.   (C, H, W) -> same"""

    fallback: ClassVar[dict[str, str]] = {"type": "sse"}

    type: Literal["sse", "masked", "smooth", "l1", "seg", "wgan"] = "sse"
    scale: float = 1.0
    ratio: float = 0.0

    def forward(self, be: Any, w: dict[str, Any], *xs: Any, run: Run) -> tuple[Any, Any]:
        return be.zeros(xs[0].shape, xs[0].dtype), lambda dy, grad: (dy * self.scale,)
