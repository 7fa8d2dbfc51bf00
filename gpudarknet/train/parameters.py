"""All trained weights of a network in one vector, so that sums, updates and checks are few operations on long arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..array import Array, Arrays
from ..graph import owner
from ..network import Network

STATISTICS = ("mean", "variance")  # batch norm's, which have no gradient
ALIGNMENT = 16  # elements


class Segment(NamedTuple):
    """Where a weight of a layer is in the vectors: elements `start` to `stop`."""

    layer: int
    name: str
    start: int
    stop: int


class Parameters:
    """The layout of vectors that hold something for every trained weight: the weights themselves, gradients, moments.

    The arrays of the network's weights become views of the vector `weights`. Layers that share weights have one segment, that of
    their owner. hwio: store kernels (F, C, size, size) in the order (size, size, C, F).
    """

    def __init__(self, net: Network, hwio: bool):
        self.net, self.hwio = net, hwio
        self.segments: list[Segment] = []
        self.shapes: dict[Segment, tuple[int, ...]] = {}
        end = 0
        for node in net.nodes:
            for name, a in net.weights[node.index].items() if owner(node) == node.index else ():
                if is_trainable(name, a):
                    segment = Segment(node.index, name, end, end + a.size)
                    self.segments.append(segment)
                    self.shapes[segment] = a.shape
                    end = -(-segment.stop // ALIGNMENT) * ALIGNMENT
        self.size = end
        self.weights, views = self.zeros()
        for segment in self.segments:
            own, view = net.weights[segment.layer], views[segment.layer][segment.name]
            view[...] = own[segment.name]
            own[segment.name] = view

    def zeros(self) -> tuple[Array, list[Arrays]]:
        """Return a new vector of zeros, and its views: for each layer, name -> array of the weight's shape."""
        vector = self.net.backend.zeros((self.size,))
        return vector, self.views(vector)

    def views(self, vector: Array) -> list[Arrays]:
        """Return the views of a vector: for each layer, name -> array of the weight's shape."""
        views: list[Arrays] = [{} for _ in self.net.nodes]
        for segment, shape in self.shapes.items():
            a = vector[segment.start : segment.stop]
            if self.hwio and len(shape) == 4:
                a = a.reshape(shape[2], shape[3], shape[1], shape[0]).transpose(3, 2, 0, 1)
            else:
                a = a.reshape(shape)
            views[segment.layer][segment.name] = a
        return [views[owner(node)] for node in self.net.nodes]


def is_trainable(name: str, a: Any) -> bool:
    """Return whether one of a layer's weights is trained; recurrent layers also store their state, a list, among them."""
    return hasattr(a, "dtype") and not name.endswith(STATISTICS)


class PairwiseSum:
    """The sum of vectors, added in a fixed tree over their numbers, however they arrive in order: ((0 + 1) + (2 + 3)) + ...

    Any aligned block of 2^k vectors has a sum of its own in the tree, so whoever computes it gets the same bits.
    add(a, b): adds b to a.
    """

    def __init__(self, add: Callable[[Array, Array], None]):
        self.add = add
        self.levels: list[Array | None] = []  # level k: the sum of 2^k vectors

    def push(self, vector: Array) -> None:
        """Add the next vector; it is copied."""
        k, carry = 0, vector.copy()
        while k < len(self.levels) and (left := self.levels[k]) is not None:
            self.add(left, carry)
            carry, self.levels[k], k = left, None, k + 1
        self.levels[k : k + 1] = [carry]

    def total(self) -> Array:
        """Return the sum; the vectors that remain are added from the last to the first."""
        rest: Sequence[Array] = [v for v in self.levels if v is not None]
        sum = rest[0]
        for left in rest[1:]:
            self.add(left, sum)
            sum = left
        return sum
