"""What a layer without a step of its own is on a GPU: kernels for maps that lie pixel by pixel, or its own `forward`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..layers import Run
from ..layers.avgpool import AvgPool
from ..layers.region import Region
from ..layers.reorg import Reorg
from ..layers.shortcut import Shortcut
from ..layers.softmax import Softmax
from ..layers.sort_shortcut import SortShortcut
from ..ops.activation import FUNCTIONS
from .lane import Work
from .launches import JOINS, finish, kernel
from .steps import Activate, Add, Reference, Sort

if TYPE_CHECKING:
    from .cuda import Program


def reference(program: Program, step: Reference) -> list[Work]:
    """Return the layer's work on the GPU where it has kernels for maps pixel by pixel, else its own `forward`."""
    own = LAYERS.get(type(step.layer))
    work = None if own is None or step.after else own(program, step, step.layer)
    return [_through(program, step)] if work is None else work


def _through(program: Program, step: Reference) -> Work:
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
        result, _ = step.layer.forward(be, step.w, *inputs, run=Run())
        result = be.asarray(result, np.float32)
        launch("plan.from_nchw", result.size, result, y.a, result.size, F, Q, y.ld)

    return run


def _avgpool(program: Program, step: Reference, layer: AvgPool) -> list[Work] | None:
    x, y = program.view(step.xs[0]), program.view(step.y)
    (C, P), n = x.sizes, y.pixels * y.shape[0]
    return [kernel(program, "plan.avgpool", n, x.a, y.a, n, C, P, x.ld, y.ld)]


def _reorg(program: Program, step: Reference, layer: Reorg) -> list[Work] | None:
    if layer.reverse:
        return None
    x, y = program.view(step.xs[0]), program.view(step.y)
    n = y.pixels * y.shape[0]
    return [kernel(program, "plan.reorg", n, x.a, y.a, n, *x.shape, layer.stride, x.ld, y.ld)]


def _region(program: Program, step: Reference, layer: Region) -> list[Work] | None:
    read = [m.root for s in program.steps for m in s.reads]
    if layer.tree is not None or step.y.whole is not None or step.y in read:
        return None  # its result is not a map with channels: nothing but the caller may read it
    x, y = program.view(step.xs[0]), program.view(step.y)
    program.rows.add(step.y)
    n = y.pixels * layer.num
    sizes = (n, layer.num, x.shape[0] // layer.num, layer.coords, layer.softmax, x.ld, y.ld)
    return [kernel(program, "plan.region", 32 * n, x.a, y.a, *sizes)]


def _softmax(program: Program, step: Reference, layer: Softmax) -> list[Work] | None:
    x, y = program.view(step.xs[0]), program.view(step.y)
    if layer.tree is not None or layer.groups > 1 or x.sizes[1] > 1:
        return None
    sizes = (y.pixels, x.shape[0], layer.temperature, x.ld, y.ld)
    return [kernel(program, "plan.softmax", 32 * y.pixels, x.a, y.a, *sizes)]


def _unlike(program: Program, step: Reference, layer: Shortcut | SortShortcut) -> list[Work] | None:
    if layer.activation not in FUNCTIONS or (isinstance(layer, Shortcut) and layer.weights_type != "none"):
        return None
    x, y = program.view(step.xs[0]), program.view(step.y)
    eps, slope = (layer.eps, layer.slope) if isinstance(layer, SortShortcut) else (0.0, 0.0)
    join, n, work = JOINS[Sort if isinstance(layer, SortShortcut) else Add], y.pixels * y.shape[0], []
    for m in step.xs[1:]:
        other = program.view(m)
        sizes = (n, *x.sizes, *other.sizes, x.ld, other.ld, y.ld, join, eps, slope)
        work.append(kernel(program, "plan.join_unlike", n, x.a, other.a, y.a, *sizes))
        x = y
    return work + (finish(program, [Activate(layer.activation)], y, y) if layer.activation != "linear" else [])


LAYERS: dict[type, Callable[[Program, Reference, Any], list[Work] | None]] = {
    AvgPool: _avgpool,
    Region: _region,
    Reorg: _reorg,
    Shortcut: _unlike,
    Softmax: _softmax,
    SortShortcut: _unlike,
}
