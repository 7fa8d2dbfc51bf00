"""OpenCV's FLOPs of its layers: it counts activations and batch norms too, and ignores the groups of a convolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from ..layers import Layer
from ..layers.avgpool import AvgPool

Shape = tuple[int, ...]
Count = Callable[[Any, Sequence[Shape], Shape], int]  # count(section's layer, input shapes, output shape) -> FLOPs


def pooling(layer: Any, inputs: Sequence[Shape], output: Shape) -> int:
    """Return the FLOPs of a Pooling layer: one per value of a window, or two per mean."""
    return prod(output) * (2 if isinstance(layer, AvgPool) else layer.window**2)


FLOPS: dict[str, Count] = {  # by type; all others cost nothing
    "BatchNorm": lambda layer, inputs, output: 3 * prod(output),
    "Convolution": lambda layer, inputs, output: prod(output) * (2 * layer.size**2 * inputs[0][1] + 1),
    "Eltwise": lambda layer, inputs, output: len(inputs) * prod(inputs[0]),
    "InnerProduct": lambda layer, inputs, output: 3 * prod(inputs[0][1:]) * prod(output),
    "Mish": lambda layer, inputs, output: 3 * prod(output),
    "Pooling": pooling,
    "Region": lambda layer, inputs, output: 60 * sum(map(prod, inputs)),
    "ReLU": lambda layer, inputs, output: prod(output),
    "Reorg": lambda layer, inputs, output: 21 * prod(output),
    "Scale": lambda layer, inputs, output: 2 * sum(map(prod, inputs)),
    "Sigmoid": lambda layer, inputs, output: 3 * prod(output),
    "Softmax": lambda layer, inputs, output: 4 * prod(output),
    "Swish": lambda layer, inputs, output: 3 * prod(output),
    "TanH": lambda layer, inputs, output: prod(output),
}


def flops(kind: str, layer: Layer, inputs: Sequence[Shape], output: Shape) -> int:
    """Return the FLOPs of an OpenCV layer of a section."""
    return FLOPS[kind](layer, inputs, output) if kind in FLOPS else 0
