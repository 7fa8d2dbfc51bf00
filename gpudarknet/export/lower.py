"""Lower layers to ONNX nodes: one function per class, as in `plan/lower.py`.

lower(layer, g, w, node, *xs) -> y: g is the graph, w the layer's arrays (NumPy), node has its shapes, xs and y are names
of values (N, C, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import Any

import numpy as np

from ..array import Arrays
from ..backend import Backend
from ..errors import CfgError
from ..graph import Node
from ..layers import Layer, Shape
from ..layers.activation import Activation
from ..layers.avgpool import AvgPool
from ..layers.batchnorm import BatchNorm
from ..layers.blocks import BLUR_KERNELS
from ..layers.connected import Connected
from ..layers.convolutional import Convolutional, fold_batch_norm
from ..layers.crop import Crop
from ..layers.dropout import Dropout
from ..layers.empty import Empty, History
from ..layers.implicit import Implicit
from ..layers.local import Local
from ..layers.local_avgpool import LocalAvgPool
from ..layers.maxpool import MaxPool
from ..layers.normalization import Normalization
from ..layers.recurrent import Recurrent
from ..layers.reorg import Reorg, Reorg3d
from ..layers.route import Route
from ..layers.sam import Sam
from ..layers.scale_channels import ScaleChannels
from ..layers.shortcut import Shortcut, normalize_weights
from ..layers.softmax import Softmax
from ..layers.sort_shortcut import SortShortcut
from ..layers.upsample import Upsample
from ..ops.norm import EPS, lrn_windows
from .activations import ACTIVATIONS
from .graph import Graph

NUMPY = Backend("numpy", np)


@singledispatch
def lower(layer: Layer, g: Graph, w: Arrays, node: Node, *xs: str) -> str:
    """Add the layer's nodes to the graph; return the name of its output."""
    raise CfgError(
        f"line {node.line}: [{layer.section}] (layer {node.index}) has no ONNX lowering; add one in gpudarknet/export/lower.py"
    )


@lower.register(Recurrent)
@lower.register(History)
def _stateful(layer: Layer, g: Graph, w: Arrays, node: Node, *xs: str) -> str:
    raise CfgError(
        f"line {node.line}: [{layer.section}] (layer {node.index}) cannot be exported: it keeps state between images"
    )


def activate(g: Graph, x: str, kind: str) -> str:
    """Apply an activation."""
    return ACTIVATIONS[kind](g, x)


