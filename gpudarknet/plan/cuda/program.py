"""Run a plan on a GPU: maps pixel by pixel (NHWC), cuBLAS for the products, own kernels for the rest, one CUDA graph.

A map of the plan has its channels side by side, `ld` numbers from one pixel to the next: a convolution is a gemm of patches
(pixels, size * size * channels) with the kernel, and a part of a larger map is an address with that map's ld. Maps with memory
of their own begin at 128 bytes or better and have ld rounded up to 16 bytes, so that kernels can move 16 bytes at a time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np

from ...backend import Backend
from ...backend.cublas import WORKSPACE
from ...errors import OutOfMemoryError
from ...layers import Shape
from ...layers.convolutional import fold_batch_norm
from ..steps import Convolve, FeatureMap, LayerCall, Plan, Step, step_table, totals
from . import algorithms, elementwise, launches, layers
from .canonicalize import as_convolutions
from .convolution import convolve
from .input import Entry
from .recurrent import unrolled
from .schedule import decide
from .stream import Work, stream_context

BIND: dict[type[Step], Callable[[Program, Any], list[Work]]] = {
    **launches.BIND,
    Convolve: convolve,
    LayerCall: layers.reference,
    **elementwise.BIND,
}


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

    def images(self, first: int, count: int) -> View:
        """Return the view of some of its images."""
        P = self.sizes[1]
        a = self.a[first * P * self.ld :][: (count * P - 1) * self.ld + self.shape[0]]
        return View(a, self.shape, self.ld, count * P, self.start)


class Program:
    """A plan bound to an arena on the device and to prepared weights; `run` may be called from any thread.

    precision: fp32, tf32 (fp32 in memory, TF32 in products) or fp16 (in memory; sums are fp32). prepared: (layers, type, form) ->
    their arrays, which programs of one network share. choices: measured ways to convolve, as race.py makes them. poison fills
    the arena with NaN before each run, so that reading what no step wrote shows in the results. graph=False runs every step
    eagerly; together=False and ahead=False leave out what scheme.py says of them. Raises BackendError where memory does not
    suffice.
    """

    def __init__(
        self,
        plan: Plan,
        be: Backend,
        precision: str = "fp32",
        prepared: dict[Any, tuple[Any, Any]] | None = None,
        choices: Mapping[str, str] | None = None,
        poison: bool = False,
        graph: bool = True,
        together: bool = True,
        ahead: bool = True,
    ):
        self.heads = len(plan.outputs)  # what recurrent layers remember comes after them
        plan, self.memories = unrolled(as_convolutions(plan, be), be)
        self.plan, self.be, self.precision, self.poison = plan, be, precision, poison
        self.type = np.dtype(np.float16 if precision == "fp16" else np.float32)
        self.width = 16 // self.type.itemsize
        self.prepared = {} if prepared is None else prepared
        self.graph: Any = None
        self._decide = partial(decide, plan, precision=precision, choices=choices, together=together, ahead=ahead)
        self.scheme = self._decide(plan.batch)
        self.steps = self.scheme.steps
        self.writers = {reader: writer for writer, reader in self.scheme.ahead.items()}
        self.weights = sum(
            algorithms.weight_bytes(s, self._form(s), self.type.itemsize) for s in self.scheme.algorithms
        )
        self.stream_context = stream_context(be)
        with self.stream_context.use():
            self._bind(graph)

    def _bind(self, graph: bool) -> None:
        """Allocate memory, and bind the steps to it."""
        self._allocate()
        self.algorithms: dict[Step, str] = {}
        self.rows: set[FeatureMap] = set()  # maps whose numbers are results in the order in which they lie
        self.through: list[str] = []  # sections that run through their layer's own `forward`
        self.kernels = {"plan.from_nchw", "plan.to_nchw", "plan.to_rows"}  # to be compiled; launches.py adds to them
        self.entry, self.outputs = Entry(self), [self.view(m) for m in self.plan.outputs]
        self.work: list[Work] = []
        for step in self.steps:
            if step is not self.entry.step:
                self.work += BIND[type(step)](self, step)
        self.eagerly = self._why_eager(graph)

    def _needed(self, batch: int) -> int:
        """Return the bytes on the device for a batch of this network, beside what programs share."""
        scheme = self.scheme if batch == self.plan.batch else self._decide(batch)
        results = 4 * batch * sum(prod(m.shape) for m in self.plan.outputs)
        ready = all(self._key(s) in self.prepared for s in self.scheme.algorithms)
        return scheme.numbers * self.type.itemsize + results + (0 if ready else self.weights)

    def _allocate(self) -> None:
        batch, (C, H, W), be = self.plan.batch, self.plan.input.shape, self.be
        needed = self._needed(batch)
        place = f"batch {batch} of {C} x {H} x {W} in {self.precision} needs {needed:,} bytes on the device"
        free = free_bytes(be)
        if free is not None and needed > free:
            fit = bisect_right(range(batch), free, key=self._needed) - 1
            way = f"a batch of {fit} would fit" if fit > 0 else "not one image would fit; make them smaller"
            raise OutOfMemoryError(f"{place}, {free:,} are free; {way}")
        try:
            self.arena = be.empty((self.scheme.numbers,), self.type)
        except MemoryError as e:  # memory may be free in pieces only
            raise OutOfMemoryError(f"{place}: {e.__cause__ or e}; take a smaller batch") from None

    def _why_eager(self, graph: bool) -> str | None:
        if not graph:
            return "asked for"
        if self.stream_context.stream is None:
            return f"backend {self.be.name} has no CUDA streams"
        if self.through:
            return f"fallback layers: {', '.join(sorted(set(self.through)))}"
        return None

    def view(self, m: FeatureMap) -> View:
        """Return a map's memory."""
        C, H, W = m.shape
        ld, pixels = algorithms.rounded(m.storage.shape[0]), self.plan.batch * H * W
        first = self.scheme.offsets[m.storage] + m.channel_offset
        return View(self.arena[first : first + (pixels - 1) * ld + C], m.shape, ld, pixels, m.channel_offset)

    def memory(self, step: Step, name: str) -> Any:
        """Return memory that a step needs beside its maps."""
        first = self.scheme.offsets[step, name]
        return self.arena[first : first + self.scheme.needs[step, name]]

    def case(self, step: Convolve) -> algorithms.Case:
        """Return what a way to convolve depends on."""
        return algorithms.Case(step, self.plan.batch, self.type.itemsize)

    def fits(self, *views: View) -> bool:
        """Say whether kernels can move 16 bytes at a time in all of these."""
        return all(view.fits(self.width) for view in views)

    def _form(self, step: Convolve) -> str:
        return algorithms.WAYS[self.scheme.algorithms[step]].form

    def _key(self, step: Convolve) -> tuple[Any, ...]:
        group = self.scheme.together.get(step, (step,))
        return tuple((s.layers[0], s.part) for s in group), step.layers[0], step.part, self.type.name, self._form(step)

    def arrays(self, step: Convolve) -> tuple[Any, Any]:
        """Return the kernel as its way wants it (ways.py), and the bias (F,) in float32.

        Of convolutions that one gemm does, the kernels lie in one array, which every one of them returns.
        """
        if self._key(step) not in self.prepared:
            group = self.scheme.together.get(step, (step,))
            arrays = [fold_batch_norm({name: self.be.to_numpy(a) for name, a in s.w.items()}, s.binary) for s in group]
            kernels = [
                algorithms.weights(s, self._form(s), w["kernel"], self.type) for s, w in zip(group, arrays, strict=True)
            ]
            kernel = self.be.asarray(np.concatenate(kernels) if len(group) > 1 else kernels[0])
            for s, w in zip(group, arrays, strict=True):
                self.prepared[self._key(s)] = kernel, self.be.asarray(w["bias"], np.float32)
        return self.prepared[self._key(step)]

    def run(self, x: Any) -> list[Any]:
        """Run the plan on x; return fresh arrays, one per output, on the caller's stream.

        x: float32 (N, C, H, W) on the device, or Pictures.
        """
        N, be, launch = self.plan.batch, self.be, self.be.launch
        assert launch is not None
        with be.use_device(self.stream_context.device):
            launches.compile_kernels(self)
            results = [be.empty((N, *m.shape)) for m in self.plan.outputs[: self.heads]]
        with self.stream_context.use():
            states = [be.empty((N, *m.shape)) for m in self.plan.outputs[self.heads :]]
            if self.graph is None and self.eagerly is None:
                self._capture()
            if self.poison:
                self.arena.fill(np.nan)
            self.entry.take(x)
            remembered = [memory.arrays(be, N) for memory in self.memories]
            for memory, arrays in zip(self.memories, remembered, strict=True):
                for m, a in zip(memory.before, arrays, strict=True):
                    v = self.view(m)
                    launch("plan.from_nchw", a.size, a, v.a, a.size, *v.sizes, v.ld)
            self.replay()
            for m, v, result in zip(self.plan.outputs, self.outputs, results + states, strict=True):
                C, P = v.sizes
                if m in self.rows:
                    launch("plan.to_rows", result.size, v.a, result, result.size, C, v.ld)
                else:
                    launch("plan.to_nchw", 256 * N * -(-C // 32) * -(-P // 32), v.a, result, C, P, v.ld, block=256)
            kept = iter(states)
            for memory in self.memories:
                memory.w["state"] = [next(kept) for _ in memory.after]
        del remembered  # not before the caller's stream, to which it may belong, waits for the plan
        return results

    def replay(self) -> None:
        """Run the steps on the input that was given last. For `run`, and where steps are timed."""
        if self.graph is not None:
            self.graph.launch(self.stream_context.stream)
        else:
            self._eager()

    def _eager(self) -> None:
        for launch in self.work:
            launch()

    def _capture(self) -> None:
        """Record the steps as a CUDA graph; where CUDA refuses, remember why and go on eagerly."""
        try:
            self.graph = self.stream_context.capture(self._eager)
        except Exception as e:
            self.eagerly = f"capture failed: {(str(e).splitlines() or [type(e).__name__])[0]}"

    def __del__(self) -> None:
        if getattr(self, "graph", None) is not None:
            self.stream_context.retire(self.graph)

    def describe(self) -> str:
        """Return the plan as text, how each convolution is done, how it runs, and the memory it takes."""
        size, scheme = self.type.itemsize, self.scheme
        methods = dict(self.algorithms)
        for writer, reader in scheme.ahead.items():
            only = "only " if writer in scheme.unstored else ""
            words = [methods.get(writer, ""), f"writes {only}the im2col of layer {reader.layers[0]}"]
            methods[writer] = "; ".join(filter(None, words))
        how = "as a CUDA graph" if self.eagerly is None else f"eagerly ({self.eagerly})"
        launches = len(self.work) + self.entry.launches
        sizes = (scheme.numbers * size, self.weights, WORKSPACE)
        arena, weights, workspace = (f"{size / 2**20:.1f}" for size in sizes)
        return "\n".join(
            [
                *step_table(self.steps, methods, lambda m: size * (scheme.offsets[m.storage] + m.channel_offset)),
                f"{totals(self.steps, self.through)}; {self.plan.flops / 1e9:.3f} GFLOP per image",
                f"CUDA, {self.precision}, {how}: {launches} launches; MiB on the device for batch {self.plan.batch}: "
                f"arena {arena}, weights {weights}, cuBLAS {workspace}",
            ]
        )


def free_bytes(be: Backend) -> int | None:
    """Return how many bytes can be allocated on the current device; None where there is no device."""
    cuda = getattr(be.xp, "cuda", None)
    if cuda is None:
        return None
    return int(cuda.runtime.memGetInfo()[0]) + int(be.xp.get_default_memory_pool().free_bytes())
