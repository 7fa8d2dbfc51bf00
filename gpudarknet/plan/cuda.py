"""Run a plan on a GPU: maps pixel by pixel (NHWC), cuBLAS for the products, kernels/plan.cu for the rest, one CUDA graph.

A map of the plan has its channels side by side, `ld` numbers from one pixel to the next: a convolution is a gemm of patches
(pixels, size * size * channels) with the kernel, and a part of a larger map is an address with that map's ld. Maps with memory
of their own begin at 128 bytes or better and have ld rounded up to 16 bytes, so that kernels can move 16 bytes at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..backend import Backend
from ..cublas import WORKSPACE
from ..errors import BackendError
from ..layers import Run, Shape
from ..layers.avgpool import AvgPool
from ..layers.convolutional import folded
from ..layers.region import Region
from ..layers.reorg import Reorg
from ..layers.softmax import Softmax
from ..ops.activation import NAMES
from .build import layout
from .lane import Work, address, lane
from .steps import (
    Activate,
    Add,
    After,
    Convolve,
    Copy,
    Map,
    MaxPool,
    Multiply,
    Plan,
    Reference,
    Sort,
    Step,
    Upsample,
    YoloHead,
)

ROUND = 8  # channels: 16 bytes of float16
COLUMNS = 256 << 20  # bytes of patches at a time, at most
WIDE = frozenset({"linear", "leaky", "relu", "mish", "swish", "logistic"})  # what `finish` can do to 16 bytes at once
JOINS: dict[type, int] = {Add: 1, Sort: 2, Multiply: 3}  # as plan.cu numbers them


@dataclass(frozen=True)
class View:
    """A map in the arena: a (its first number to its last), its shape (C, H, W), ld, and how many pixels all images have."""

    a: Any
    shape: Shape
    ld: int
    pixels: int
    start: int  # its first channel in the map that has the memory

    @property
    def sizes(self) -> tuple[int, int]:
        """(C, H*W)"""
        return self.shape[0], self.shape[1] * self.shape[2]

    def fits(self, width: int) -> bool:
        """Say whether all its pixels can be read in steps of `width` numbers."""
        return not (self.shape[0] % width or self.ld % width or self.start % width)


class Program:
    """A plan bound to an arena on the device and to prepared weights; `run` may be called from any thread.

    precision: fp32, tf32 (fp32 in memory, TF32 in products) or fp16 (in memory; sums are fp32). prepared: (layer, type) -> its
    arrays, which programs of one network share. poison fills the arena with NaN before each run, so that reading what no step
    wrote shows in the results. graph=False runs every step eagerly. Raises BackendError where memory does not suffice.
    """

    def __init__(
        self,
        plan: Plan,
        be: Backend,
        precision: str = "fp32",
        prepared: dict[Any, tuple[Any, Any]] | None = None,
        poison: bool = False,
        graph: bool = True,
    ):
        self.plan, self.be, self.precision, self.poison = plan, be, precision, poison
        self.type = np.dtype(np.float16 if precision == "fp16" else np.float32)
        self.width = 16 // self.type.itemsize
        self.prepared = {} if prepared is None else prepared
        self.steps = living(plan)
        self.offsets, self.numbers, _ = layout(self.steps, plan.input, plan.outputs, plan.batch, padded)
        self.columns = max((min(self._patches(s), COLUMNS) for s in self.steps), default=0)
        pooled = [s for s in self.steps if isinstance(s, Convolve) and s.pooled]
        self.unpooled = max((self._blocks(s) * self.images_at_a_time(s) for s in pooled), default=0)
        self.weights = sum(_weight_bytes(s, self.type.itemsize) for s in self.steps if isinstance(s, Convolve))
        self._allocate()
        self.methods: dict[Step, str] = {}
        self.rows: set[Map] = set()  # maps whose numbers are results in the order in which they lie
        self.through: list[str] = []  # sections that run through their layer's own `forward`
        self.work: list[Work] = []
        for step in self.steps:
            self.work += BIND[type(step)](self, step)
        self.graph: Any = None
        self.eagerly = self._why_eager(graph)
        if self.lane.cuda is not None:
            self.lane.cuda.get_current_stream().synchronize()  # the weights are there, whichever stream runs first

    def _patches(self, step: Step) -> int:
        """Return the bytes of all patches of a step, 0 where it needs none."""
        if not isinstance(step, Convolve) or _direct(step) or _depthwise(step):
            return 0
        return self.plan.batch * prod(step.host) * rounded(step.xs[0].shape[0] * step.size**2) * self.type.itemsize

    def _blocks(self, step: Step) -> int:
        """Return the bytes of a convolution's map before blocks of it are pooled, for one image; 0 where none are."""
        if not isinstance(step, Convolve) or not step.pooled:
            return 0
        return prod(step.host) * rounded(step.y.shape[0]) * self.type.itemsize

    def images_at_a_time(self, step: Convolve) -> int:
        """Return for how many images there is room before blocks are pooled."""
        return max(1, min(self.plan.batch, COLUMNS // self._blocks(step)))

    def _allocate(self) -> None:
        arena = self.numbers * self.type.itemsize
        results = 4 * self.plan.batch * sum(prod(m.shape) for m in self.plan.outputs)
        wanted = [f"{s.layers[0]}" for s in self.steps if isinstance(s, Convolve) and self._key(s) not in self.prepared]
        weights = self.weights if wanted else 0
        needed = arena + self.columns + self.unpooled + results + weights
        free = free_bytes(self.be)
        fit = (
            0
            if free is None
            else (free - self.columns - self.unpooled - weights - WORKSPACE)
            * self.plan.batch
            // max(1, arena + results)
        )
        C, H, W = self.plan.input.shape
        place = f"batch {self.plan.batch} of {C} x {H} x {W} in {self.precision}"
        way = (
            f"a batch of {fit} would fit"
            if fit > 0
            else "not even one image would fit; take a smaller width and height"
        )
        if free is not None and needed > free:
            raise BackendError(f"{place} needs {needed:,} bytes on the device, {free:,} are free; {way}")
        try:
            self.lane = lane(self.be)
            self.arena = self.be.empty((self.numbers,), self.type)
            self.col, self.blocks = (
                self.be.empty((max(1, size // self.type.itemsize),), self.type)
                for size in (self.columns, self.unpooled)
            )
        except MemoryError as e:  # CuPy's is one; memory may be free but in pieces
            raise BackendError(f"{place} needs {needed:,} bytes on the device: {e}; take a smaller batch") from None

    def _why_eager(self, graph: bool) -> str | None:
        if not graph:
            return "asked for"
        if self.lane.stream is None:
            return f"backend {self.be.name} has no CUDA streams"
        if self.through:
            return f"through the reference: {', '.join(sorted(set(self.through)))}"
        return None

    def view(self, m: Map) -> View:
        """Return a map's memory."""
        C, H, W = m.shape
        ld, pixels, first = rounded(m.root.shape[0]), self.plan.batch * H * W, self.offsets[m.root] + m.channel
        return View(self.arena[first : first + (pixels - 1) * ld + C], m.shape, ld, pixels, m.channel)

    def fits(self, *views: View) -> bool:
        """Say whether kernels can move 16 bytes at a time in all of these."""
        return all(view.fits(self.width) for view in views)

    def _key(self, step: Convolve) -> tuple[int, str]:
        return step.layers[0], self.type.name

    def arrays(self, step: Convolve) -> tuple[Any, Any]:
        """Return the kernel as rows (F, size*size*C/groups), each rounded up to 16 bytes, and the bias (F,) in float32."""
        key, be = self._key(step), self.be
        if key not in self.prepared:
            w = folded({name: be.to_numpy(a) for name, a in step.w.items()})
            kernel = w["kernel"].transpose(0, 2, 3, 1).reshape(len(w["kernel"]), -1)  # (F, size, size, C/groups)
            if _depthwise(step):
                packed = np.ascontiguousarray(kernel.T)  # (size*size, C)
            else:
                packed = np.zeros((len(kernel), rounded(kernel.shape[1])), np.float32)
                packed[:, : kernel.shape[1]] = kernel
            with np.errstate(over="ignore"):  # what float16 cannot hold is inf there
                self.prepared[key] = be.asarray(packed.astype(self.type)), be.asarray(w["bias"], np.float32)
        return self.prepared[key]

    def run(self, x: Any) -> list[Any]:
        """Run the plan on x (N, C, H, W), float32 on the device; return fresh arrays, one per output, on the caller's stream."""
        N, be, launch = self.plan.batch, self.be, self.be.launch
        assert launch is not None
        results = [be.empty((N, *m.shape)) for m in self.plan.outputs]
        with self.lane.turn():
            if self.graph is None and self.eagerly is None:
                self._capture()
            if self.poison:
                for a in (self.arena, self.col, self.blocks):
                    a.fill(np.nan)
            y, (C, P) = self.view(self.plan.input), self.view(self.plan.input).sizes
            launch("plan.from_nchw", x.size, x, y.a, x.size, C, P, y.ld)
            if self.graph is not None:
                self.graph.launch(self.lane.stream)
            else:
                self._eager()
            for m, result in zip(self.plan.outputs, results, strict=True):
                v, (C, P) = self.view(m), self.view(m).sizes
                if m in self.rows:
                    launch("plan.to_rows", result.size, v.a, result, result.size, C, v.ld)
                else:
                    launch("plan.to_nchw", 256 * N * -(-C // 32) * -(-P // 32), v.a, result, C, P, v.ld, block=256)
        return results

    def _eager(self) -> None:
        for launch in self.work:
            launch()

    def _capture(self) -> None:
        """Record the steps as a CUDA graph; where CUDA refuses, remember why and go on eagerly."""
        try:
            self.graph = self.lane.capture(self._eager)
        except Exception as e:
            self.eagerly = f"capture failed: {(str(e).splitlines() or [type(e).__name__])[0]}"

    def __del__(self) -> None:
        if getattr(self, "graph", None) is not None:
            with suppress(Exception):  # at the end of the process CUDA may be gone
                self.lane.stream.synchronize()  # the graph may still be at work

    def describe(self) -> str:
        """Return the plan as text, how each convolution is done, how it runs, and the memory it takes."""
        how = "as a CUDA graph" if self.eagerly is None else f"eagerly ({self.eagerly})"
        sizes = (self.numbers * self.type.itemsize, self.columns + self.unpooled, self.weights, WORKSPACE)
        arena, patches, weights, workspace = (f"{size / 2**20:.1f}" for size in sizes)
        return (
            f"{self.plan.describe(self.methods)}\n"
            f"CUDA, {self.precision}, {how}: {len(self.work)} launches; MiB on the device: "
            f"arena {arena}, patches {patches}, weights {weights}, cuBLAS {workspace}"
        )


def rounded(channels: int) -> int:
    """Return the channels rounded up to what 16-byte accesses need."""
    return -(-channels // ROUND) * ROUND


def padded(m: Map) -> int:
    """Return how many numbers an image of a map takes."""
    C, H, W = m.shape
    return rounded(C) * H * W


def living(plan: Plan) -> list[Step]:
    """Return the steps on which an output depends: a [cost] at the end of a classifier is nobody's."""
    needed = {m.root for m in plan.outputs}
    kept: list[Step] = []
    for step in reversed(plan.steps):
        if step.y.root in needed:
            kept.append(step)
            needed.update(m.root for m in step.reads)
    return kept[::-1]


def free_bytes(be: Backend) -> int | None:
    """Return how many bytes can be allocated on the current device; None where there is no device."""
    cuda = getattr(be.xp, "cuda", None)
    if cuda is None:
        return None
    return int(cuda.runtime.memGetInfo()[0]) + int(be.xp.get_default_memory_pool().free_bytes())


def _direct(step: Convolve) -> bool:
    return (step.size, step.strides, step.pad) == (1, (1, 1), 0) and not _depthwise(step)


def _depthwise(step: Convolve) -> bool:
    return step.groups == step.xs[0].shape[0] == step.y.shape[0] and step.groups > 1


def _weight_bytes(step: Convolve, itemsize: int) -> int:
    F, C = step.y.shape[0], step.xs[0].shape[0] // step.groups
    row = C * step.size**2
    return F * (row if _depthwise(step) else rounded(row)) * itemsize + 4 * F


def _launch(program: Program, kernel: str, threads: int, *args: Any) -> Work:
    launch = program.be.launch
    assert launch is not None
    return lambda: launch(kernel, threads, *args)


def _convolve(program: Program, step: Convolve) -> list[Work]:
    y = program.view(step.y)
    _, bias = program.arrays(step)
    if not step.pooled:
        work = _products(program, step, 0, y.pixels, y.a, y.ld)
        return work + _finish(program, step.after, y, y, bias)
    (F, OH, OW), work = y.shape, []
    ((kind, _, _), *_), rest = passes(step.after), step.after[1:]  # nothing but activations comes after a pool
    wide = kind in WIDE and program.fits(y)
    images, ld = program.images_at_a_time(step), rounded(F)
    for first in range(0, program.plan.batch, images):
        count = min(images, program.plan.batch - first)
        pixels = count * OH * OW
        out = program.blocks[: (4 * pixels - 1) * ld + F]
        work += _products(program, step, 4 * OH * OW * first, 4 * pixels, out, ld)
        part = y.a[first * OH * OW * y.ld :][: (pixels - 1) * y.ld + F]
        n = pixels * F // (program.width if wide else 1)
        sizes = (n, F, OH, OW, ld, y.ld, NAMES.index(kind), wide)
        work.append(_launch(program, "plan.finish_blocks", n, out, bias, part, *sizes))
    return work + _finish_in_place(program, rest, y)


def _products(program: Program, step: Convolve, start: int, pixels: int, out: Any, ld: int) -> list[Work]:
    """Return the work of convolving without bias: out (pixels, F), the pixels from `start` on of the result's map."""
    x, (OH, OW), (weights, _) = program.view(step.xs[0]), step.host, program.arrays(step)
    (C, H, W), F, g, taps = x.shape, step.y.shape[0], step.groups, step.size**2
    G, K = C // g, C // g * taps
    geometry = (H, W, OH, OW, step.size, *step.strides, step.dilation, step.pad)
    if _depthwise(step):
        program.methods[step] = "depthwise"
        wide = program.fits(x, program.view(step.y))
        n = pixels * C // (program.width if wide else 1)
        return [_launch(program, "plan.depthwise", n, x.a, weights, out, n, C, *geometry, x.ld, ld, wide)]
    if _direct(step):
        program.methods[step] = "gemm"
        return [_product(program, address(out), ld, address(x.a), weights, pixels, F, K, x.ld, g)]
    ldcol, size, work = rounded(C * taps), program.type.itemsize, []
    rows = min(pixels, max(1, COLUMNS // (ldcol * size)))
    parts = range(0, pixels, rows)
    program.methods[step] = "im2col, gemm" + (f" in {len(parts)} parts" if len(parts) > 1 else "")
    wide = program.fits(x) and G % program.width == 0
    for first in parts:
        count = min(rows, pixels - first)
        n = count * taps * C // (program.width if wide else 1)
        col = program.col[: (count - 1) * ldcol + C * taps]
        sizes = (n, start + first, C, G, *geometry, x.ld, ldcol, wide)
        work.append(_launch(program, "plan.im2col", n, x.a, col, *sizes))
        at = address(out) + first * ld * size
        work.append(_product(program, at, ld, address(col), weights, count, F, K, ldcol, g))
    return work


def _product(
    program: Program, y: int, ldy: int, a: int, weights: Any, M: int, F: int, K: int, lda: int, groups: int
) -> Work:
    """Return the work of y (M, F) = a (M, K) @ weights (F, K).T, for each of the groups of columns; y, a: addresses."""
    handle, w, ldw, precision = program.lane.handle, address(weights), weights.shape[1], program.precision
    if groups == 1:
        return lambda: handle.gemm(precision, y, a, w, M, F, K, ldy, lda, ldw)
    N = F // groups
    return lambda: handle.gemms(precision, groups, y, a, w, M, N, K, ldy, lda, ldw, N, K, N * ldw)


Pass = tuple[str, Add | Sort | Multiply | None, str]


def passes(after: Sequence[After]) -> list[Pass]:
    """Group what is done to a result as `finish` does it: an activation, a join, an activation; at least once."""
    todo, found = list(after), list[Pass]()

    def activation() -> str:
        first = todo[0] if todo else None
        if not isinstance(first, Activate):
            return "linear"
        todo.pop(0)
        return first.kind

    while todo or not found:
        before, join, last = activation(), None, "linear"
        if todo and not isinstance(todo[0], Activate):
            join, last = todo.pop(0), activation()
        found.append((before, join, last))  # type: ignore[arg-type]
    return found


def _finish(program: Program, after: Sequence[After], x: View, y: View, bias: Any = None) -> list[Work]:
    """Return the work of y = after(x + bias)."""
    work: list[Work] = []
    C, P = y.sizes
    for first, join, last in passes(after):
        other = program.view(join.other) if join is not None else None
        Co, Po = other.sizes if other is not None else (C, P)
        eps, slope = (join.eps, join.slope) if isinstance(join, Sort) else (0.0, 0.0)
        wide = {first, last} <= WIDE and program.fits(x, y) and (other is None or Co == 1 or program.fits(other))
        n = y.pixels * C // (program.width if wide else 1)
        work.append(
            _launch(
                program, "plan.finish", n, x.a, bias, other.a if other else None, y.a, n, C, P, Co, Po,
                x.ld, other.ld if other else 0, y.ld,
                NAMES.index(first), JOINS[type(join)] if join else 0, eps, slope, NAMES.index(last), wide,
            )
        )  # fmt: skip
        x, bias = y, None
    return work


def _finish_in_place(program: Program, after: Sequence[After], y: View) -> list[Work]:
    return _finish(program, after, y, y) if after else []


def _copy(program: Program, step: Copy) -> list[Work]:
    return _finish(program, step.after, program.view(step.xs[0]), program.view(step.y))


def _maxpool(program: Program, step: MaxPool) -> list[Work]:
    x, y = program.view(step.xs[0]), program.view(step.y)
    (C, H, W), (_, OH, OW), wide = x.shape, y.shape, program.fits(x, y)
    n = y.pixels * C // (program.width if wide else 1)
    sizes = (n, C, H, W, OH, OW, step.size, *step.strides, step.padding // 2, x.ld, y.ld, wide)
    return [_launch(program, "plan.maxpool", n, x.a, y.a, *sizes), *_finish_in_place(program, step.after, y)]


def _upsample(program: Program, step: Upsample) -> list[Work]:
    x, y = program.view(step.xs[0]), program.view(step.y)
    wide = program.fits(x, y)
    n = y.pixels * y.shape[0] // (program.width if wide else 1)
    sizes = (n, *x.shape, step.s, step.scale, x.ld, y.ld, wide)
    return [_launch(program, "plan.upsample", n, x.a, y.a, *sizes), *_finish_in_place(program, step.after, y)]


def _yolo(program: Program, step: YoloHead) -> list[Work]:
    x, y = program.view(step.xs[0]), program.view(step.y)
    C, n = x.shape[0], y.pixels * y.shape[0]
    sizes = (n, C, C // step.A, step.scale_x_y, step.new_coords, x.ld, y.ld)
    return [_launch(program, "plan.yolo", n, x.a, y.a, *sizes), *_finish_in_place(program, step.after, y)]


def _reference(program: Program, step: Reference) -> list[Work]:
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
    return [_launch(program, "plan.avgpool", n, x.a, y.a, n, C, P, x.ld, y.ld)]


def _reorg(program: Program, step: Reference, layer: Reorg) -> list[Work] | None:
    if layer.reverse:
        return None
    x, y = program.view(step.xs[0]), program.view(step.y)
    n = y.pixels * y.shape[0]
    return [_launch(program, "plan.reorg", n, x.a, y.a, n, *x.shape, layer.stride, x.ld, y.ld)]


def _region(program: Program, step: Reference, layer: Region) -> list[Work] | None:
    read = [m.root for s in program.steps for m in s.reads]
    if layer.tree is not None or step.y.whole is not None or step.y in read:
        return None  # its result is not a map with channels: nothing but the caller may read it
    x, y = program.view(step.xs[0]), program.view(step.y)
    program.rows.add(step.y)
    n = y.pixels * layer.num
    sizes = (n, layer.num, x.shape[0] // layer.num, layer.coords, layer.softmax, x.ld, y.ld)
    return [_launch(program, "plan.region", 32 * n, x.a, y.a, *sizes)]


def _softmax(program: Program, step: Reference, layer: Softmax) -> list[Work] | None:
    x, y = program.view(step.xs[0]), program.view(step.y)
    if layer.tree is not None or layer.groups > 1 or x.sizes[1] > 1:
        return None
    sizes = (y.pixels, x.shape[0], layer.temperature, x.ld, y.ld)
    return [_launch(program, "plan.softmax", 32 * y.pixels, x.a, y.a, *sizes)]


BIND: dict[type[Step], Callable[[Program, Any], list[Work]]] = {
    Convolve: _convolve,
    Copy: _copy,
    MaxPool: _maxpool,
    Reference: _reference,
    Upsample: _upsample,
    YoloHead: _yolo,
}
LAYERS: dict[type, Callable[[Program, Reference, Any], list[Work] | None]] = {
    AvgPool: _avgpool,
    Region: _region,
    Reorg: _reorg,
    Softmax: _softmax,
}
