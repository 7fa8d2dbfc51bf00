"""Put an ONNX model together: input, layers, outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import BackendError
from ..graph import Node
from ..layers import Shape
from . import heads as decode
from .graph import OPSET, Graph
from .lower import Arrays, lower

INPUT = "input"  # (N, C, H, W), RGB, 0 to 1
Outputs = dict[str, tuple[str, tuple[int, ...]]]  # output -> name of its value, shape of one image


def model(
    nodes: Sequence[Node], weights: Sequence[Arrays], heads: Sequence[int], shape: Shape, title: str = "network",
    batch: int | None = 1, half: bool = False, boxes: bool = False,
) -> Any:  # fmt: skip
    """Make an ONNX model (onnx.ModelProto) of layers that take images of `shape` (C, H, W); see `onnx_model`."""
    onnx = package()
    g = Graph(np.float16 if half else np.float32)
    g.inside("input")
    values = {-1: g.op("Cast", INPUT, to=onnx.TensorProto.FLOAT16) if half else INPUT}
    needed = reached(nodes, heads)
    for node in nodes:
        if node.index in needed:
            g.inside(f"layer_{node.index}")
            xs = (values[source] for source in node.sources)
            values[node.index] = lower(node.layer, g, weights[node.index], node, *xs)
    found = [nodes[index] for index in heads]
    outputs = read_boxes(g, found, values, shape) if boxes else raw(found, values)
    g.inside("output")
    named = []
    for name, (value, size) in outputs.items():
        kind, more = ("Cast", {"to": onnx.TensorProto.FLOAT}) if half else ("Identity", {})
        g.nodes.append(onnx.helper.make_node(kind, [value], [name], **more))
        named.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [batch or "N", *size]))
    taken = onnx.helper.make_tensor_value_info(INPUT, onnx.TensorProto.FLOAT, [batch or "N", *shape])
    made = onnx.helper.make_model(
        onnx.helper.make_graph(g.nodes, title, [taken], named, g.constants),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)], producer_name="gpudarknet", ir_version=8,
    )  # fmt: skip
    onnx.checker.check_model(made)
    return made


def package() -> Any:
    """Import onnx. Raises BackendError where it is missing."""
    try:
        import onnx
        import onnx.numpy_helper
    except ImportError:
        raise BackendError('export: the package onnx is not installed; pip install "gpudarknet[onnx]"') from None
    return onnx


def reached(nodes: Sequence[Node], heads: Sequence[int]) -> set[int]:
    """Return the layers that the heads depend on."""
    found: set[int] = set()
    waiting = list(heads)
    while waiting:
        index = waiting.pop()
        if index >= 0 and index not in found:
            found.add(index)
            waiting += nodes[index].sources
    return found


def raw(heads: Sequence[Node], values: dict[int, str]) -> Outputs:
    """Name the heads' outputs."""
    return {f"layer_{node.index}": (values[node.index], node.shape) for node in heads}


def read_boxes(g: Graph, heads: Sequence[Node], values: dict[int, str], shape: Shape) -> Outputs:
    """Add nodes that read boxes off all heads and join them."""
    found = []
    for node in heads:
        g.inside(f"boxes_{node.index}")
        found.append(decode.boxes(node.layer, g, node, shape[2], shape[1], values[node.index]))
    g.inside("boxes")
    where, scores, counts, classes = zip(*found, strict=True)
    K = sum(counts)
    return {"boxes": (g.concat(where, 1), (K, 4)), "scores": (g.concat(scores, 1), (K, classes[0]))}
