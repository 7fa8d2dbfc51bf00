"""Networks as ONNX files, for ONNX Runtime, TensorRT, OpenCV 5 and others. Needs the extra `onnx`.

    from gpudarknet import load_network
    from gpudarknet.export import write_onnx
    write_onnx(load_network("yolov4.cfg", "yolov4.weights"), "yolov4.onnx", boxes=True)

Batch norm is folded into the convolutions, weighted shortcuts keep their weights, and all is plain operators of opset 13.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BackendError, DataError
from ..files import atomic
from ..network import Network
from . import heads
from .graph import OPSET, Graph
from .lower import lower

INPUT = "input"  # (N, C, H, W), RGB, 0 to 1


def write_onnx(
    network: Network, path: str | Path, batch: int | None = 1, half: bool = False, boxes: bool = False
) -> None:
    """Write a network as an ONNX file, whole or not at all. See `onnx_model` for what it holds. Raises DataError too."""
    model = onnx_model(network, batch, half, boxes)
    try:
        with atomic(path) as beside:
            beside.write_bytes(model.SerializeToString())
    except OSError as e:
        raise DataError(f"{path}: cannot be written ({e.strerror}); check the folder and the disk") from None


def onnx_model(network: Network, batch: int | None = 1, half: bool = False, boxes: bool = False) -> Any:
    """Make an ONNX model (onnx.ModelProto) of a network.

    Input: `input`, float32 (N, C, H, W), RGB, 0 to 1. Outputs: one for each head, named layer_NUMBER, as `predict` gives
    them; or with `boxes` two: `boxes` (N, K, 4), centre x, y, width, height relative to the input, and `scores`
    (N, K, classes), objectness times class, of all heads, neither thresholded nor suppressed. batch: how many images at a
    time, None for any number. half: compute in float16 between the input and the outputs.

    Raises BackendError without the package onnx, CfgError for layers that remember earlier images.
    """
    onnx = package()
    g = Graph(np.float16 if half else np.float32)
    g.inside("input")
    values = {-1: g.op("Cast", INPUT, to=onnx.TensorProto.FLOAT16) if half else INPUT}
    needed = reached(network)
    for node in network.nodes:
        if node.index in needed:
            g.inside(f"layer_{node.index}")
            values[node.index] = lower(
                node.layer, g, arrays(network, node.index), node, *(values[source] for source in node.sources)
            )
    outputs = read_boxes(network, g, values) if boxes else raw(network, values)
    g.inside("output")
    named = []
    for name, (value, shape) in outputs.items():
        cast = "Cast" if half else "Identity"
        g.nodes.append(onnx.helper.make_node(cast, [value], [name], **({"to": onnx.TensorProto.FLOAT} if half else {})))
        named.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [batch or "N", *shape]))
    taken = onnx.helper.make_tensor_value_info(INPUT, onnx.TensorProto.FLOAT, [batch or "N", *network.net.input])
    graph = onnx.helper.make_graph(g.nodes, Path(network.config.path).stem, [taken], named, g.constants)
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], producer_name="gpudarknet", ir_version=8
    )
    onnx.checker.check_model(model)
    return model


def package() -> Any:
    """Import onnx. Raises BackendError where it is missing."""
    try:
        import onnx
        import onnx.numpy_helper
    except ImportError:
        raise BackendError('export: the package onnx is not installed; pip install "gpudarknet[onnx]"') from None
    return onnx


def reached(network: Network) -> set[int]:
    """Return the layers that the heads depend on."""
    found: set[int] = set()
    waiting = list(network.heads)
    while waiting:
        index = waiting.pop()
        if index >= 0 and index not in found:
            found.add(index)
            waiting += network.nodes[index].sources
    return found


def arrays(network: Network, index: int) -> dict[str, np.ndarray]:
    """Return a layer's arrays as NumPy."""
    own = network.weights[index].items()
    return {name: network.backend.to_numpy(a) for name, a in own if hasattr(a, "dtype")}


Outputs = dict[str, tuple[str, tuple[int, ...]]]  # output -> name of its value, shape of one image


def raw(network: Network, values: dict[int, str]) -> Outputs:
    """Name the heads' outputs."""
    return {f"layer_{index}": (values[index], network.nodes[index].shape) for index in network.heads}


def read_boxes(network: Network, g: Graph, values: dict[int, str]) -> Outputs:
    """Add nodes that read boxes off all heads and join them."""
    found = []
    for index in network.heads:
        g.inside(f"boxes_{index}")
        node = network.nodes[index]
        found.append(heads.boxes(node.layer, g, node, network.width, network.height, values[index]))
    g.inside("boxes")
    where, scores, counts, classes = zip(*found, strict=True)
    K = sum(counts)
    return {"boxes": (g.concat(where, 1), (K, 4)), "scores": (g.concat(scores, 1), (K, classes[0]))}