def pads(x: Shape, size: int, strides: tuple[int, int], dilation: int, before: int, out: Sequence[int]) -> list[int]:
    """Return the padding (top, left, bottom, right) with which ONNX's windows over x have `out` = (OH, OW) positions."""
    reach = (size - 1) * dilation + 1
    after = [max(0, (o - 1) * s + reach - before - n) for o, s, n in zip(out, strides, x[1:], strict=True)]
    same = all((n + 2 * before - reach) // s + 1 == o for o, s, n in zip(out, strides, x[1:], strict=True))
    return [before] * 4 if same else [before, before, *after]  # Darknet's padding if it is equivalent


@lower.register
def _activation(layer: Activation, g: Graph, w: Arrays, node: Node, x: str) -> str:
    return activate(g, x, layer.activation)


@lower.register
def _avgpool(layer: AvgPool, g: Graph, w: Arrays, node: Node, x: str) -> str:
    return g.op("GlobalAveragePool", x)


@lower.register
def _batchnorm(layer: BatchNorm, g: Graph, w: Arrays, node: Node, x: str) -> str:
    gain = w["scale"] / np.sqrt(w["variance"].astype(np.float64) + EPS)
    offset = w["bias"] - w["mean"] * gain
    return g.op("Add", g.op("Mul", x, gain.reshape(1, -1, 1, 1)), offset.reshape(1, -1, 1, 1))


@lower.register
def _connected(layer: Connected, g: Graph, w: Arrays, node: Node, x: str) -> str:
    whole = fold_batch_norm({**w, "kernel": w["kernel"][:, :, None, None]})
    y = g.op("Gemm", g.op("Flatten", x), whole["kernel"][:, :, 0, 0], whole["bias"], transB=1)
    return activate(g, g.reshape(y, layer.output, 1, 1), layer.activation)


@lower.register
def _convolutional(layer: Convolutional, g: Graph, w: Arrays, node: Node, x: str) -> str:
    (shape,), kernel = node.inputs, w["kernel"]
    if layer.binary or layer.xnor:
        kernel = np.where(kernel > 0, 1, -1) * np.abs(kernel).mean(axis=(1, 2, 3), keepdims=True)
    if layer.xnor:
        x = g.op("Where", g.op("Less", x, 0.0), -1.0, 1.0)
    whole, D, out = fold_batch_norm({**w, "kernel": kernel}), layer.effective_dilation, layer.conv_output_size(shape)
    y = g.op(
        "Conv", x, whole["kernel"], whole["bias"], group=layer.effective_groups, kernel_shape=[layer.size] * 2,
        strides=layer.conv_strides, dilations=[D, D],
        pads=pads(shape, layer.size, layer.conv_strides, D, layer.pad_before * D, out),
    )  # fmt: skip
    y = activate(g, y, layer.activation)
    return blur_pool(g, y, layer.filters, layer.antialiasing, layer.strides) if layer.antialiasing else y


def blur_pool(g: Graph, x: str, C: int, kind: int, strides: tuple[int, int]) -> str:
    """Blur and subsample every channel, as `layers.blocks.blur_pool`."""
    taps = BLUR_KERNELS[kind == 2]
    kernel = np.broadcast_to(taps, (C, 1, *taps.shape))
    return g.op("Conv", x, kernel, group=C, strides=strides, pads=[0 if kind == 2 else 1] * 4)


@lower.register
def _crop(layer: Crop, g: Graph, w: Arrays, node: Node, x: str) -> str:
    _, H, W = node.inputs[0]
    top, left = (H - layer.crop_height) // 2, (W - layer.crop_width) // 2
    x = g.slice(g.slice(x, 2, top, top + layer.crop_height), 3, left, left + layer.crop_width)
    return x if layer.noadjust else g.op("Sub", g.op("Mul", x, 2.0), 1.0)


@lower.register(Dropout)
@lower.register(Empty)
def _same(layer: Layer, g: Graph, w: Arrays, node: Node, x: str) -> str:
    return x


@lower.register
def _implicit(layer: Implicit, g: Graph, w: Arrays, node: Node, x: str) -> str:
    batch = g.op("Slice", g.op("Shape", x), np.array([0]), np.array([1]))
    return g.op("Expand", w["weight"][None], g.op("Concat", batch, np.array(node.shape), axis=0))


@lower.register
def _local(layer: Local, g: Graph, w: Arrays, node: Node, x: str) -> str:
    C, (F, OH, OW), k, s = node.inputs[0][0], node.shape, layer.size, layer.stride
    top, left, bottom, right = pads(node.inputs[0], k, (s, s), 1, layer.pad, (OH, OW))
    x = g.pad(x, (0, 0, top, left), (0, 0, bottom, right))
    taps = [
        g.reshape(g.slice(g.slice(x, 2, p, p + (OH - 1) * s + 1, s), 3, q, q + (OW - 1) * s + 1, s), C, 1, OH * OW)
        for p in range(k)
        for q in range(k)
    ]
    col = g.reshape(g.concat(taps, 2), C * k * k, OH * OW)
    windows = g.reshape(g.op("Transpose", col, perm=[0, 2, 1]), OH * OW, C * k * k, 1)
    y = g.reshape(g.op("MatMul", w["kernel"][None], windows), OH * OW, F)
    y = g.reshape(g.op("Transpose", y, perm=[0, 2, 1]), F, OH, OW)
    return activate(g, g.op("Add", y, w["bias"][None]), layer.activation)


@lower.register
def _local_avgpool(layer: LocalAvgPool, g: Graph, w: Arrays, node: Node, x: str) -> str:
    border = pads(node.inputs[0], layer.window, layer.strides, 1, layer.pad_total // 2, node.shape[1:])
    return g.op("AveragePool", x, kernel_shape=[layer.window] * 2, strides=layer.strides, pads=border)


@lower.register
def _maxpool(layer: MaxPool, g: Graph, w: Arrays, node: Node, x: str) -> str:
    C, H, W = node.inputs[0]
    if layer.maxpool_depth:
        F, turns = layer.out_channels, -(-C // layer.out_channels)
        lowest = float(np.finfo(g.dtype).min)
        x = g.pad(x, (0, 0, 0, 0), (0, turns * F - C, 0, 0), lowest) if C % F else x
        return g.op("ReduceMax", g.reshape(x, turns, F, H, W), axes=[1], keepdims=0)
    _, OH, OW = layer.pooled_shape((C, H, W), layer.pool_strides)
    border = pads((C, H, W), layer.window, layer.pool_strides, 1, layer.pad_total // 2, (OH, OW))
    y = g.op("MaxPool", x, kernel_shape=[layer.window] * 2, strides=layer.pool_strides, pads=border)
    if layer.maxpool_zero_nonmax:
        y = g.op("Where", g.op("Equal", x, y), y, 0.0)
    return blur_pool(g, y, C, layer.antialiasing, layer.strides) if layer.antialiasing else y


@lower.register
def _normalization(layer: Normalization, g: Graph, w: Arrays, node: Node, x: str) -> str:
    C = node.inputs[0][0]
    energy = g.op("Conv", g.op("Mul", x, x), layer.alpha * lrn_windows(C, layer.size).reshape(C, C, 1, 1))
    return g.op("Mul", x, g.op("Pow", g.op("Add", energy, float(layer.kappa)), -float(layer.beta)))


@lower.register
def _reorg(layer: Reorg, g: Graph, w: Arrays, node: Node, x: str) -> str:
    (C, H, W), s = node.inputs[0], layer.stride
    if layer.reverse:
        return g.op("DepthToSpace", x, blocksize=s, mode="DCR")
    return g.reshape(g.op("SpaceToDepth", g.reshape(x, C // (s * s), H * s, W * s), blocksize=s), *node.shape)


@lower.register
def _reorg3d(layer: Reorg3d, g: Graph, w: Arrays, node: Node, x: str) -> str:
    s = layer.stride
    if not layer.reverse:
        return g.op("SpaceToDepth", x, blocksize=s)
    return g.reshape(g.op("DepthToSpace", g.reshape(x, *node.shape), blocksize=s, mode="DCR"), *node.shape)


@lower.register
def _route(layer: Route, g: Graph, w: Arrays, node: Node, *xs: str) -> str:
    if layer.groups == 1:
        return g.concat(xs, 1)
    counts = [C // layer.groups for C, _, _ in node.inputs]
    at = layer.group_id
    return g.concat([g.slice(x, 1, at * n, (at + 1) * n) for x, n in zip(xs, counts, strict=True)], 1)


@lower.register
def _sam(layer: Sam, g: Graph, w: Arrays, node: Node, a: str, b: str) -> str:
    return activate(g, g.op("Mul", a, b), layer.activation)


@lower.register
def _scale_channels(layer: ScaleChannels, g: Graph, w: Arrays, node: Node, s: str, x: str) -> str:
    return activate(g, g.op("Mul", x, s), layer.activation)


def first_elements(g: Graph, x: str, shape: Shape, n: int) -> str:
    """Return the first n elements of each image, flattened: (N, n)."""
    flat = g.op("Flatten", x)
    return flat if n == np.prod(shape) else g.slice(flat, 1, 0, n)


def pad_to_shape(g: Graph, x: str, n: int, to: Shape) -> str:
    """Undo `first_elements`: (N, n) -> (N, *to), padded with 0."""
    size = int(np.prod(to))
    return g.reshape(x if n == size else g.pad(x, (0, 0), (0, size - n)), *to)


@lower.register
def _shortcut(layer: Shortcut, g: Graph, w: Arrays, node: Node, *xs: str) -> str:
    factors = None
    if layer.weights_type != "none":
        factors = normalize_weights(NUMPY, w["weight"], layer.weights_normalization).reshape(len(xs), 1, -1, 1, 1)
    first, y = node.shape, ""
    for t, (x, shape) in enumerate(zip(xs, node.inputs, strict=True)):
        if shape != first:
            n = min(int(np.prod(shape)), int(np.prod(first)))
            x = pad_to_shape(g, first_elements(g, x, shape, n), n, first)
        if factors is not None:
            x = g.op("Mul", x, factors[t])
        y = g.op("Add", y, x) if y else x
    return activate(g, y, layer.activation)


@lower.register
def _sort_shortcut(layer: SortShortcut, g: Graph, w: Arrays, node: Node, a: str, b: str) -> str:
    first, second = node.inputs
    p, q, n = a, b, min(int(np.prod(first)), int(np.prod(second)))
    if first != second:
        p, q = first_elements(g, a, first, n), first_elements(g, b, second, n)
    above = [g.op("LeakyRelu", x, alpha=layer.slope) if layer.slope else g.op("Relu", x) for x in (p, q)]
    product = g.op("Mul", *above)
    product = g.op("Relu", product) if layer.slope else product
    more = g.op("Add", q, g.op("Sqrt", g.op("Add", product, float(layer.eps))))
    return activate(g, g.op("Add", a, more if first == second else pad_to_shape(g, more, n, first)), layer.activation)


def softmax(g: Graph, x: str, starts: Sequence[int], K: int) -> str:
    """Apply softmax to each group of the last axis of length K; group i begins at starts[i]."""
    if len(starts) == 1:
        return g.op("Softmax", x, axis=-1)
    ends = (*starts[1:], K)
    return g.concat([g.op("Softmax", g.slice(x, -1, a, b), axis=-1) for a, b in zip(starts, ends, strict=True)], -1)


@lower.register
def _softmax(layer: Softmax, g: Graph, w: Arrays, node: Node, x: str) -> str:
    K = int(np.prod(node.shape)) // layer.groups
    rows = g.scale(g.reshape(x, layer.groups, K), 1 / layer.temperature)
    return g.reshape(softmax(g, rows, layer.tree.starts if layer.tree else (0,), K), *node.shape)


@lower.register
def _upsample(layer: Upsample, g: Graph, w: Arrays, node: Node, x: str) -> str:
    s = abs(layer.stride)
    if layer.stride < 0:
        y = g.op("AveragePool", x, kernel_shape=[s, s], strides=[s, s])
        return g.scale(y, layer.scale * s * s)
    mode: dict[str, Any] = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    scales = g.constant([1, 1, s, s], np.float32)  # float32 in a float16 graph too
    return g.scale(g.op("Resize", x, "", scales, **mode), layer.scale)
