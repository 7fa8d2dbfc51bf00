"""Build an ONNX model: input, layers, outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..array import Arrays
from ..errors import BackendError
from ..graph import Node
from ..layers import Shape
from . import heads as decoders
from .graph import OPSET, Graph
from .lower import lower

INPUT = "input"  # (N, C, H, W), RGB, 0 to 1
Outputs = dict[str, tuple[str, tuple[int, ...]]]  # output -> name of its value, shape per image


def build_model(
    nodes: Sequence[Node], weights: Sequence[Arrays], heads: Sequence[int], shape: Shape, title: str = "network",
    batch: int | None = 1, half: bool = False, boxes: bool = False,
) -> Any:  # fmt: skip
    """Build an ONNX model (onnx.ModelProto) of layers for images of `shape` (C, H, W); see `onnx_model`."""
    onnx = import_onnx()
    g = Graph(np.float16 if half else np.float32)
    g.begin_scope("input")
    values = {-1: g.op("Cast", INPUT, to=onnx.TensorProto.FLOAT16) if half else INPUT}
    needed = required_layers(nodes, heads)
    for node in nodes:
        if node.index in needed:
            g.begin_scope(f"layer_{node.index}")
            xs = (values[source] for source in node.sources)
            values[node.index] = lower(node.layer, g, weights[node.index], node, *xs)
    head_nodes = [nodes[index] for index in heads]
    outputs = box_outputs(g, head_nodes, values, shape) if boxes else raw_outputs(head_nodes, values)
    g.begin_scope("output")
    output_infos = []
    for name, (value, size) in outputs.items():
        kind, attributes = ("Cast", {"to": onnx.TensorProto.FLOAT}) if half else ("Identity", {})
        g.nodes.append(onnx.helper.make_node(kind, [value], [name], **attributes))
        output_infos.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [batch or "N", *size]))
    input_info = onnx.helper.make_tensor_value_info(INPUT, onnx.TensorProto.FLOAT, [batch or "N", *shape])
    model = onnx.helper.make_model(
        onnx.helper.make_graph(g.nodes, title, [input_info], output_infos, g.constants),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)], producer_name="gpudarknet", ir_version=8,
    )  # fmt: skip
    onnx.checker.check_model(model)
    return model


def import_onnx() -> Any:
    """Import onnx. Raises BackendError if it is not installed."""
    try:
        import onnx
        import onnx.numpy_helper
    except ImportError:
        raise BackendError('export: the package onnx is not installed; pip install "gpudarknet[onnx]"') from None
    return onnx


def required_layers(nodes: Sequence[Node], heads: Sequence[int]) -> set[int]:
    """Return the indices of the layers that the heads depend on."""
    required: set[int] = set()
    pending = list(heads)
    while pending:
        index = pending.pop()
        if index >= 0 and index not in required:
            required.add(index)
            pending += nodes[index].sources
    return required


def raw_outputs(heads: Sequence[Node], values: dict[int, str]) -> Outputs:
    """Name the heads' outputs."""
    return {f"layer_{node.index}": (values[node.index], node.shape) for node in heads}


def box_outputs(g: Graph, heads: Sequence[Node], values: dict[int, str], shape: Shape) -> Outputs:
    """Add nodes that decode the boxes of all heads and concatenate them."""
    decoded = []
    for node in heads:
        g.begin_scope(f"boxes_{node.index}")
        decoded.append(decoders.decode_boxes(node.layer, g, node, shape[2], shape[1], values[node.index]))
    g.begin_scope("boxes")
    boxes, scores, counts, classes = zip(*decoded, strict=True)
    K = sum(counts)
    return {"boxes": (g.concat(boxes, 1), (K, 4)), "scores": (g.concat(scores, 1), (K, classes[0]))}
