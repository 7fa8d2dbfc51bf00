"""Run a plan on a GPU: maps pixel by pixel (NHWC), cuBLAS for the products, kernels/plan.cu for the rest, one CUDA graph.

A map of the plan has its channels side by side, `ld` numbers from one pixel to the next: a convolution is a gemm of patches
(pixels, size * size * channels) with the kernel, and a part of a larger map is an address with that map's ld. Maps with memory
of their own begin at 128 bytes or better and have ld rounded up to 16 bytes, so that kernels can move 16 bytes at a time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..backend import Backend
from ..cublas import WORKSPACE
from ..errors import BackendError
from ..layers import Shape
from ..layers.convolutional import folded
from . import launches, layers
from .as_convolution import as_convolutions
from .build import layout
from .lane import Work, lane
from .launches import COLUMNS, depthwise, direct, few, rounded, weight_bytes
from .steps import Convolve, Map, Plan, Reference, Step

BIND: dict[type[Step], Callable[[Program, Any], list[Work]]] = {**launches.BIND, Reference: layers.reference}


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
        plan = as_convolutions(plan, be)
        self.plan, self.be, self.precision, self.poison = plan, be, precision, poison
        self.type = np.dtype(np.float16 if precision == "fp16" else np.float32)
        self.width = 16 // self.type.itemsize
        self.prepared = {} if prepared is None else prepared
        self.steps = living(plan)
        self.offsets, self.numbers, _ = layout(self.steps, plan.input, plan.outputs, plan.batch, padded)
        self.columns, self.unpooled = self._columns(plan.batch), self._unpooled(plan.batch)
        self.weights = sum(weight_bytes(s, self.type.itemsize) for s in self._convolutions())
        self._allocate()
        self.methods: dict[Step, str] = {}
        self.rows: set[Map] = set()  # maps whose numbers are results in the order in which they lie
        self.through: list[str] = []  # sections that run through their layer's own `forward`
        self.input, self.outputs = self.view(plan.input), [self.view(m) for m in plan.outputs]
        self.work: list[Work] = []
        for step in self.steps:
            self.work += BIND[type(step)](self, step)
        self.graph: Any = None
        self.eagerly = self._why_eager(graph)
        if self.lane.cuda is not None:
            self.lane.cuda.get_current_stream().synchronize()  # the weights are there, whichever stream runs first

    def _convolutions(self) -> list[Convolve]:
        return [s for s in self.steps if isinstance(s, Convolve)]

    def _columns(self, batch: int) -> int:
        """Return the bytes for patches, of which there may be less than a convolution has."""
        laid_out = [s for s in self._convolutions() if not (direct(s) or depthwise(s) or few(s))]
        rows = [batch * prod(s.host) * rounded(s.xs[0].shape[0] * s.size**2) for s in laid_out]
        return min(max(rows, default=0) * self.type.itemsize, COLUMNS)

    def _unpooled(self, batch: int) -> int:
        """Return the bytes for maps whose blocks are to be pooled, for as many images as are done at a time."""
        pooled = [s for s in self._convolutions() if s.pooled and not few(s)]
        return max((self._block_bytes(s) * self.images_at_a_time(s, batch) for s in pooled), default=0)

    def _block_bytes(self, step: Convolve) -> int:
        return prod(step.host) * rounded(step.y.shape[0]) * self.type.itemsize

    def images_at_a_time(self, step: Convolve, batch: int) -> int:
        """Return for how many images of a batch there is room before blocks are pooled."""
        return max(1, min(batch, COLUMNS // self._block_bytes(step)))

    def _needed(self, batch: int) -> int:
        """Return the bytes on the device for a batch of this network, beside what programs share."""
        arena = self.numbers * self.type.itemsize * batch // self.plan.batch
        results = 4 * batch * sum(prod(m.shape) for m in self.plan.outputs)
        ready = all(self._key(s) in self.prepared for s in self._convolutions())
        return arena + results + self._columns(batch) + self._unpooled(batch) + (0 if ready else self.weights)

    def _allocate(self) -> None:
        batch, (C, H, W), be = self.plan.batch, self.plan.input.shape, self.be
        needed = self._needed(batch)
        place = f"batch {batch} of {C} x {H} x {W} in {self.precision} needs {needed:,} bytes on the device"
        try:
            self.lane = lane(be)
            free = free_bytes(be)
            if free is not None and needed > free:
                fit = bisect_right(range(batch), free, key=self._needed) - 1
                way = f"a batch of {fit} would fit" if fit > 0 else "not one image would fit; make them smaller"
                raise BackendError(f"{place}, {free:,} are free; {way}")
            self.arena = be.empty((self.numbers,), self.type)
            self.col, self.blocks = (
                be.empty((max(1, size // self.type.itemsize),), self.type) for size in (self.columns, self.unpooled)
            )
        except MemoryError as e:  # CuPy's is one; memory may be free in pieces only
            raise BackendError(f"{place}: {e}; take a smaller batch") from None

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
        """Return the kernel as its kernels on the device want it, and the bias (F,) in float32.

        Rows (F, size*size*C/groups), both rounded up to 8 (F not for groups); (size*size, C) for depthwise convolutions; float32
        (size*size*C, F) for those of few channels.
        """
        key, be = self._key(step), self.be
        if key not in self.prepared:
            w = folded({name: be.to_numpy(a) for name, a in step.w.items()})
            kernel = w["kernel"].transpose(0, 2, 3, 1).reshape(len(w["kernel"]), -1)  # (F, size, size, C/groups)
            if few(step):
                self.prepared[key] = be.asarray(kernel.T, np.float32), be.asarray(w["bias"], np.float32)
                return self.prepared[key]
            if depthwise(step):
                packed = np.ascontiguousarray(kernel.T)  # (size*size, C)
            else:
                F, K = kernel.shape
                packed = np.zeros((rounded(F) if step.groups == 1 else F, rounded(K)), np.float32)
                packed[:F, :K] = kernel
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
            y, (C, P) = self.input, self.input.sizes
            launch("plan.from_nchw", x.size, x, y.a, x.size, C, P, y.ld)
            if self.graph is not None:
                self.graph.launch(self.lane.stream)
            else:
                self._eager()
            for m, v, result in zip(self.plan.outputs, self.outputs, results, strict=True):
                C, P = v.sizes
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
