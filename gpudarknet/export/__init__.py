"""Export networks as ONNX files, for ONNX Runtime, TensorRT, OpenCV 5 and others. Needs the extra `onnx`.

    from gpudarknet import load_network
    from gpudarknet.export import write_onnx
    write_onnx(load_network("yolov4.cfg", "yolov4.weights"), "yolov4.onnx", boxes=True)

Batch norm is folded into the convolutions, weighted shortcuts keep their weights; all operators are standard ones of opset 13.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

from ..detector import labels
from ..errors import DataError
from ..io.atomic import atomic_write
from ..layers import DetectionHead
from ..network import Network
from . import fastest as fastest  # registers the executors
from .model import build_model, import_onnx

__all__ = ["onnx_model", "write_onnx"]


def write_onnx(
    network: Network, path: str | Path, batch: int | None = 1, half: bool = False, boxes: bool = False,
    names: Sequence[str] | None = None,
) -> None:  # fmt: skip
    """Write a network as an ONNX file, atomically. See `onnx_model` for its contents. Raises DataError too."""
    model = onnx_model(network, batch, half, boxes, names)
    with atomic_write(path, DataError) as tmp:
        tmp.write_bytes(model.SerializeToString())


def onnx_model(
    network: Network, batch: int | None = 1, half: bool = False, boxes: bool = False, names: Sequence[str] | None = None
) -> Any:
    """Convert a network to an ONNX model (onnx.ModelProto).

    Input: `input`, float32 (N, C, H, W), RGB, 0 to 1. Outputs: one per head, named layer_NUMBER, as `predict` returns them; or
    with `boxes` two for all heads: `boxes` (N, K, 4), center x, y, width, height relative to the input, and `scores`
    (N, K, classes), objectness times class probability, before thresholding and NMS. batch: the batch size, None for any.
    half: compute in float16 between the input and the outputs. names: of the classes, for the metadata.

    Metadata as ultralytics writes them: names ({0: 'person', ...}), task (detect or classify), imgsz ([height, width]), stride,
    batch, channels. Raises DataError if there are fewer names than classes, BackendError if the package onnx is not installed,
    CfgError for layers that have no ONNX lowering or keep state between images.
    """
    title = Path(network.config.path).stem
    weights = [
        {name: network.backend.to_numpy(a) for name, a in own.items() if hasattr(a, "dtype")} for own in network.weights
    ]
    model = build_model(network.nodes, weights, network.heads, network.net.input, title, batch, half, boxes)
    import_onnx().helper.set_model_props(model, metadata(network, batch, names))
    return model


def metadata(network: Network, batch: int | None, names: Sequence[str] | None = None) -> dict[str, str]:
    """Return the metadata of a network's ONNX model. Raises DataError if there are fewer names than classes."""
    last = network.nodes[network.heads[-1]]
    if isinstance(last.layer, DetectionHead):
        task, classes = "detect", last.layer.num_labels
        stride = max(network.height // network.nodes[index].shape[1] for index in network.heads)
    else:
        task, classes, stride = "classify", prod(last.shape), 1
    facts = {
        "description": f"{Path(network.config.path).stem}, by gpudarknet",
        "task": task,
        "names": dict(enumerate(labels(names, classes, "names", network.config.path)[:classes])),
        "imgsz": [network.height, network.width],
        "stride": stride,
        "batch": batch or 1,
        "channels": network.channels,
    }
    return {key: str(value) for key, value in facts.items()}
