"""A Darknet layer in OpenCV's words: OpenCV makes up to three layers of one section, each with a name that scripts ask for.

`[convolutional]` number 7 with batch norm and leaky is conv_7, bn_7 and leaky_8; `[yolo]` number 16 is permute_16 and
yolo_16. Sections that OpenCV cannot read keep their own name: reorg3d_5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

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

WORDS: dict[type[Layer], tuple[str, str]] = {  # class -> OpenCV's name (a number follows) and type
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
Compute = Callable[[Any, dict[str, Any], list[Any]], Any]  # be, the section's weights, its sources' outputs -> output


@dataclass(frozen=True)
class Part:
    """One of OpenCV's layers. `compute` makes its output; None: it is the output of the whole section.

    blobs: which of the section's arrays belong to it, in OpenCV's order.
    """

    name: str
    kind: str
    compute: Compute | None = None
    blobs: tuple[str, ...] = ()


def parts(node: Node) -> list[Part]:
    """Return what OpenCV makes of a section, in its order. The last part is the section's own output."""
    layer, i = node.layer, node.index
    if type(layer) not in WORDS and not isinstance(layer, Route):
        return [Part(f"{layer.section}_{i}", type(layer).__name__)]
    word, kind = route(layer) if isinstance(layer, Route) else WORDS[type(layer)]
    found = []
    if isinstance(layer, DetectionHead):
        found.append(Part(f"permute_{i}", "Permute", permuted))
    normalised = bool(getattr(layer, "batch_normalize", 0))
    own = ("kernel",) if normalised else ("kernel", "bias")
    main = Part(word if isinstance(layer, Region) else f"{word}_{i}", kind, cut(layer, batch_normalize=0), own)
    found.append(main)
    if normalised:
        found.append(Part(f"bn_{i}", "BatchNorm", cut(layer), ("mean", "variance", "scale", "bias")))
    activation = getattr(layer, "activation", "linear")
    if activation != "linear":
        found.append(Part(f"{activation}_{i + 1}", ACTIVATIONS.get(activation, activation)))
    return [*found[:-1], replace(found[-1], compute=None)]


def route(layer: Route) -> tuple[str, str]:
    """Return OpenCV's name and type for a [route]: it joins, slices, or only passes on."""
    if len(layer.layers) > 1:
        return "concat", "Concat"
    return ("slice", "Slice") if layer.groups > 1 else ("identity", "Identity")


def permuted(be: Any, w: dict[str, Any], xs: list[Any]) -> Any:
    """Put channels last, (N, C, H, W) -> (N, H, W, C): what OpenCV hands to its Region layer."""
    return xs[0].transpose(0, 2, 3, 1)


def cut(layer: Layer, **stop: Any) -> Compute:
    """Return a function that runs a layer only up to its activation, or with batch_normalize=0 up to its batch norm."""
    stop = {k: v for k, v in {"activation": "linear", "antialiasing": 0, **stop}.items() if hasattr(layer, k)}
    short = replace(layer, **stop)

    def compute(be: Any, w: dict[str, Any], xs: list[Any]) -> Any:
        if "scale" in w and "batch_normalize" in stop:  # the bias comes after the batch norm
            w = {**w, "bias": be.zeros(w["bias"].shape)}
        return short.forward(be, w, *xs, ctx=ForwardContext())[0]

    return compute


def blobs(layer: Layer, part: Part, w: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return a part's arrays as OpenCV holds them: vectors as (1, n); a Region layer's are its anchors."""
    if part.kind == "Region" and hasattr(layer, "anchor_sizes"):
        used = getattr(layer, "anchor_ids", slice(None))
        return [layer.anchor_sizes()[used if isinstance(used, slice) else list(used)].reshape(1, -1)]
    found = [w[name] for name in part.blobs if name in w]
    return [a.reshape(1, -1) if a.ndim == 1 else a for a in found]
