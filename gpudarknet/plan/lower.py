"""Lower layers to steps: one function per class. Layers without a function fall back to their `forward`.

These functions are not in the layers because a layer defines what is computed, this module in which steps; a new layer runs in
a plan before it has a function here.
"""

from __future__ import annotations

from dataclasses import replace
from functools import singledispatch

from ..layers import Layer
from ..layers.activation import Activation
from ..layers.connected import Connected
from ..layers.convolutional import Convolutional
from ..layers.dropout import Dropout
from ..layers.empty import Empty
from ..layers.local import Local
from ..layers.maxpool import MaxPool
from ..layers.route import Route
from ..layers.sam import Sam
from ..layers.scale_channels import ScaleChannels
from ..layers.shortcut import Shortcut
from ..layers.sort_shortcut import SortShortcut
from ..layers.upsample import Upsample
from ..layers.yolo import Yolo
from ..ops.activation import NORMALIZERS
from .builder import Builder
from .steps import FeatureMap

ACTIVATED = (
    Connected,
    Convolutional,
    Local,
    Sam,
    ScaleChannels,
    Shortcut,
    SortShortcut,
)  # with an activation at the end


def lower(layer: Layer, builder: Builder, *xs: FeatureMap) -> FeatureMap:
    """Add the layer's steps to the plan; return its output."""
    if isinstance(layer, ACTIVATED) and layer.activation in NORMALIZERS and not getattr(layer, "antialiasing", 0):
        y = _lower(replace(layer, activation="linear"), builder, *xs)
        return builder.call_layer(Activation(activation=layer.activation), y)
    return _lower(layer, builder, *xs)


@singledispatch
def _lower(layer: Layer, builder: Builder, *xs: FeatureMap) -> FeatureMap:
    return builder.call_layer(layer, *xs)


@_lower.register
def _activation(layer: Activation, builder: Builder, x: FeatureMap) -> FeatureMap:
    return builder.call_layer(layer, x) if layer.activation in NORMALIZERS else builder.activate(x, layer.activation)


@_lower.register
def _convolutional(layer: Convolutional, builder: Builder, x: FeatureMap) -> FeatureMap:
    if layer.binary or layer.xnor or layer.antialiasing:
        return builder.call_layer(layer, x)
    D = layer.effective_dilation
    return builder.convolve(x, layer.size, layer.strides, D, layer.pad_before * D, layer.groups, layer.activation)


@_lower.register
def _dropout(layer: Dropout, builder: Builder, x: FeatureMap) -> FeatureMap:
    return x


@_lower.register
def _empty(layer: Empty, builder: Builder, x: FeatureMap) -> FeatureMap:
    return x


@_lower.register
def _maxpool(layer: MaxPool, builder: Builder, x: FeatureMap) -> FeatureMap:
    if layer.maxpool_depth or layer.antialiasing or layer.maxpool_zero_nonmax:
        return builder.call_layer(layer, x)
    return builder.maxpool(x, layer.window, layer.strides, layer.pad_total)


@_lower.register
def _route(layer: Route, builder: Builder, *xs: FeatureMap) -> FeatureMap:
    counts = [x.shape[0] // layer.groups for x in xs]
    return builder.concat([builder.channels(x, layer.group_id * n, n) for x, n in zip(xs, counts, strict=True)])


@_lower.register
def _sam(layer: Sam, builder: Builder, a: FeatureMap, b: FeatureMap) -> FeatureMap:
    return builder.multiply(a, b, layer.activation)


@_lower.register
def _scale_channels(layer: ScaleChannels, builder: Builder, s: FeatureMap, x: FeatureMap) -> FeatureMap:
    return builder.multiply(x, s, layer.activation)


@_lower.register
def _shortcut(layer: Shortcut, builder: Builder, *xs: FeatureMap) -> FeatureMap:
    if layer.weights_type != "none" or any(x.shape != xs[0].shape for x in xs):
        return builder.call_layer(layer, *xs)
    return builder.add(xs[0], xs[1:], layer.activation)


@_lower.register
def _sort_shortcut(layer: SortShortcut, builder: Builder, a: FeatureMap, b: FeatureMap) -> FeatureMap:
    if a.shape != b.shape:
        return builder.call_layer(layer, a, b)
    return builder.sort_shortcut(a, b, layer.eps, layer.slope, layer.activation)


@_lower.register
def _upsample(layer: Upsample, builder: Builder, x: FeatureMap) -> FeatureMap:
    return builder.upsample(x, layer.stride, layer.scale) if layer.stride > 0 else builder.call_layer(layer, x)


@_lower.register
def _yolo(layer: Yolo, builder: Builder, x: FeatureMap) -> FeatureMap:
    return builder.yolo(x, len(layer.anchor_ids), layer.scale_x_y, layer.new_coords)
