"""The builder through which `lower` adds a layer's steps to a plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..array import Arrays
from ..graph import Node
from ..layers import Layer, Shape
from .steps import (
    Activate,
    Add,
    Convolve,
    Copy,
    EpilogueOp,
    FeatureMap,
    LayerCall,
    MaxPool,
    Multiply,
    SortShortcut,
    Step,
    Upsample,
    YoloHead,
)


class Builder:
    """Each method adds at most one step and returns the result's map. node, w: the layer being lowered, and its arrays."""

    def __init__(self, input: FeatureMap) -> None:
        self.input = input
        self.steps: list[Step] = []
        self.node: Node
        self.w: Arrays

    def add_step(
        self,
        kind: type[Step],
        xs: tuple[FeatureMap, ...],
        shape: Shape,
        epilogue: Sequence[EpilogueOp] = (),
        **fields: Any,
    ) -> FeatureMap:
        """Add a step that writes a new map of this shape; linear activations are left out of the epilogue."""
        y = FeatureMap(shape)
        ops = [op for op in epilogue if not (isinstance(op, Activate) and op.kind == "linear")]
        self.steps.append(kind(layers=(self.node.index,), xs=xs, y=y, epilogue=ops, **fields))
        return y

    def convolve(
        self, x: FeatureMap, size: int, strides: tuple[int, int], dilation: int, pad: int, groups: int, activation: str
    ) -> FeatureMap:
        """Convolve x with the layer's arrays, including batch norm, and activate."""
        geometry = {"size": size, "strides": strides, "dilation": dilation, "pad": pad, "groups": groups}
        return self.add_step(Convolve, (x,), self.node.shape, [Activate(activation)], w=self.w, **geometry)

    def maxpool(self, x: FeatureMap, size: int, strides: tuple[int, int], padding: int) -> FeatureMap:
        """Max-pool x."""
        return self.add_step(MaxPool, (x,), self.node.shape, size=size, strides=strides, padding=padding)

    def upsample(self, x: FeatureMap, s: int, scale: float) -> FeatureMap:
        """Repeat every pixel s x s times, multiplied by scale."""
        return self.add_step(Upsample, (x,), self.node.shape, s=s, scale=scale)

    def yolo(self, x: FeatureMap, A: int, scale_x_y: float, new_coords: int) -> FeatureMap:
        """Apply the activations of a [yolo] layer."""
        return self.add_step(YoloHead, (x,), self.node.shape, A=A, scale_x_y=scale_x_y, new_coords=new_coords)

    def activate(self, x: FeatureMap, activation: str) -> FeatureMap:
        """Apply an activation."""
        return self.add_step(Copy, (x,), x.shape, [Activate(activation)])

    def add(self, a: FeatureMap, others: Sequence[FeatureMap], activation: str) -> FeatureMap:
        """Add maps of the same shape, and activate."""
        return self.add_step(Copy, (a,), a.shape, [*map(Add, others), Activate(activation)])

    def sort_shortcut(self, a: FeatureMap, b: FeatureMap, eps: float, slope: float, activation: str) -> FeatureMap:
        """Add two maps of the same shape and their SORT term, and activate."""
        return self.add_step(Copy, (a,), a.shape, [SortShortcut(b, eps, slope), Activate(activation)])

    def multiply(self, a: FeatureMap, b: FeatureMap, activation: str) -> FeatureMap:
        """Multiply a by b, which has a's shape or (C, 1, 1) or (1, H, W), and activate."""
        return self.add_step(Copy, (a,), a.shape, [Multiply(b), Activate(activation)])

    def channels(self, x: FeatureMap, start: int, count: int) -> FeatureMap:
        """Return some channels of x, as a view."""
        return x if count == x.shape[0] else FeatureMap((count, *x.shape[1:]), x, start)

    def concat(self, xs: Sequence[FeatureMap]) -> FeatureMap:
        """Concatenate maps along their channels.

        Their producers write into the result; only a view, the input, or a map that is already part of another concatenation
        is copied.
        """
        if len(xs) == 1:
            return xs[0]
        y = FeatureMap((sum(x.shape[0] for x in xs), *xs[0].shape[1:]))
        start = 0
        for x in xs:
            if x.base is None and x is not self.input:
                x.base, x.base_offset = y, start
            else:
                self.steps.append(Copy(layers=(self.node.index,), xs=(x,), y=FeatureMap(x.shape, y, start)))
            start += x.shape[0]
        return y

    def call_layer(self, layer: Layer, *xs: FeatureMap) -> FeatureMap:
        """Fall back to the layer's `forward`."""
        return self.add_step(LayerCall, xs, self.node.shape, layer=layer, w=self.w)
