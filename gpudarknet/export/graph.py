"""An ONNX graph while it grows: nodes by one call each, constants by value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

OPSET = 13  # the oldest that has every operator needed, so that most readers know it


class Graph:
    """Nodes and constants. Values are known by their names; numbers become constants of the graph's type.

    dtype: float32 or float16, of all values between the input and the outputs.
    """

    def __init__(self, dtype: Any = np.float32):
        self.dtype = np.dtype(dtype)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._known: dict[tuple[Any, ...], str] = {}
        self._prefix, self._count = "", 0

    def inside(self, prefix: str) -> None:
        """Begin a layer: the names of what follows begin with `prefix`."""
        self._prefix, self._count = prefix, 0

    def op(self, kind: str, *inputs: Any, **attributes: Any) -> str:
        """Add a node and return the name of its output. Inputs are names, numbers or arrays."""
        import onnx

        self._count += 1
        name = f"{self._prefix}/{kind}_{self._count}"
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        self.nodes.append(onnx.helper.make_node(kind, names, [name], name=name, **attributes))
        return name

    def constant(self, value: Any, dtype: Any = None) -> str:
        """Add a constant, once for equal small ones: floats in the graph's type or `dtype`, integers as int64."""
        import onnx

        array = np.asarray(value)
        array = array.astype(dtype or (np.int64 if array.dtype.kind in "iu" else self.dtype))
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= 64 else (len(self.constants),)
        if key not in self._known:
            name = f"{self._prefix}/constant_{len(self.constants)}"
            self.constants.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
            self._known[key] = name
        return self._known[key]

    # What several layers need

    def reshape(self, x: str, *shape: int) -> str:
        """Give each image of x another shape; the batch stays as it is. (N, ...) -> (N, *shape)"""
        return self.op("Reshape", x, np.array([0, *shape]))

    def part(self, x: str, axis: int, begin: int, end: int, step: int = 1) -> str:
        """Take begin to end along an axis."""
        return self.op("Slice", x, np.array([begin]), np.array([end]), np.array([axis]), np.array([step]))

    def concat(self, xs: Sequence[str], axis: int) -> str:
        """Join values along an axis."""
        return xs[0] if len(xs) == 1 else self.op("Concat", *xs, axis=axis)

    def pad(self, x: str, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> str:
        """Put a border of `value` around x; `before` and `after` name every axis."""
        return self.op("Pad", x, np.array([*before, *after]), float(value))

    def times(self, x: str, factor: float) -> str:
        """Multiply by a number; nothing for 1."""
        return x if factor == 1 else self.op("Mul", x, float(factor))
