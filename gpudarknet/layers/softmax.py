"""[softmax] and [cost]: outputs and losses of classifiers (src/softmax_layer.c, src/cost_layer.c)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from ..array import Array, ArrayBackend, Arrays
from ..ops import norm
from .base import Backward, ForwardContext, Layer, LossContext, Shape, ShapeError
from .class_tree import Tree
from .limits import COUNT, Limit

IGNORE_LABEL = -1234.0  # truth value of classes without a label, which have no loss


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

    def loss(self, x: np.ndarray, y: np.ndarray, truth: np.ndarray, ctx: LossContext) -> tuple[float, np.ndarray]:
        """Cross entropy: delta = t - p, with respect to the layer's input; cost = sum of -log p where t is not 0."""
        if self.noloss:
            return 0.0, np.zeros_like(y)
        t = truth.reshape(y.shape).astype(np.float32)
        labelled = t != IGNORE_LABEL
        with np.errstate(divide="ignore"):
            cost = -np.log(y[labelled & (t != 0)], dtype=np.float64).sum()
        return float(cost), np.where(labelled, t - y, 0)


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

    def loss(self, x: np.ndarray, y: np.ndarray, truth: np.ndarray, ctx: LossContext) -> tuple[float, np.ndarray]:
        """sse: delta = t - x, cost = sum of delta^2; smooth: delta is clipped to +-1; masked: both are 0 where t is -1234."""
        t = truth.reshape(x.shape).astype(np.float32)
        error = np.where(t == IGNORE_LABEL, 0, t - x) if self.type == "masked" else t - x
        if self.type == "smooth":
            size = np.abs(error)
            cost = np.where(size < 1, error * error, 2 * size - 1)
            return float(cost.sum(dtype=np.float64)), np.clip(error, -1, 1)
        return float((error * error).sum(dtype=np.float64)), error
