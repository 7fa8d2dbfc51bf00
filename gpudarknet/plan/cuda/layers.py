"""What a layer without a step of its own is on a GPU: kernels for maps that lie pixel by pixel, or its own `forward`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

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
from ..steps import Activate, Add, FeatureMap, LayerCall, Sort
from . import launches
from .launches import JOINS, finish, kernel
from .stream import Work

if TYPE_CHECKING:
    from .program import Program, View


def reference(program: Program, step: LayerCall) -> list[Work]:
    """Return the layer's work on the GPU where it has kernels for maps pixel by pixel, else its own `forward`."""
    own = LAYERS.get(type(step.layer))
    work = None if own is None or step.epilogue else own(program, step, step.layer)
    return [_through(program, step)] if work is None else work


def _through(program: Program, step: LayerCall) -> Work:
    """Return the work of bringing maps into the layer's form (N, C, H, W), running it, and bringing its result back."""
    be, N, y = program.be, program.plan.batch, program.view(step.y)
    xs = [program.view(m) for m in step.xs]
    launch, (F, Q) = be.launch, y.sizes
    assert launch is not None
    program.through.append(step.layer.section)

    def run() -> None:
        inputs = []
        for x in xs:
            (C, P), found = x.sizes, be.empty((N, *x.shape))
            launch("plan.to_nchw", 256 * N * -(-C // 32) * -(-P // 32), x.a, found, C, P, x.ld, block=256)
            inputs.append(found)
        result, _ = step.layer.forward(be, step.w, *inputs, ctx=ForwardContext())
        result = be.asarray(result, np.float32)
        launch("plan.from_nchw", result.size, result, y.a, result.size, F, Q, y.ld)

    return run


def _views(program: Program, step: LayerCall) -> tuple[View, View, int]:
    """Return the views of the first source and of the result, and how many numbers that has."""
    y = program.view(step.y)
    return program.view(step.xs[0]), y, y.pixels * y.shape[0]


def _activated(program: Program, kind: str, y: View) -> list[Work]:
    """Return the work of activating y in place."""
    return finish(program, [Activate(kind)], y, y) if kind != "linear" else []


def _constant(program: Program, m: FeatureMap, value: Any) -> list[Work]:
    """Return the work of writing one value (C, H, W), or a number, into the map of every image."""
    y = program.view(m)
    whole = np.broadcast_to(np.float32(value), (program.plan.batch, *m.shape))
    given = program.be.asarray(np.ascontiguousarray(whole))
    return [kernel(program, "plan.from_nchw", whole.size, given, y.a, whole.size, *y.sizes, y.ld)]


def _activation(program: Program, step: LayerCall, layer: Activation) -> list[Work]:
    x, y, _ = _views(program, step)
    sizes = (y.pixels, x.shape[0], NORMALIZERS.index(layer.activation), x.ld, y.ld)
    return [kernel(program, "plan_layers.normalize_channels", 32 * y.pixels, x.a, y.a, *sizes)]


def _avgpool(program: Program, step: LayerCall, layer: AvgPool) -> list[Work]:
    x, y, n = _views(program, step)
    return [kernel(program, "plan_layers.avgpool", n, x.a, y.a, n, *x.sizes, x.ld, y.ld)]


def _cost(program: Program, step: LayerCall, layer: Cost) -> list[Work]:
    return _constant(program, step.y, 0)


def _crop(program: Program, step: LayerCall, layer: Crop) -> list[Work]:
    x, y, n = _views(program, step)
    (_, H, W), (_, OH, OW) = x.shape, y.shape
    factor, shift = (1.0, 0.0) if layer.noadjust else (2.0, -1.0)
    sizes = (n, *x.shape, OH, OW, (H - OH) // 2, (W - OW) // 2, factor, shift, x.ld, y.ld)
    return [kernel(program, "plan_layers.crop", n, x.a, y.a, *sizes)]


def _detection(program: Program, step: LayerCall, layer: Detection) -> list[Work]:
    x, y, _ = _views(program, step)
    cells = layer.side**2 if layer.softmax else 0
    groups = [(k * layer.classes, (k + 1) * layer.classes) for k in range(cells)]
    return [*finish(program, [], x, y), *(_grouped(program, y, y, groups) if groups else [])]


def _gaussian(program: Program, step: LayerCall, layer: GaussianYolo) -> list[Work]:
    x, y, n = _views(program, step)
    C = x.shape[0]
    return [
        kernel(
            program, "plan_layers.gaussian", n, x.a, y.a, n, C, C // len(layer.anchor_ids), layer.scale_x_y, x.ld, y.ld
        )
    ]


def _history(program: Program, step: LayerCall, layer: History) -> list[Work]:
    """One time step, as in every call of `predict`, has no history."""
    (x,), y = step.xs, step.y
    now, before = FeatureMap(x.shape, y), FeatureMap((y.shape[0] - x.shape[0], *x.shape[1:]), y, x.shape[0])
    return finish(program, [], program.view(x), program.view(now)) + (
        _constant(program, before, 0) if before.shape[0] else []
    )


def _implicit(program: Program, step: LayerCall, layer: Implicit) -> list[Work]:
    return _constant(program, step.y, program.be.to_numpy(step.w["weight"]))


def _local(program: Program, step: LayerCall, layer: Local) -> list[Work] | None:
    x, y, n = _views(program, step)
    (C, H, W), (F, OH, OW), key = x.shape, y.shape, (step.layers[0], program.type.name)
    if key not in program.prepared:
        weights, bias = (program.be.to_numpy(step.w[name]) for name in ("kernel", "bias"))
        weights = weights.reshape(OH * OW, F, C, -1).transpose(0, 3, 2, 1)  # (OH*OW, size*size, C, F)
        with np.errstate(over="ignore"):  # what float16 cannot hold is inf there
            weights = np.ascontiguousarray(weights.astype(program.type))
        bias = np.ascontiguousarray(bias.reshape(F, -1).T, np.float32)
        program.prepared[key] = program.be.asarray(weights), program.be.asarray(bias)
    sizes = (n, C, F, H, W, OH, OW, layer.size, layer.stride, layer.pad, x.ld, y.ld, NAMES.index(layer.activation))
    return [kernel(program, "plan_layers.local", n, x.a, *program.prepared[key], y.a, *sizes)]


def _local_avgpool(program: Program, step: LayerCall, layer: LocalAvgPool) -> list[Work]:
    x, y, n = _views(program, step)
    sizes = (n, *x.shape, *y.shape[1:], layer.window, *layer.strides, layer.pad_total // 2, x.ld, y.ld)
    return [kernel(program, "plan_layers.local_avgpool", n, x.a, y.a, *sizes)]


def _maxpool(program: Program, step: LayerCall, layer: MaxPool) -> list[Work] | None:
    x, y, n = _views(program, step)
    if layer.maxpool_depth:
        return [kernel(program, "plan_layers.maxpool_depth", n, x.a, y.a, n, x.shape[0], y.shape[0], x.ld, y.ld)]
    if layer.antialiasing:
        return None
    pool = steps.MaxPool(
        layers=step.layers, xs=step.xs, y=step.y, size=layer.window, strides=layer.strides, padding=layer.pad_total
    )
    others = kernel(program, "plan_layers.zero_others", n, x.a, y.a, n, y.shape[0], x.ld, y.ld)
    return [*launches.BIND[steps.MaxPool](program, pool), others]


def _normalization(program: Program, step: LayerCall, layer: Normalization) -> list[Work]:
    x, y, n = _views(program, step)
    windows = program.be.asarray(lrn_windows(x.shape[0], layer.size))
    sizes = (n, x.shape[0], layer.alpha, layer.beta, layer.kappa, x.ld, y.ld)
    return [kernel(program, "plan_layers.lrn", n, x.a, windows, y.a, *sizes)]


def _reorg(program: Program, step: LayerCall, layer: Reorg | Reorg3d) -> list[Work]:
    x, y, n = _views(program, step)
    (C, H, W), s = x.shape, layer.stride
    if layer.reverse or isinstance(layer, Reorg):  # numbers are seen in another shape than the map has
        C, H, W = C // s**2, H * s, W * s
    if layer.reverse and isinstance(layer, Reorg3d):
        C, H, W = C // s**2, H * s, W * s
    sizes = (n, *y.sizes, x.sizes[1], C, H, W, s, layer.reverse, x.ld, y.ld)
    return [kernel(program, "plan_layers.reorg", n, x.a, y.a, *sizes)]


def _region(program: Program, step: LayerCall, layer: Region) -> list[Work] | None:
    read = [m.storage for s in program.steps for m in s.reads]
    if step.y.base is not None or step.y in read:
        return None  # its result is not a map with channels: nothing but the caller may read it
    x, y, _ = _views(program, step)
    program.rows.add(step.y)
    E, n = x.shape[0] // layer.num, y.pixels * layer.num
    sizes = (n, layer.num, E, layer.coords, layer.softmax and layer.tree is None, x.ld, y.ld)
    work = [kernel(program, "plan_layers.region", 32 * n, x.a, y.a, *sizes)]
    if layer.tree is None:
        return work
    firsts = [a * E + layer.coords + 1 for a in range(layer.num)]
    groups = [(k + i, k + j) for k in firsts for i, j in layer.tree.groups]
    return work + _grouped(program, y, y, groups, pixelwise=True)


def _softmax(program: Program, step: LayerCall, layer: Softmax) -> list[Work]:
    x, y, n = _views(program, step)
    K = n // program.plan.batch // layer.groups
    siblings = layer.tree.groups if layer.tree is not None else [(0, K)]
    groups = [(g * K + i, g * K + j) for g in range(layer.groups) for i, j in siblings]
    return _grouped(program, x, y, groups, layer.temperature)


def _grouped(
    program: Program, x: View, y: View, groups: list[tuple[int, int]], temperature: float = 1.0, pixelwise: bool = False
) -> list[Work]:
    """Return the work of a softmax over each group (from, to) of an image's numbers in memory order, or of a pixel's."""
    rows, P = (y.pixels, 1) if pixelwise else (program.plan.batch, y.sizes[1])
    n, edges = rows * len(groups), program.be.asarray(np.array(groups, np.int32))
    sizes = (n, len(groups), P, temperature, x.ld, y.ld)
    return [kernel(program, "plan_layers.softmax", 32 * n, x.a, edges, y.a, *sizes)]


def _shortcut(program: Program, step: LayerCall, layer: Shortcut) -> list[Work]:
    if layer.weights_type == "none":
        return _unlike(program, step, layer)
    x, y, n = _views(program, step)
    factors, work = normalize_weights(program.be, step.w["weight"], layer.weights_normalization), []
    for t, m in enumerate(step.xs[1:], 1):
        other, own = program.view(m), factors[0] if t == 1 else None
        sizes = (n, *x.sizes, *other.sizes, factors.shape[1], x.ld, other.ld, y.ld)
        work.append(kernel(program, "plan_layers.join_weighted", n, x.a, other.a, own, factors[t], y.a, *sizes))
        x = y
    return work + _activated(program, layer.activation, y)


def _unlike(program: Program, step: LayerCall, layer: Shortcut | SortShortcut) -> list[Work]:
    x, y, n = _views(program, step)
    eps, slope = (layer.eps, layer.slope) if isinstance(layer, SortShortcut) else (0.0, 0.0)
    join, work = JOINS[Sort if isinstance(layer, SortShortcut) else Add], []
    for m in step.xs[1:]:
        other = program.view(m)
        sizes = (n, *x.sizes, *other.sizes, x.ld, other.ld, y.ld, join, eps, slope)
        work.append(kernel(program, "plan.join_unlike", n, x.a, other.a, y.a, *sizes))
        x = y
    return work + _activated(program, layer.activation, y)


LAYERS: dict[type[Layer], Callable[[Program, LayerCall, Any], list[Work] | None]] = {
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
    SortShortcut: _unlike,
}
