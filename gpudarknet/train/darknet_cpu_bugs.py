"""Bugs of Darknet's CPU build when it trains classifiers, emulated so that recordings of it can be reproduced.

It does not mark [avgpool], [connected] and [local] as trained layers. Their deltas are therefore not zeroed before a step and
accumulate over steps, unless a convolution follows and overwrites them; and [connected] and [local] never update their weights.
"""

from __future__ import annotations

from ..array import Array, Arrays
from ..graph import Node
from ..layers.base import Backward
from ..network import Network
from ..ops import activation


class DarknetCpuBugs:
    """The bugs that affect one network. kept_deltas: layer -> its delta, to which the next step adds."""

    def __init__(self, net: Network):
        self.net, self.kept_deltas = net, dict[int, Array]()

    def frozen_by_bug(self, node: Node) -> bool:
        """Return whether the weights of a layer are never updated."""
        return node.layer.cpu_delta == "kept" and bool(self.net.weights[node.index])

    def accumulates_delta(self, node: Node) -> bool:
        """Return whether a layer adds to its delta of the previous step."""
        later = (n.layer.cpu_delta for n in self.net.nodes[node.index + 1 :] if n.layer.cpu_delta != "shared")
        return node.layer.cpu_delta == "kept" and next(later, None) != "overwrites_input"

    def wrap(self, node: Node, y: Array, backward: Backward) -> Backward:
        """Return the backward function of a layer with output y as this build runs it: delta kept, no gradient if frozen."""
        if node.layer.cpu_delta != "kept":
            return backward
        kind = getattr(node.layer, "activation", "linear")

        def buggy_backward(dy: Array, grad: Arrays) -> tuple[Array | None, ...]:
            if self.accumulates_delta(node):
                self.kept_deltas[node.index] = activation.apply_backward(self.net.backend, dy, y, y, kind)
            return backward(dy, {} if self.frozen_by_bug(node) else grad)

        return buggy_backward
