"""[softmax] and [cost]: outputs and losses of classifiers (src/softmax_layer.c, src/cost_layer.c)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..array import Array, ArrayBackend, Arrays
from ..ops import norm
from ..ops.losses import cost_loss, softmax_loss
from .base import Backward, ForwardContext, Layer, LossContext, Shape, ShapeError
from .class_tree import Tree
from .limits import COUNT, Limit


@dataclass(frozen=True, kw_only=True)
class Softmax(Layer, section="softmax", aliases=("soft",)):
    """Turn an image's values, in `groups` equal parts, into probabilities.   (C, H, W) -> same

    With a tree, one distribution per group of siblings. The delta of its loss is with respect to its input.
    """

    has_loss = True
    unsupported = frozenset({"spatial"})

    limits = COUNT.of("groups") | Limit("must not be 0", bool).of("temperature")

    groups: int = 1
    temperature: float = 1.0
    tree: Tree | None = None
    noloss: int = 0

    def shape(self, *inputs: Shape) -> Shape:
        C, H, W = inputs[0]
        if C * H * W % self.groups:
            raise ShapeError(f"groups={self.groups} does not divide its {C * H * W} inputs", "groups")
        if self.tree is not None and len(self.tree.names) * self.groups != C * H * W:
            raise ShapeError(
                f"the tree has {len(self.tree.names)} classes, its input {C * H * W // self.groups}", "tree"
            )
        return inputs[0]

    def forward(self, be: ArrayBackend, w: Arrays, *xs: Array, ctx: ForwardContext) -> tuple[Array, Backward]:
        (x,) = xs
        rows = x.reshape(x.shape[0] * self.groups, -1)
        y = norm.softmax(be, rows, self.tree.starts if self.tree else (0,), self.temperature)
        return y.reshape(x.shape), lambda dy, grad: (dy,)

    def loss(self, be: ArrayBackend, x: Array, y: Array, truth: Array, ctx: LossContext) -> tuple[Array, Array]:
        """Cross entropy: delta = t - p, with respect to the layer's input; cost = sum of -log p where t is not 0."""
        if self.noloss:
            return be.zeros((1,)), be.xp.zeros_like(y)
        return softmax_loss(be, y, truth, ctx.loss_scale(be))


@dataclass(frozen=True, kw_only=True)
class Cost(Layer, section="cost"):
    """Compare with the truth in training. Its output is 0, as in Darknet without a truth.   (C, H, W) -> same"""

    has_output = False
    has_loss = True
    loss_reads_input = True
    fallback: ClassVar[dict[str, str]] = {"type": "sse"}
    ignored = frozenset({"ratio"})

    type: Literal["sse", "masked", "smooth"] = "sse"
    scale: float = 1.0

    def forward(self, be: ArrayBackend, w: Arrays, *xs: Array, ctx: ForwardContext) -> tuple[Array, Backward]:
        return be.zeros(xs[0].shape, xs[0].dtype), lambda dy, grad: (dy * self.scale,)

    def loss(self, be: ArrayBackend, x: Array, y: Array, truth: Array, ctx: LossContext) -> tuple[Array, Array]:
        """sse: delta = t - x, cost = sum of delta^2; smooth: delta is clipped to +-1; masked: both are 0 where t is -1234."""
        return cost_loss(be, x, truth, ctx.loss_scale(be), self.type)
