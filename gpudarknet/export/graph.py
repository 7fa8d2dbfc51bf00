"""A builder for ONNX graphs: one call per node, constants by value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

OPSET = 13  # the oldest with all required operators, for the widest support


class Graph:
    """Nodes and constants. Values are referred to by name; scalars and arrays become constants.

    dtype: float32 or float16, of all values between the input and the outputs.
    """

    def __init__(self, dtype: DTypeLike = np.float32):
        self.dtype = np.dtype(dtype)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._constant_names: dict[tuple[Any, ...], str] = {}
        self._prefix, self._count = "", 0

    def begin_scope(self, prefix: str) -> None:
        """Prefix the names of the following nodes, for example by their layer."""
        self._prefix, self._count = prefix, 0

    def op(self, kind: str, *inputs: ArrayLike, **attributes: Any) -> str:
        """Add a node; return the name of its output. Inputs are names, scalars or arrays."""
        import onnx

        self._count += 1
        name = f"{self._prefix}/{kind}_{self._count}"
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        self.nodes.append(onnx.helper.make_node(kind, names, [name], name=name, **attributes))
        return name

    def constant(self, value: ArrayLike, dtype: DTypeLike | None = None) -> str:
        """Add a constant: floats in the graph's type or `dtype`, integers as int64. Equal small constants are added once."""
        import onnx

        array = np.asarray(value)
        array = array.astype(dtype or (np.int64 if array.dtype.kind in "iu" else self.dtype))
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= 64 else (len(self.constants),)
        if key not in self._constant_names:
            name = f"{self._prefix}/constant_{len(self.constants)}"
            self.constants.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
            self._constant_names[key] = name
        return self._constant_names[key]

    def reshape(self, x: str, *shape: int) -> str:
        """Reshape each image of x: (N, ...) -> (N, *shape)."""
        return self.op("Reshape", x, np.array([0, *shape]))

    def slice(self, x: str, axis: int, begin: int, end: int, step: int = 1) -> str:
        """Slice x from begin to end along an axis."""
        return self.op("Slice", x, np.array([begin]), np.array([end]), np.array([axis]), np.array([step]))

    def concat(self, xs: Sequence[str], axis: int) -> str:
        """Concatenate values along an axis."""
        return xs[0] if len(xs) == 1 else self.op("Concat", *xs, axis=axis)

    def pad(self, x: str, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> str:
        """Pad x with `value`; `before` and `after` have a size for every axis."""
        return self.op("Pad", x, np.array([*before, *after]), float(value))

    def scale(self, x: str, factor: float) -> str:
        """Multiply x by a factor; a factor of 1 adds no node."""
        return x if factor == 1 else self.op("Mul", x, float(factor))
