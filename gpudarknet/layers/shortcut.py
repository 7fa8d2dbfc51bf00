"""[shortcut]: residual connections (src/shortcut_layer.c)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ..array import Array, ArrayBackend, Arrays
from ..ops import shortcut
from .base import (
    Activation,
    Backward,
    ForwardContext,
    Layer,
    Shape,
    Weight,
    accumulate,
    ones,
    resolve_index,
    size_mismatch_warning,
)
from .blocks import activate
from .limits import Diagnostic


@dataclass(frozen=True, kw_only=True)
class Shortcut(Layer, section="shortcut"):
    """Add earlier outputs to the previous one.   (C, H, W), n x (Ci, H, W) -> (C, H, W)

    Maps with other channel counts are added on the common channels; weights_type gives each map learned factors.
    w: weight (n+1, C) or (n+1, 1) with weights_type; row 0 belongs to the previous layer, row t+1 to from[t].
    """

    names_sources = True
    grad_clip = 1.0
    from_: tuple[int, ...]
    activation: Activation = "linear"
    weights_type: Literal["none", "per_feature", "per_layer", "per_channel"] = "none"
    weights_normalization: Literal["none", "relu", "avg_relu", "softmax"] = "none"

    def sources(self, index: int) -> tuple[int, ...]:
        return index - 1, *(resolve_index(index, layer) for layer in self.from_)

    def diagnostics(self) -> Iterator[Diagnostic]:
        yield from super().diagnostics()
        if self.weights_type != "none" and self.weights_normalization == "none":
            yield Diagnostic(
                "weights_type",
                f"weights_type={self.weights_type} needs weights_normalization=relu or softmax; Darknet refuses it too",
            )

    def shape_warning(self, *inputs: Shape) -> str | None:
        return size_mismatch_warning(inputs)

    def weights(self, *inputs: Shape) -> list[Weight]:
        if self.weights_type == "none":
            return []
        return [("weight", (len(inputs), inputs[0][0] if self.weights_type == "per_channel" else 1), ones)]

    def flops(self, *inputs: Shape) -> float:
        C, H, W = inputs[0]
        return float(C * H * W * len(self.from_)) * (1 if self.weights_type == "none" else 2)

    def forward(self, be: ArrayBackend, w: Arrays, *xs: Array, ctx: ForwardContext) -> tuple[Array, Backward]:
        v = None if self.weights_type == "none" else normalize_weights(be, w["weight"], self.weights_normalization)
        z = shortcut.shortcut(be, xs, v)
        y, back = activate(be, z, self.activation)

        def backward(dy: Array, grad: Arrays) -> tuple[Array | None, ...]:
            dxs, dv = shortcut.shortcut_backward(be, back(dy), xs, v)
            if v is not None:  # like Darknet's CUDA build, only the diagonal of the normalization's Jacobian
                accumulate(grad, "weight", dv * (v * (1 - v) if self.weights_normalization == "softmax" else v))
            return dxs

        return y, backward


def normalize_weights(be: ArrayBackend, weight: Array, kind: str) -> Array:
    """Normalize factors (n, C) over the n maps: relu: r / (1e-4 + sum r) with r = max(w, 0.001); softmax likewise."""
    xp = be.xp
    r = xp.exp(weight - weight.max(axis=0, keepdims=True)) if kind == "softmax" else xp.maximum(weight, 0.001)
    return (r / (1e-4 + r.sum(axis=0, keepdims=True))).astype(weight.dtype)
