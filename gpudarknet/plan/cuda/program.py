"""Run a plan on a GPU: NHWC maps, cuBLAS for the gemms, our own kernels for the rest, one CUDA graph.

The channels of a pixel are contiguous, with a leading dimension `ld` from one pixel to the next: a convolution is a gemm of an
im2col matrix (pixels, size * size * channels) with the kernel, and a part of a larger map is an address with that map's ld. Maps
that own their memory are 256-byte aligned and their ld is rounded up to 16 bytes, so that kernels can move 16 bytes at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np

from ...array import Array
from ...backend import Backend
from ...backend.cublas import WORKSPACE
from ...backend.cuda import STORAGE, Launcher
from ...errors import OutOfMemoryError
from ...layers import DetectionHead
from ..steps import OFFSET_HEADER, Convolve, FeatureMap, LayerCall, Plan, Step, step_table, totals
from . import convolution, layers, steps
from .canonicalize import canonicalize
from .cost_report import Columns, LaunchTime, summary
from .detect import DetectionStage, ResultBuffer, detection_stage
from .emitter import Emitted, Emitter, storage_dtype
from .input import InputStage
from .recurrent import unroll
from .schedule import make_schedule
from .stream import stream_context
from .time_model import Card, Cost, seconds
from .upload import ImageBatch
from .view import View
from .weights import PackedWeights

EMITTERS: dict[type[Step], Callable[[Emitter, Any], Emitted]] = {
    **steps.EMITTERS,
    Convolve: convolution.convolve,
    LayerCall: layers.call,
}


class Program:
    """A plan bound to an arena on the device and to packed weights; `run` may be called from any thread.

    precision: fp32, tf32 (fp32 in memory, TF32 in gemms) or fp16 (in memory; sums are fp32). packed_weights: what the
    programs of one network share. choices: measured algorithms, as autotune.py finds them. poison fills the arena with NaN before
    each run, so that a read of unwritten memory shows in the results. graph=False runs every step eagerly; fuse_gemms=False and
    fuse_im2col=False turn off these fusions (schedule.py). Raises BackendError if there is not enough memory.
    """

    emitter_type: type[Emitter] = Emitter

    def __init__(
        self,
        plan: Plan,
        be: Backend,
        precision: str = "fp32",
        packed_weights: dict[Any, tuple[Array, Array]] | None = None,
        choices: Mapping[str, str] | None = None,
        poison: bool = False,
        graph: bool = True,
        fuse_gemms: bool = True,
        fuse_im2col: bool = True,
    ):
        self.detection: DetectionStage | str  # or why the heads' layers decode the boxes
        self.head_count = len(plan.outputs)  # the states of recurrent layers follow
        plan, self.states = unroll(canonicalize(plan, be), be)
        self.plan, self.be, self.precision, self.poison = plan, be, precision, poison
        self.engine = f"{be.name} {getattr(be.xp, '__version__', 'without a version')}, {precision}"
        self.dtype = storage_dtype(precision)
        self.graph: Any = None
        self.detection_graph: Any = None  # of the steps and the detection stage
        self.stream_context = stream_context(be)
        self._make_schedule = partial(
            make_schedule, plan, precision=precision, choices=choices, fuse_gemms=fuse_gemms, fuse_im2col=fuse_im2col,
            device=self.stream_context.properties,
        )  # fmt: skip
        self.schedule = self._make_schedule(plan.batch)
        self.weights = PackedWeights(be, self.schedule, self.dtype, {} if packed_weights is None else packed_weights)
        with self.stream_context.use():
            self._emit(graph)

    def _emit(self, graph: bool) -> None:
        """Allocate the arena, and turn the steps into launches."""
        self._allocate()
        self.emitter = self.emitter_type(
            self.plan, self.be, self.precision, self.schedule, self.weights, self.arena, self.stream_context
        )
        self.input_stage = InputStage(self.emitter)
        self.outputs = [self.emitter.view(m) for m in self.plan.outputs]
        self.stores: list[Callable[[Array], None]] = []  # write each output to the caller's array, once prepared
        emitted = {step: self.emit(step) for step in self.schedule.steps if step is not self.input_stage.step}
        self.step_launches = {step: e.launches for step, e in emitted.items()}
        launches = [launch for step in emitted.values() for launch in step.launches]
        self.launches = [launch.run for launch in launches]
        self.algorithms = {step: e.algorithm for step, e in emitted.items() if e.algorithm}
        if self.input_stage.step is not None:
            self.algorithms[self.input_stage.step] = self.schedule.algorithms[self.input_stage.step]
        self.fallbacks = [e.fallback for e in emitted.values() if e.fallback]  # sections
        self.row_major = {step.y for step, e in emitted.items() if e.row_major}
        heads = self.plan.outputs[: self.head_count]
        self.detection = (
            "the network has a recurrent state"
            if self.states
            else detection_stage(self.emitter, self.plan.heads, heads, self.row_major)
        )
        detect = self.detection.kernels if isinstance(self.detection, DetectionStage) else ()
        kernels = {
            "nhwc.to_nchw",
            *detect,
            *self.input_stage.kernels,
            *(launch.kernel for launch in launches if launch.kernel),
        }
        self.kernel_files = sorted({kernel.partition(".")[0] for kernel in kernels})
        self.compiled = False
        self.eager_reason = self._why_eager(graph)

    def emit(self, step: Step) -> Emitted:
        """Turn a step into launches."""
        return EMITTERS[type(step)](self.emitter, step)

    def _bytes_needed(self, batch: int) -> int:
        """Return the bytes on the device for a batch of this network, without the arrays that programs share."""
        schedule = self.schedule if batch == self.plan.batch else self._make_schedule(batch)
        results = 4 * batch * sum(prod(m.shape) for m in self.plan.outputs)
        return schedule.arena.size * self.dtype.itemsize + results + (0 if self.weights.ready else self.weights.nbytes)

    def _allocate(self) -> None:
        batch, (C, H, W), be = self.plan.batch, self.plan.input.shape, self.be
        needed = self._bytes_needed(batch)
        subject = f"batch {batch} of {C} x {H} x {W} in {self.precision} needs {needed:,} bytes on the device"
        free = free_bytes(be)
        if free is not None and needed > free:
            fit = bisect_right(range(batch), free, key=self._bytes_needed) - 1
            advice = f"a batch of {fit} would fit" if fit > 0 else "not even one image would fit; make them smaller"
            raise OutOfMemoryError(f"{subject}, {free:,} are free; {advice}")
        try:
            self.arena = be.empty((self.schedule.arena.size,), self.dtype)
        except MemoryError as e:  # free memory may be fragmented
            raise OutOfMemoryError(f"{subject}: {e.__cause__ or e}; use a smaller batch") from None

    def _why_eager(self, graph: bool) -> str | None:
        if not graph:
            return "requested"
        if self.stream_context.stream is None:
            return f"backend {self.be.name} has no CUDA streams"
        if self.fallbacks:
            return f"fallback layers: {', '.join(sorted(set(self.fallbacks)))}"
        return None

    def _compile(self) -> None:
        """Compile all kernels of this program at once, except those of fallback layers."""
        if not self.compiled and isinstance(self.be.launch, Launcher):
            self.be.launch.compile(self.kernel_files, STORAGE[self.dtype.name])
        self.compiled = True

    def run(self, x: Array | ImageBatch) -> list[Array]:
        """Run the plan on x; return new arrays, one per output, on the caller's stream.

        x: float32 (N, C, H, W) on the device, or an ImageBatch.
        """
        N, be, launch = self.plan.batch, self.be, self.be.launch
        assert launch is not None
        with be.use_device(self.stream_context.device):
            self._compile()
            results = [be.empty((N, *m.shape)) for m in self.plan.outputs[: self.head_count]]
        with self.stream_context.use():
            new_states = [be.empty((N, *m.shape)) for m in self.plan.outputs[self.head_count :]]
            if self.graph is None and self.eager_reason is None:
                self.graph = self._capture(self._eager)
            self._feed(x)
            old_states = [state.arrays(be, N) for state in self.states]
            for state, arrays in zip(self.states, old_states, strict=True):
                for m, a in zip(state.state_in, arrays, strict=True):
                    v = self.emitter.view(m)
                    launch("nhwc.from_nchw", a.size, a, v.a, a.size, *v.sizes, v.ld)
            self.replay()
            written = results + new_states
            if not self.stores:
                self.stores = list(map(self._store, self.plan.outputs, self.outputs, written))
            for store, result in zip(self.stores, written, strict=True):
                store(result)
            remaining = iter(new_states)
            for state in self.states:
                state.keep([next(remaining) for _ in state.state_out])
        del old_states  # only now: they may belong to the caller's stream, which waits for the plan from here on
        return results

    def _store(self, m: FeatureMap, v: View, result: Array) -> Callable[[Array], None]:
        """Return the launch that writes an output to an array."""
        N, (C, P), prepare = self.plan.batch, v.sizes, self.emitter.prepare
        if m in self.row_major:
            return prepare("nhwc.pack_rows", result.size, v.a, result, result.size, C, v.ld, varying=(1,))
        return prepare("nhwc.to_nchw", 256 * N * -(-C // 32) * -(-P // 32), v.a, result, C, P, v.ld, varying=(1,))

    def detect(self, x: Array | ImageBatch, thresh: float) -> DetectedRows | None:
        """Run the plan on x, as `run`, and decode the boxes above a threshold: start to, and return what their rows will be.

        x must not change until the rows are read. None: the heads' layers must decode them from the results of `run`.
        """
        stage = self.detection
        if isinstance(stage, str):
            return None
        return DetectedRows(self, stage, x, thresh)

    def start_detection(
        self, stage: DetectionStage, x: Array | ImageBatch, thresh: float, count: int = 0
    ) -> ResultBuffer:
        """Run the plan and its detection stage on x, with room for `count` boxes or more; return the buffer of the rows."""
        with self.stream_context.use():
            self._compile()
            if count > stage.capacity:
                stage.reserve(count)
                self.stream_context.retire(self.detection_graph)  # it writes to the old buffer
                self.detection_graph = None
            if self.detection_graph is None and self.eager_reason is None:
                self.detection_graph = self._capture(self._eager_detection)
            self._feed(x)
            stage.set_threshold(thresh, self.stream_context.stream)
            if self.detection_graph is not None:
                self.detection_graph.launch(self.stream_context.stream)
            else:
                self._eager_detection()
            return stage.download(self.stream_context.stream)

    def _feed(self, x: Array | ImageBatch) -> None:
        if self.poison:
            self.arena.fill(np.nan)
        self.input_stage.feed(x)

    def replay(self) -> None:
        """Run the steps on the last input. For `run`, and to time steps."""
        if self.graph is not None:
            self.graph.launch(self.stream_context.stream)
        else:
            self._eager()

    def _eager(self) -> None:
        for launch in self.launches:
            launch()

    def _eager_detection(self) -> None:
        assert not isinstance(self.detection, str)
        self._eager()
        for launch in self.detection.launches:
            launch.run()

    def _capture(self, run: Callable[[], None]) -> Any:
        """Capture launches as a CUDA graph; if CUDA refuses, keep the reason, return None and run eagerly."""
        try:
            return self.stream_context.capture(run)
        except Exception as e:
            self.eager_reason = f"capture failed: {(str(e).splitlines() or [type(e).__name__])[0]}"
            return None

    def __del__(self) -> None:
        stage = getattr(self, "detection", None)
        for resource in (*map(self.__dict__.get, ("graph", "detection_graph")), getattr(stage, "buffers", None)):
            if resource:
                self.stream_context.retire(resource)

    def time_launches(self, min_seconds: float = 0.002, rounds: int = 2, max_calls: int = 200) -> list[float]:
        """Time each launch of the graph on this GPU, by itself; return seconds. Call `run` before: maps then hold real values."""
        time = self.stream_context.time
        return [time(launch, min_seconds, rounds, max_calls) for launch in self.launches]

    def launch_times(self, card: Card, measured: Sequence[float] | None = None) -> list[LaunchTime]:
        """Return the launches of a `run` on float32 images, in order, with their costs and their times on a card.

        measured: the seconds of those in the graph.
        """
        view, pack = self.emitter.view, self.row_major
        inputs = [(self.input_stage.step, *one) for one in self.input_stage.costs]
        inputs += [(None, "nhwc.from_nchw", Cost(view(m).nchw_bytes, view(m).nbytes)) for m in self.plan.states]
        graph = [(step, one.name, one.cost) for step, launches in self.step_launches.items() for one in launches]
        outputs = [
            (None, "nhwc.pack_rows" if m in pack else "nhwc.to_nchw", Cost(v.nbytes, v.nchw_bytes))
            for m, v in zip(self.plan.outputs, self.outputs, strict=True)
        ]

        def timed(launch: tuple[Step | None, str, Cost | None], in_graph: bool, t: float | None = None) -> LaunchTime:
            cost = launch[2]
            return LaunchTime(*launch, in_graph, cost and seconds(cost, card, self.precision), t)

        known: Sequence[float | None] = measured or [None] * len(graph)
        return [
            *(timed(one, False) for one in inputs),
            *(timed(one, True, t) for one, t in zip(graph, known, strict=True)),
            *(timed(one, False) for one in outputs),
        ]

    def describe(self, card: Card | None = None, measured: Sequence[float] | None = None, origin: str = "") -> str:
        """Return the plan as text: steps, algorithms, how it runs, and its memory.

        card: show the cost of each step and its modelled time on this card instead of offsets. measured: as for `launch_times`;
        origin: where they were measured.
        """
        itemsize, schedule, arena = self.dtype.itemsize, self.schedule, self.schedule.arena
        algorithms = dict(self.algorithms)
        for producer, consumer in schedule.im2col_consumers.items():
            only = "only " if producer in schedule.dead_stores else ""
            words = [algorithms.get(producer, ""), f"writes {only}the im2col of layer {consumer.layers[0]}"]
            algorithms[producer] = "; ".join(filter(None, words))
        how = "as a CUDA graph" if self.eager_reason is None else f"eagerly ({self.eager_reason})"
        count = len(self.launches) + self.input_stage.launch_count
        sizes = (arena.size * itemsize, self.weights.nbytes, WORKSPACE)
        arena_mib, weights_mib, workspace_mib = (f"{size / 2**20:.1f}" for size in sizes)

        def offset(step: Step) -> str:
            return f"{itemsize * (arena.offsets[step.y.storage] + step.y.channel_offset):>12}"

        if card is None:
            table, costs = step_table(schedule.steps, algorithms, OFFSET_HEADER, offset), list[str]()
        else:
            if self.input_stage.step is not None:
                algorithms[self.input_stage.step] += ", outside the graph"
            times = self.launch_times(card, measured)
            columns, costs = Columns(times), summary(times, card, self.plan.batch, origin)
            table = step_table(schedule.steps, algorithms, columns.header, columns.cells)
            table.append(f"{'':>11}  {'layouts of input and outputs':<66}{columns.cells(None)}  outside the graph")
        return "\n".join(
            [
                *table,
                f"{totals(schedule.steps, self.fallbacks)}; {self.plan.flops / 1e9:.3f} GFLOP per image",
                f"CUDA, {self.precision}, {how}: {count} launches; MiB on the device for batch {self.plan.batch}: "
                f"arena {arena_mib}, weights {weights_mib}, cuBLAS {workspace_mib}{self._detection_note()}",
                *costs,
            ]
        )

    def _detection_note(self) -> str:
        heads = any(isinstance(layer, DetectionHead) for layer in self.plan.heads)
        return f"; boxes decoded by layers: {self.detection}" if heads and isinstance(self.detection, str) else ""


class DetectedRows:
    """The rows of a batch's boxes, which the device may still be computing."""

    def __init__(self, program: Program, stage: DetectionStage, x: Array | ImageBatch, thresh: float):
        self._program, self._stage, self._thresh = program, stage, thresh
        self._rows = np.empty((0, 0), np.float32)
        self._pending: tuple[Any, ResultBuffer] | None = None
        self._pending = x, program.start_detection(stage, x, thresh)

    def read(self) -> np.ndarray:
        """Wait for the boxes; return rows (K, 6 + classes) as `Network.decode`. If they did not fit, the batch runs again."""
        if self._pending is not None:
            x, buffer = self._pending
            count, rows = buffer.wait()
            while count > len(rows):
                larger = self._program.start_detection(self._stage, x, self._thresh, count)
                self._release()
                self._pending = x, larger
                count, rows = larger.wait()
            self._rows = rows.copy()
            self._release()
        return self._rows

    def _release(self) -> None:
        if self._pending is not None:
            self._stage.free.append(self._pending[1])
            self._pending = None

    def __del__(self) -> None:
        self._release()


def free_bytes(be: Backend) -> int | None:
    """Return how many bytes can be allocated on the current device; None without a device."""
    cuda = getattr(be.xp, "cuda", None)
    if cuda is None:
        return None
    return int(cuda.runtime.memGetInfo()[0]) + int(be.xp.get_default_memory_pool().free_bytes())
