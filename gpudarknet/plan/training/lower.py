"""Lower layers to the steps of a forward pass in training: as at inference, but nothing is folded or fused away.

What a backward needs stays: a convolution's result before batch norm, a sum before its activation. Layers without a function
here fall back to their `forward` and its backward.
"""

from __future__ import annotations

from dataclasses import replace
from functools import singledispatch
from typing import Any

from ...layers import Layer
from ...layers.activation import Activation
from ...layers.convolutional import Convolutional
from ...layers.empty import Empty
from ...layers.maxpool import MaxPool
from ...layers.route import Route
from ...layers.shortcut import Shortcut
from ...layers.sort_shortcut import SortShortcut
from ...layers.upsample import Upsample
from ...layers.yolo import Yolo
from ...ops.activation import NORMALIZERS
from ..builder import Builder
from ..lower import lower as lower_inference
from ..steps import FeatureMap
from .steps import BatchNorm, Bias


def lower(layer: Layer, builder: Builder, *xs: FeatureMap) -> FeatureMap:
    """Add the layer's steps in training to the plan; return its output."""
    return _lower(layer, builder, *xs)


@singledispatch
def _lower(layer: Layer, builder: Builder, *xs: FeatureMap) -> FeatureMap:
    return builder.call_layer(layer, *xs)


@_lower.register(Activation)
@_lower.register(Shortcut)
@_lower.register(SortShortcut)
def _activated(layer: Any, builder: Builder, *xs: FeatureMap) -> FeatureMap:
    if layer.activation in NORMALIZERS:
        return builder.call_layer(layer, *xs)
    if isinstance(layer, Activation):
        return builder.activate(xs[0], layer.activation)
    y = lower_inference(replace(layer, activation="linear"), builder, *xs)
    return y if layer.activation == "linear" else builder.activate(y, layer.activation)


@_lower.register
def _convolutional(layer: Convolutional, builder: Builder, x: FeatureMap) -> FeatureMap:
    if layer.binary or layer.xnor or layer.antialiasing or layer.groups > 1:
        return builder.call_layer(layer, x)
    D, kind = layer.effective_dilation, layer.activation
    z = builder.convolve(x, layer.size, layer.strides, D, layer.pad_before * D, layer.groups, "linear")
    step, inner = (BatchNorm if layer.batch_normalize else Bias), "linear" if kind in NORMALIZERS else kind
    y = builder.add_step(step, (z,), z.shape, w=builder.w, activation=inner)
    return y if inner == kind else builder.call_layer(Activation(activation=kind), y)


@_lower.register(Empty)
@_lower.register(MaxPool)
@_lower.register(Route)
@_lower.register(Upsample)
@_lower.register(Yolo)
def _as_at_inference(layer: Layer, builder: Builder, *xs: FeatureMap) -> FeatureMap:
    return lower_inference(layer, builder, *xs)
