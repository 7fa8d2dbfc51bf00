"""OpenCV-compatible API: OpenCV 4's `Layer`, a view of one layer of a `Net`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .arguments import text
from .errors import NetError, raises_opencv_errors
from .replacement import ReplacementMeta

INPUT = "_input"  # the name of layer 0


@raises_opencv_errors
class Layer(metaclass=ReplacementMeta):
    """The result of `Net.getLayer`, a view of that `net`: name, type, preferableTarget and blobs, the arrays of a layer.

    Reading `blobs` copies them; assigning a sequence of arrays changes the network.
    """

    def __init__(self, net: Any, layer_id: int):
        self._net, self._id = net, layer_id

    @property
    def name(self) -> str:
        """The layer's name."""
        return self._net._layers[self._id - 1].name if self._id else INPUT

    @property
    def type(self) -> str:
        """The layer's type, such as Convolution; empty for layer 0, the input."""
        return self._net._layers[self._id - 1].kind if self._id else ""

    @property
    def preferableTarget(self) -> int:
        """The target that the network was given."""
        return self._net._preferable["target"]

    @property
    def blobs(self) -> tuple[np.ndarray, ...]:
        """Copies of the layer's arrays, in OpenCV's order."""
        return self._net._blobs(self._id)

    @blobs.setter
    def blobs(self, arrays: Sequence[np.ndarray]) -> None:
        for k, array in enumerate(arrays):
            self._net.setParam(self._id, k, array)

    def outputNameToIndex(self, outputName: str) -> int:
        """Return the index of an output: 0, or for layer 0 the position of the input's name, -1 for other names."""
        name, names = text(outputName), self._net._input_names
        return 0 if self._id else names.index(name) if name in names else -1

    def empty(self) -> bool:
        """Return False."""
        return False

    def getDefaultName(self) -> str:
        """Return what all layers have in common in OpenCV: my_object."""
        return "my_object"

    def clear(self) -> None:
        """No-op."""

    def finalize(self, inputs: Sequence[Any], outputs: Sequence[Any] | None = None) -> tuple[()]:
        """No-op: layers keep nothing that depends on their inputs."""
        return ()

    def run(self, inputs: Any, internals: Any, outputs: Any = None) -> None:
        """Raise NetError: a layer has no run of its own; see Net.forward."""
        raise NetError(f"run: {self.name} runs as part of its network; use net.forward('{self.name}')")
