"""How each layer becomes steps: one function per class, and the layer's own `forward` for those that have none.

It stands here and not in the layers, because a layer says what is computed and this says in which pieces; a new layer
runs in a plan before anybody has written its function.
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
from .fuse import Builder
from .steps import FeatureMap

ACTIVATED = (Connected, Convolutional, Local, Sam, ScaleChannels, Shortcut, SortShortcut)  # the last thing that they do


def lower(layer: Layer, build: Builder, *xs: FeatureMap) -> FeatureMap:
    """Add the layer's steps to the plan; return the map that is its output."""
    if isinstance(layer, ACTIVATED) and layer.activation in NORMALIZERS and not getattr(layer, "antialiasing", 0):
        y = _lower(replace(layer, activation="linear"), build, *xs)
        return build.reference(Activation(activation=layer.activation), y)
    return _lower(layer, build, *xs)


@singledispatch
def _lower(layer: Layer, build: Builder, *xs: FeatureMap) -> FeatureMap:
    return build.reference(layer, *xs)


@_lower.register
def _activation(layer: Activation, build: Builder, x: FeatureMap) -> FeatureMap:
    return build.reference(layer, x) if layer.activation in NORMALIZERS else build.activate(x, layer.activation)


@_lower.register
def _convolutional(layer: Convolutional, build: Builder, x: FeatureMap) -> FeatureMap:
    if layer.binary or layer.xnor or layer.antialiasing:
        return build.reference(layer, x)
    D = layer.effective_dilation
    return build.convolve(x, layer.size, layer.strides, D, layer.pad_before * D, layer.groups, layer.activation)


@_lower.register
def _dropout(layer: Dropout, build: Builder, x: FeatureMap) -> FeatureMap:
    return x


@_lower.register
def _empty(layer: Empty, build: Builder, x: FeatureMap) -> FeatureMap:
    return x


@_lower.register
def _maxpool(layer: MaxPool, build: Builder, x: FeatureMap) -> FeatureMap:
    if layer.maxpool_depth or layer.antialiasing or layer.maxpool_zero_nonmax:
        return build.reference(layer, x)
    return build.maxpool(x, layer.window, layer.strides, layer.pad_total)


@_lower.register
def _route(layer: Route, build: Builder, *xs: FeatureMap) -> FeatureMap:
    counts = [x.shape[0] // layer.groups for x in xs]
    return build.concat([build.channels(x, layer.group_id * n, n) for x, n in zip(xs, counts, strict=True)])


@_lower.register
def _sam(layer: Sam, build: Builder, a: FeatureMap, b: FeatureMap) -> FeatureMap:
    return build.multiply(a, b, layer.activation)


@_lower.register
def _scale_channels(layer: ScaleChannels, build: Builder, s: FeatureMap, x: FeatureMap) -> FeatureMap:
    return build.multiply(x, s, layer.activation)


@_lower.register
def _shortcut(layer: Shortcut, build: Builder, *xs: FeatureMap) -> FeatureMap:
    if layer.weights_type != "none" or any(x.shape != xs[0].shape for x in xs):
        return build.reference(layer, *xs)
    return build.add(xs[0], xs[1:], layer.activation)


@_lower.register
def _sort_shortcut(layer: SortShortcut, build: Builder, a: FeatureMap, b: FeatureMap) -> FeatureMap:
    if a.shape != b.shape:
        return build.reference(layer, a, b)
    return build.sort(a, b, layer.eps, layer.slope, layer.activation)


@_lower.register
def _upsample(layer: Upsample, build: Builder, x: FeatureMap) -> FeatureMap:
    return build.upsample(x, layer.stride, layer.scale) if layer.stride > 0 else build.reference(layer, x)


@_lower.register
def _yolo(layer: Yolo, build: Builder, x: FeatureMap) -> FeatureMap:
    return build.yolo(x, len(layer.anchor_ids), layer.scale_x_y, layer.new_coords)
