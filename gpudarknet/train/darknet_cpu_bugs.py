"""What the original program's CPU build does wrong in classifiers, copied so that steps can be held to its numbers.

It does not mark [avgpool], [connected] and [local] as layers in training. So their deltas are not set to 0 before a step, and add
up from one to the next, unless a convolution comes after them and replaces the delta; and [connected] and [local] never move
their weights.
"""

from __future__ import annotations

import warnings
from typing import Any

from ..errors import TrainWarning
from ..graph import Node
from ..layers.avgpool import AvgPool
from ..layers.base import Layer
from ..layers.connected import Connected
from ..layers.convolutional import Convolutional
from ..layers.dropout import Dropout
from ..layers.local import Local
from ..network import Network
from ..ops import activation

STILL = Connected | Local  # layers whose weights never move


class CpuBuild:
    """The faults in the training of one network. kept: layer -> its delta, which the next step adds to."""

    def __init__(self, net: Network):
        self.net, self.kept, self.warned = net, dict[int, Any](), False

    def still(self, layer: Layer) -> bool:
        """Say whether a layer's weights never move."""
        return isinstance(layer, STILL)

    def keeps(self, node: Node) -> bool:
        """Say whether a layer adds to its old delta. ([dropout] has none of its own.)"""
        after = (n.layer for n in self.net.nodes[node.index + 1 :] if not isinstance(n.layer, Dropout))
        return isinstance(node.layer, AvgPool | STILL) and not isinstance(next(after, None), Convolutional)

    def way(self, node: Node, y: Any, way: Any) -> Any:
        """Give the way back of a layer as this build goes it: the delta is kept, some layers get no gradient."""
        if not isinstance(node.layer, AvgPool | STILL):
            return way
        kind = getattr(node.layer, "activation", "linear")

        def faulty(dy: Any, grad: dict[str, Any]) -> Any:
            if self.keeps(node):
                self.kept[node.index] = activation.apply_backward(self.net.backend, dy, y, y, kind)
            return way(dy, {} if self.still(node.layer) else grad)

        return faulty

    def warn(self) -> None:
        """Say once, to the caller's caller, which layers are trained wrongly."""
        faults = []
        for fault, nodes in (
            ("the deltas of {} add up from step to step", [n for n in self.net.nodes if self.keeps(n)]),
            ("the weights of {} never move", [n for n in self.net.nodes if self.still(n.layer)]),
        ):
            if names := sorted({f"[{node.layer.section}]" for node in nodes}):
                faults.append(fault.format(" and ".join(names)))
        if faults and not self.warned:
            warnings.warn(
                f"{self.net.config.path}: as in Darknet's CPU build, {' and '.join(faults)};"
                " Trainer(net, emulate_darknet_cpu_bugs=False) trains correctly",
                TrainWarning, stacklevel=3,
            )  # fmt: skip
        self.warned = True
