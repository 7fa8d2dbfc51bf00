"""OpenCV's layers of a Darknet section: up to three, each with a name that scripts refer to.

`[convolutional]` number 7 with batch norm and leaky becomes conv_7, bn_7 and leaky_8; `[yolo]` number 16 becomes permute_16
and yolo_16. Sections that OpenCV cannot read keep their own name: reorg3d_5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..array import Array, ArrayBackend, Arrays
from ..graph import Node
from ..layers import DetectionHead, ForwardContext, Layer
from ..layers.avgpool import AvgPool
from ..layers.connected import Connected
from ..layers.convolutional import Convolutional
from ..layers.crop import Crop
from ..layers.dropout import Dropout
from ..layers.gaussian_yolo import GaussianYolo
from ..layers.maxpool import MaxPool
from ..layers.region import Region
from ..layers.reorg import Reorg
from ..layers.route import Route
from ..layers.sam import Sam
from ..layers.scale_channels import ScaleChannels
from ..layers.shortcut import Shortcut
from ..layers.softmax import Cost, Softmax
from ..layers.upsample import Upsample
from ..layers.yolo import Yolo

NAMES: dict[type[Layer], tuple[str, str]] = {  # class -> OpenCV's name (without the number) and type
    AvgPool: ("avgpool", "Pooling"),
    Connected: ("fullyConnected", "InnerProduct"),
    Convolutional: ("conv", "Convolution"),
    Cost: ("identity", "Identity"),
    Crop: ("crop", "Slice"),
    Dropout: ("identity", "Identity"),
    GaussianYolo: ("yolo", "Region"),
    MaxPool: ("pool", "Pooling"),
    Region: ("detection_out", "Region"),
    Reorg: ("reorg", "Reorg"),
    Sam: ("sam", "Eltwise"),
    ScaleChannels: ("scale_channels", "Scale"),
    Shortcut: ("shortcut", "Eltwise"),
    Softmax: ("softmax", "Softmax"),
    Upsample: ("upsample", "Resize"),
    Yolo: ("yolo", "Region"),
}
ACTIVATIONS = {
    "leaky": "ReLU",
    "logistic": "Sigmoid",
    "mish": "Mish",
    "relu": "ReLU",
    "relu6": "ReLU6",
    "swish": "Swish",
    "tanh": "TanH",
}
# compute(be, the section's weights, its sources' outputs) -> output
Compute = Callable[[ArrayBackend, Arrays, list[Array]], Array]


@dataclass(frozen=True)
class Sublayer:
    """One of OpenCV's layers. `compute` returns its output; None: it is the output of the whole section.

    blobs: names of the section's arrays that belong to it, in OpenCV's order.
    """

    name: str
    kind: str
    compute: Compute | None = None
    blobs: tuple[str, ...] = ()


def sublayers(node: Node) -> list[Sublayer]:
    """Return OpenCV's layers of a section, in its order. The last one is the section's own output."""
    layer, i = node.layer, node.index
    if type(layer) not in NAMES and not isinstance(layer, Route):
        return [Sublayer(f"{layer.section}_{i}", type(layer).__name__)]
    name, kind = route(layer) if isinstance(layer, Route) else NAMES[type(layer)]
    layers = []
    if isinstance(layer, DetectionHead):
        layers.append(Sublayer(f"permute_{i}", "Permute", permute))
    normalized = bool(getattr(layer, "batch_normalize", 0))
    own = ("kernel",) if normalized else ("kernel", "bias")
    main = Sublayer(name if isinstance(layer, Region) else f"{name}_{i}", kind, up_to(layer, batch_normalize=0), own)
    layers.append(main)
    if normalized:
        layers.append(Sublayer(f"bn_{i}", "BatchNorm", up_to(layer), ("mean", "variance", "scale", "bias")))
    activation = getattr(layer, "activation", "linear")
    if activation != "linear":
        layers.append(Sublayer(f"{activation}_{i + 1}", ACTIVATIONS.get(activation, activation)))
    return [*layers[:-1], replace(layers[-1], compute=None)]


def route(layer: Route) -> tuple[str, str]:
    """Return OpenCV's name and type for a [route]: concatenation, slice or identity."""
    if len(layer.layers) > 1:
        return "concat", "Concat"
    return ("slice", "Slice") if layer.groups > 1 else ("identity", "Identity")


def permute(be: ArrayBackend, w: Arrays, xs: list[Array]) -> Array:
    """Transpose to channels-last, (N, C, H, W) -> (N, H, W, C), the input of OpenCV's Region layer."""
    return xs[0].transpose(0, 2, 3, 1)


def up_to(layer: Layer, **fields: Any) -> Compute:
    """Return a function that runs a layer without its activation; with batch_normalize=0, without its batch norm too."""
    fields = {k: v for k, v in {"activation": "linear", "antialiasing": 0, **fields}.items() if hasattr(layer, k)}
    truncated = replace(layer, **fields)

    def compute(be: ArrayBackend, w: Arrays, xs: list[Array]) -> Array:
        if "scale" in w and "batch_normalize" in fields:  # the bias comes after the batch norm
            w = {**w, "bias": be.zeros(w["bias"].shape)}
        return truncated.forward(be, w, *xs, ctx=ForwardContext())[0]

    return compute


def blobs(layer: Layer, sublayer: Sublayer, w: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return a sublayer's arrays in OpenCV's layout: vectors as (1, n); a Region layer's are its anchors."""
    if sublayer.kind == "Region" and hasattr(layer, "anchor_sizes"):
        used = getattr(layer, "anchor_ids", slice(None))
        return [layer.anchor_sizes()[used if isinstance(used, slice) else list(used)].reshape(1, -1)]
    arrays = [w[name] for name in sublayer.blobs if name in w]
    return [a.reshape(1, -1) if a.ndim == 1 else a for a in arrays]
