"""Layers that have no step on a GPU: kernels for NHWC maps, or the layer's own `forward` (fallback)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ...array import Array
from ...layers import ForwardContext, Layer
from ...layers.activation import Activation
from ...layers.avgpool import AvgPool
from ...layers.crop import Crop
from ...layers.detection import Detection
from ...layers.empty import History
from ...layers.gaussian_yolo import GaussianYolo
from ...layers.implicit import Implicit
from ...layers.local import Local
from ...layers.local_avgpool import LocalAvgPool
from ...layers.maxpool import MaxPool
from ...layers.normalization import Normalization
from ...layers.region import Region
from ...layers.reorg import Reorg, Reorg3d
from ...layers.shortcut import Shortcut, normalize_weights
from ...layers.softmax import Cost, Softmax
from ...layers.sort_shortcut import SortShortcut
from ...ops.activation import NAMES, NORMALIZERS
from ...ops.norm import lrn_windows
from .. import steps
from ..steps import Activate, Add, FeatureMap, LayerCall
from ..steps import SortShortcut as SortOp
from .emitter import Emitted, Emitter, Launch
from .epilogue import BINARY_OPS, apply_epilogue
from .steps import max_pool
from .view import View


def call(emitter: Emitter, step: LayerCall) -> Emitted:
    """Emit a layer: kernels for NHWC maps if available, else its own `forward`."""
    emit = LAYERS.get(type(step.layer))
    launches = None if emit is None or step.epilogue else emit(emitter, step, step.layer)
    if launches is None:
        return Emitted([_fallback(emitter, step)], fallback=step.layer.section)
    return Emitted(launches, row_major=isinstance(step.layer, Region))


def _fallback(emitter: Emitter, step: LayerCall) -> Launch:
    """Return the launch that converts maps to (N, C, H, W), runs the layer's `forward` and converts its result back."""
    be, N, y = emitter.be, emitter.batch, emitter.view(step.y)
    xs = [emitter.view(m) for m in step.xs]
    launch, (F, Q) = emitter.launch_kernel, y.sizes

    def run() -> None:
        inputs = []
        for x in xs:
            (C, P), nchw = x.sizes, be.empty((N, *x.shape))
            launch("nhwc.to_nchw", 256 * N * -(-C // 32) * -(-P // 32), x.a, nchw, C, P, x.ld, block=256)
            inputs.append(nchw)
        result, _ = step.layer.forward(be, step.w, *inputs, ctx=ForwardContext())
        result = be.asarray(result, np.float32)
        launch("nhwc.from_nchw", result.size, result, y.a, result.size, F, Q, y.ld)

    return Launch(run)


def _views(emitter: Emitter, step: LayerCall) -> tuple[View, View, int]:
    """Return the views of the first source and of the result, and the elements of the result."""
    y = emitter.view(step.y)
    return emitter.view(step.xs[0]), y, y.pixels * y.shape[0]


def _activated(emitter: Emitter, kind: str, y: View) -> list[Launch]:
    """Return the launches that activate y in place."""
    return apply_epilogue(emitter, [Activate(kind)], y, y) if kind != "linear" else []


def _constant(emitter: Emitter, m: FeatureMap, value: ArrayLike) -> list[Launch]:
    """Return the launch that writes one value (C, H, W), or a scalar, into the map of every image."""
    y = emitter.view(m)
    values = np.broadcast_to(np.asarray(value, np.float32), (emitter.batch, *m.shape))
    x = emitter.be.asarray(np.ascontiguousarray(values))
    return [emitter.launch("nhwc.from_nchw", values.size, x, y, values.size, *y.sizes, y.ld)]


def _activation(emitter: Emitter, step: LayerCall, layer: Activation) -> list[Launch]:
    x, y, _ = _views(emitter, step)
    sizes = (y.pixels, x.shape[0], NORMALIZERS.index(layer.activation), x.ld, y.ld)
    return [emitter.launch("nhwc_layers.normalize_channels", 32 * y.pixels, x, y, *sizes)]


def _avgpool(emitter: Emitter, step: LayerCall, layer: AvgPool) -> list[Launch]:
    x, y, n = _views(emitter, step)
    return [emitter.launch("nhwc_layers.avgpool", n, x, y, n, *x.sizes, x.ld, y.ld)]


def _cost(emitter: Emitter, step: LayerCall, layer: Cost) -> list[Launch]:
    return _constant(emitter, step.y, 0)


def _crop(emitter: Emitter, step: LayerCall, layer: Crop) -> list[Launch]:
    x, y, n = _views(emitter, step)
    (_, H, W), (_, OH, OW) = x.shape, y.shape
    factor, shift = (1.0, 0.0) if layer.noadjust else (2.0, -1.0)
    sizes = (n, *x.shape, OH, OW, (H - OH) // 2, (W - OW) // 2, factor, shift, x.ld, y.ld)
    return [emitter.launch("nhwc_layers.crop", n, x, y, *sizes)]


def _detection(emitter: Emitter, step: LayerCall, layer: Detection) -> list[Launch]:
    x, y, _ = _views(emitter, step)
    cells = layer.side**2 if layer.softmax else 0
    groups = [(k * layer.classes, (k + 1) * layer.classes) for k in range(cells)]
    return [*apply_epilogue(emitter, [], x, y), *(_grouped(emitter, y, y, groups) if groups else [])]


def _gaussian(emitter: Emitter, step: LayerCall, layer: GaussianYolo) -> list[Launch]:
    x, y, n = _views(emitter, step)
    C = x.shape[0]
    return [
        emitter.launch("nhwc_layers.gaussian", n, x, y, n, C, C // len(layer.anchor_ids), layer.scale_x_y, x.ld, y.ld)
    ]


def _history(emitter: Emitter, step: LayerCall, layer: History) -> list[Launch]:
    """One time step, as in every call of `predict`, has no history."""
    (x,), y = step.xs, step.y
    now, before = FeatureMap(x.shape, y), FeatureMap((y.shape[0] - x.shape[0], *x.shape[1:]), y, x.shape[0])
    return apply_epilogue(emitter, [], emitter.view(x), emitter.view(now)) + (
        _constant(emitter, before, 0) if before.shape[0] else []
    )


def _implicit(emitter: Emitter, step: LayerCall, layer: Implicit) -> list[Launch]:
    return _constant(emitter, step.y, emitter.be.to_numpy(step.w["weight"]))


def _local(emitter: Emitter, step: LayerCall, layer: Local) -> list[Launch]:
    x, y, n = _views(emitter, step)
    (C, H, W), (F, OH, OW), be = x.shape, y.shape, emitter.be

    def pack() -> tuple[Array, Array]:
        kernel, bias = (be.to_numpy(step.w[name]) for name in ("kernel", "bias"))
        kernel = kernel.reshape(OH * OW, F, C, -1).transpose(0, 3, 2, 1)  # (OH*OW, size*size, C, F)
        with np.errstate(over="ignore"):  # what float16 cannot hold becomes inf
            kernel = np.ascontiguousarray(kernel.astype(emitter.dtype))
        return be.asarray(kernel), be.asarray(np.ascontiguousarray(bias.reshape(F, -1).T, np.float32))

    weights = emitter.weights.cached((step.layers[0],), pack)
    sizes = (n, C, F, H, W, OH, OW, layer.size, layer.stride, layer.pad, x.ld, y.ld, NAMES.index(layer.activation))
    flops = 2 * n * C * layer.size**2
    return [emitter.launch("nhwc_layers.local", n, x, *weights, y, *sizes, flops=flops)]


def _local_avgpool(emitter: Emitter, step: LayerCall, layer: LocalAvgPool) -> list[Launch]:
    x, y, n = _views(emitter, step)
    sizes = (n, *x.shape, *y.shape[1:], layer.window, *layer.strides, layer.pad_total // 2, x.ld, y.ld)
    return [emitter.launch("nhwc_layers.local_avgpool", n, x, y, *sizes)]


def _maxpool(emitter: Emitter, step: LayerCall, layer: MaxPool) -> list[Launch] | None:
    x, y, n = _views(emitter, step)
    if layer.maxpool_depth:
        return [emitter.launch("nhwc_layers.maxpool_depth", n, x, y, n, x.shape[0], y.shape[0], x.ld, y.ld)]
    if layer.antialiasing:
        return None
    pool = steps.MaxPool(
        layers=step.layers, xs=step.xs, y=step.y, size=layer.window, strides=layer.strides, padding=layer.pad_total
    )
    nonmax = emitter.launch("nhwc_layers.zero_nonmax", n, x, y, n, y.shape[0], x.ld, y.ld)
    return [*max_pool(emitter, pool), nonmax]


def _normalization(emitter: Emitter, step: LayerCall, layer: Normalization) -> list[Launch]:
    x, y, n = _views(emitter, step)
    windows = emitter.be.asarray(lrn_windows(x.shape[0], layer.size))
    sizes = (n, x.shape[0], layer.alpha, layer.beta, layer.kappa, x.ld, y.ld)
    return [emitter.launch("nhwc_layers.lrn", n, x, windows, y, *sizes)]


def _reorg(emitter: Emitter, step: LayerCall, layer: Reorg | Reorg3d) -> list[Launch]:
    x, y, n = _views(emitter, step)
    (C, H, W), s = x.shape, layer.stride
    if layer.reverse or isinstance(layer, Reorg):  # the elements are seen in another shape than the map has
        C, H, W = C // s**2, H * s, W * s
    if layer.reverse and isinstance(layer, Reorg3d):
        C, H, W = C // s**2, H * s, W * s
    sizes = (n, *y.sizes, x.sizes[1], C, H, W, s, layer.reverse, x.ld, y.ld)
    return [emitter.launch("nhwc_layers.reorg", n, x, y, *sizes)]


def _region(emitter: Emitter, step: LayerCall, layer: Region) -> list[Launch] | None:
    read = [m.storage for s in emitter.schedule.steps for m in s.reads]
    if step.y.base is not None or step.y in read:
        return None  # its result is row-major, not a map with channels: only the caller may read it
    x, y, _ = _views(emitter, step)
    E, n = x.shape[0] // layer.num, y.pixels * layer.num
    sizes = (n, layer.num, E, layer.coords, layer.softmax and layer.tree is None, x.ld, y.ld)
    launches = [emitter.launch("nhwc_layers.region", 32 * n, x, y, *sizes)]
    if layer.tree is None:
        return launches
    firsts = [a * E + layer.coords + 1 for a in range(layer.num)]
    groups = [(k + i, k + j) for k in firsts for i, j in layer.tree.groups]
    return launches + _grouped(emitter, y, y, groups, pixelwise=True)


def _softmax(emitter: Emitter, step: LayerCall, layer: Softmax) -> list[Launch]:
    x, y, n = _views(emitter, step)
    K = n // emitter.batch // layer.groups
    siblings = layer.tree.groups if layer.tree is not None else [(0, K)]
    groups = [(g * K + i, g * K + j) for g in range(layer.groups) for i, j in siblings]
    return _grouped(emitter, x, y, groups, layer.temperature)


def _grouped(
    emitter: Emitter, x: View, y: View, groups: list[tuple[int, int]], temperature: float = 1.0, pixelwise: bool = False
) -> list[Launch]:
    """Return the launch of a softmax over each group (from, to) of an image's elements in NCHW order, or of a pixel's."""
    rows, P = (y.pixels, 1) if pixelwise else (emitter.batch, y.sizes[1])
    n, edges = rows * len(groups), emitter.be.asarray(np.array(groups, np.int32))
    sizes = (n, len(groups), P, temperature, x.ld, y.ld)
    return [emitter.launch("nhwc_layers.softmax", 32 * n, x, edges, y, *sizes)]


def _shortcut(emitter: Emitter, step: LayerCall, layer: Shortcut) -> list[Launch]:
    if layer.weights_type == "none":
        return _mismatched(emitter, step, layer)
    x, y, n = _views(emitter, step)
    factors, launches = normalize_weights(emitter.be, step.w["weight"], layer.weights_normalization), []
    for t, m in enumerate(step.xs[1:], 1):
        other, own = emitter.view(m), factors[0] if t == 1 else None
        sizes = (n, *x.sizes, *other.sizes, factors.shape[1], x.ld, other.ld, y.ld)
        launches.append(emitter.launch("nhwc_layers.add_weighted", n, x, other, own, factors[t], y, *sizes))
        x = y
    return launches + _activated(emitter, layer.activation, y)


def _mismatched(emitter: Emitter, step: LayerCall, layer: Shortcut | SortShortcut) -> list[Launch]:
    x, y, n = _views(emitter, step)
    eps, slope = (layer.eps, layer.slope) if isinstance(layer, SortShortcut) else (0.0, 0.0)
    binary, launches = BINARY_OPS[SortOp if isinstance(layer, SortShortcut) else Add], []
    for m in step.xs[1:]:
        other = emitter.view(m)
        sizes = (n, *x.sizes, *other.sizes, x.ld, other.ld, y.ld, binary, eps, slope)
        launches.append(emitter.launch("nhwc.add_mismatched", n, x, other, y, *sizes))
        x = y
    return launches + _activated(emitter, layer.activation, y)


LAYERS: dict[type[Layer], Callable[[Emitter, LayerCall, Any], list[Launch] | None]] = {
    Activation: _activation,
    AvgPool: _avgpool,
    Cost: _cost,
    Crop: _crop,
    Detection: _detection,
    GaussianYolo: _gaussian,
    History: _history,
    Implicit: _implicit,
    Local: _local,
    LocalAvgPool: _local_avgpool,
    MaxPool: _maxpool,
    Normalization: _normalization,
    Region: _region,
    Reorg: _reorg,
    Reorg3d: _reorg,
    Shortcut: _shortcut,
    Softmax: _softmax,
    SortShortcut: _mismatched,
}
