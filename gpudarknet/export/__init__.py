"""Export networks as ONNX files, for ONNX Runtime, TensorRT, OpenCV 5 and others. Needs the extra `onnx`.

    from gpudarknet import load_network
    from gpudarknet.export import write_onnx
    write_onnx(load_network("yolov4.cfg", "yolov4.weights"), "yolov4.onnx", boxes=True)

Batch norm is folded into the convolutions, weighted shortcuts keep their weights; all operators are standard ones of opset 13.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import DataError
from ..io.atomic import atomic_write
from ..network import Network
from .fastest import engines
from .model import build_model

__all__ = ["engines", "onnx_model", "write_onnx"]


def write_onnx(
    network: Network, path: str | Path, batch: int | None = 1, half: bool = False, boxes: bool = False
) -> None:
    """Write a network as an ONNX file, atomically. See `onnx_model` for its contents. Raises DataError too."""
    model = onnx_model(network, batch, half, boxes)
    with atomic_write(path, DataError) as tmp:
        tmp.write_bytes(model.SerializeToString())


def onnx_model(network: Network, batch: int | None = 1, half: bool = False, boxes: bool = False) -> Any:
    """Convert a network to an ONNX model (onnx.ModelProto).

    Input: `input`, float32 (N, C, H, W), RGB, 0 to 1. Outputs: one per head, named layer_NUMBER, as `predict` returns them; or
    with `boxes` two for all heads: `boxes` (N, K, 4), center x, y, width, height relative to the input, and `scores`
    (N, K, classes), objectness times class probability, before thresholding and NMS. batch: the batch size, None for any.
    half: compute in float16 between the input and the outputs.

    Raises BackendError if the package onnx is not installed, CfgError for layers that have no ONNX lowering or keep state
    between images.
    """
    title = Path(network.config.path).stem
    weights = [
        {name: network.backend.to_numpy(a) for name, a in own.items() if hasattr(a, "dtype")} for own in network.weights
    ]
    return build_model(network.nodes, weights, network.heads, network.net.input, title, batch, half, boxes)
