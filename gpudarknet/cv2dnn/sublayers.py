"""OpenCV's layers of a Darknet section: up to three, each with a name that scripts refer to.

`[convolutional]` number 7 with batch norm and leaky becomes conv_7, bn_7 and leaky_8; `[yolo]` number 16 becomes permute_16
and yolo_16. Sections that OpenCV cannot read keep their own name: reorg3d_5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
KEEP_FLAT = "Identity", "Softmax"
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

    section: the section's index. inputs: ids of the layers it reads; 0 is the network's input, and the id of a layer is its
    position, from 1. arrays: names of the section's arrays that are its blobs, in OpenCV's order. flat: its output is
    (N, K), like all that follows a [connected]. part: which source of a [route] a Slice takes its channels from.
    """

    name: str
    kind: str
    section: int = -1
    inputs: tuple[int, ...] = ()
    compute: Compute | None = None
    arrays: tuple[str, ...] = ()
    flat: bool = False
    part: int | None = None


def sublayers(nodes: Sequence[Node]) -> list[Sublayer]:
    """Return OpenCV's layers of a network, in its order. The last one of each section is the section's own output."""
    layers: list[Sublayer] = []
    number, last = 0, {-1: 0}  # the number in the next name; the id of each section's output
    for node in nodes:
        sources = tuple(last[source] for source in node.sources)
        own = section_layers(node, number, sources, len(layers) + 1)
        kind, source = own[0].kind, sources[0]
        flat = kind == "InnerProduct" or (kind in KEEP_FLAT and source > 0 and layers[source - 1].flat)
        layers += [replace(layer, section=node.index, flat=flat) for layer in own]
        number += 1 + sum(layer.part is not None for layer in own)
        last[node.index] = len(layers)
    return layers


def section_layers(node: Node, number: int, sources: tuple[int, ...], first: int) -> list[Sublayer]:
    """Return OpenCV's layers of a section that reads the layers `sources`; the id of the first of them is `first`."""
    layer = node.layer
    if type(layer) not in NAMES and not isinstance(layer, Route):
        return [Sublayer(f"{layer.section}_{number}", type(layer).__name__, inputs=sources)]
    layers = []
    if isinstance(layer, DetectionHead):
        layers.append(Sublayer(f"permute_{number}", "Permute", inputs=sources, compute=permute))
        sources = (first,) if isinstance(layer, Region) else (first, 0)
    if isinstance(layer, Route) and layer.groups > 1 and len(sources) > 1:  # then names count on by one per source
        for part, source in enumerate(sources):
            slices = slice_source(layer, part)
            layers.append(Sublayer(f"slice_{number}", "Slice", inputs=(source,), compute=slices, part=part))
            number += 1
        sources = tuple(range(first, first + len(sources)))
    name, kind = route(layer) if isinstance(layer, Route) else NAMES[type(layer)]
    normalized = bool(getattr(layer, "batch_normalize", 0))
    arrays = ("kernel",) if normalized else ("kernel", "bias")
    full = name if isinstance(layer, Region) else f"{name}_{number}"
    layers.append(
        Sublayer(full, kind, inputs=sources, compute=without_activation(layer, batch_normalize=0), arrays=arrays)
    )
    if normalized:
        statistics = ("mean", "variance", "scale", "bias")
        reads = (first + len(layers) - 1,)
        layers.append(
            Sublayer(f"bn_{number}", "BatchNorm", inputs=reads, compute=without_activation(layer), arrays=statistics)
        )
    activation = getattr(layer, "activation", "linear")
    if activation != "linear":
        kind, reads = ACTIVATIONS.get(activation, activation), (first + len(layers) - 1,)
        layers.append(Sublayer(f"{activation}_{number + 1}", kind, inputs=reads))
    return [*layers[:-1], replace(layers[-1], compute=None)]


def route(layer: Route) -> tuple[str, str]:
    """Return OpenCV's name and type for a [route]: concatenation, slice or identity."""
    if len(layer.layers) > 1:
        return "concat", "Concat"
    return ("slice", "Slice") if layer.groups > 1 else ("identity", "Identity")


def slice_source(layer: Route, part: int) -> Compute:
    """Return a function that takes a group of the channels of one source of a [route]."""
    return partial(run_part, replace(layer, layers=layer.layers[part : part + 1]), part)


def run_part(layer: Route, part: int, be: ArrayBackend, w: Arrays, xs: list[Array]) -> Array:
    """Run a [route] on one of its sources."""
    return layer.forward(be, w, xs[part], ctx=ForwardContext())[0]


def permute(be: ArrayBackend, w: Arrays, xs: list[Array]) -> Array:
    """Transpose to channels-last, (N, C, H, W) -> (N, H, W, C), the input of OpenCV's Region layer."""
    return xs[0].transpose(0, 2, 3, 1)


def without_activation(layer: Layer, **fields: Any) -> Compute:
    """Return a function that runs a layer without its activation; with batch_normalize=0, without its batch norm too."""
    fields = {k: v for k, v in {"activation": "linear", "antialiasing": 0, **fields}.items() if hasattr(layer, k)}
    return partial(run_truncated, replace(layer, **fields))


def run_truncated(layer: Layer, be: ArrayBackend, w: Arrays, xs: list[Array]) -> Array:
    """Run a layer, without its bias if its batch norm, which precedes the bias, is left out."""
    if "scale" in w and not getattr(layer, "batch_normalize", 1):
        w = {**w, "bias": be.zeros(w["bias"].shape)}
    return layer.forward(be, w, *xs, ctx=ForwardContext())[0]


def output_shape(node: Node, layer: Sublayer, batch: int) -> tuple[int, ...]:
    """Return the shape of a layer's output in OpenCV's layout, for a batch of images."""
    C, H, W = node.shape
    if layer.kind == "Permute":
        return batch, H, W, C
    if layer.kind == "Region":
        assert isinstance(node.layer, DetectionHead)
        row = 5 + node.layer.classes
        rows = C * H * W // row
        return (rows, row) if batch == 1 else (batch, rows, row)
    if layer.part is not None:
        assert isinstance(node.layer, Route)
        return batch, node.inputs[layer.part][0] // node.layer.groups, H, W
    return (batch, C * H * W) if layer.flat else (batch, C, H, W)


def blobs(layer: Layer, sublayer: Sublayer, w: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """Return a layer's arrays in OpenCV's layout: vectors as (1, n); a Region layer's are its anchors."""
    if sublayer.kind == "Region" and hasattr(layer, "anchor_sizes"):
        used = getattr(layer, "anchor_ids", slice(None))
        return (layer.anchor_sizes()[used if isinstance(used, slice) else list(used)].reshape(1, -1),)
    arrays = [w[name] for name in sublayer.arrays if name in w]
    return tuple(a.reshape(1, -1) if a.ndim == 1 else a for a in arrays)
