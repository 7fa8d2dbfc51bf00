"""Run a plan with NumPy: all cores, BLAS for matrix multiplication; between two images only the results are allocated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from ...backend import Backend, machine
from ...backend.threads import Stage, split_range
from ...errors import BackendError
from ...layers import ForwardContext
from ...layers.convolutional import fold_batch_norm
from ..steps import Convolve, Copy, FeatureMap, LayerCall, MaxPool, PlacedMaps, Plan, Step, Upsample, YoloHead
from .algorithms import ALGORITHMS, select_algorithm
from .command_list import CommandList, CommandQueue, Task, TaskStages, command_queue, worker_queue
from .convolution import as_matrix, copy_padded
from .epilogue import bind_epilogue, logistic

TASK_SIZE = 1 << 16  # elements that one task of a pool or a copy processes


class BoundMaps:
    """The maps of a plan, bound to an arena."""

    def __init__(self, placed: PlacedMaps, arena: np.ndarray, queue: CommandQueue):
        self.placed, self.arena, self.queue, self.batch = placed, arena, queue, placed.batch
        self.algorithms: dict[Convolve, str] = {}
        self.packed_weights: dict[Any, Any] = {}

    def view(self, m: FeatureMap) -> np.ndarray:
        """Return a map's memory as (N, H, W, C); pixels are strided if the map is part of another."""
        offset, ld = self.placed.address(m)
        C, H, W = m.shape
        strides = (4 * H * W * ld, 4 * W * ld, 4 * ld, 4)
        return np.lib.stride_tricks.as_strided(self.arena[offset:], (self.batch, H, W, C), strides)

    def load_input(self, x: np.ndarray) -> list[Task]:
        """Return tasks that transpose x (N, C, H, W) into the input map, channel by channel, since channels are few."""
        y, (N, C, H, _) = self.view(self.placed.input), x.shape

        def task(n: int, r: slice) -> Task:
            def record(commands: CommandList) -> None:
                for c in range(C):
                    commands.record(np.copyto, y[n, r, :, c], x[n, c, r])

            return record

        return [task(n, slice(*r)) for n in range(N) for r in split_range(H, H, self.queue.size)]


class Program(BoundMaps):
    """A plan bound to an arena and to packed weights; `run` may be called from any thread.

    choices: the algorithm for a convolution's key, as measured by `autotune`; others are chosen by rule.
    packed_weights: (layer, algorithm) -> its weights, shared by the programs of one network.
    poison: fill the arena with NaN before each run, so that a read of unwritten memory shows in the results. queue: for what is
    not recorded for all workers. Raises BackendError if there is not enough memory.
    """

    def __init__(
        self,
        plan: Plan,
        choices: Mapping[str, str] | None = None,
        packed_weights: dict[Any, Any] | None = None,
        poison: bool = False,
        queue: CommandQueue | None = None,
    ):
        super().__init__(plan, allocate_arena(plan), queue or command_queue())
        self.plan, self.poison = plan, poison
        self.engine = f"numpy {np.__version__}, fp32"
        self.packed_weights = {} if packed_weights is None else packed_weights
        self.algorithms = {
            s: select_algorithm(s, plan.batch, choices or {}) for s in plan.steps if isinstance(s, Convolve)
        }
        with self.queue:  # pack weights under the conditions of their use: BLAS on one thread
            self._record()

    def _record(self) -> None:
        """Record the stages for the queue's present number of workers."""

        def record() -> list[list[Stage]]:
            return [
                [self.queue.record_stage(tasks) for tasks in EMITTERS[type(step)](self, step)]
                for step in self.plan.steps
            ]

        self.stages, self.workers = self.queue.record_until_stable(record), self.queue.size

    def describe(self) -> str:
        """Return the plan as text, the algorithm of each convolution, and the memory in use."""
        packed = {
            id(a): a.nbytes for arrays in self.packed_weights.values() for a in arrays if isinstance(a, np.ndarray)
        }
        sizes = (self.arena.nbytes, sum(packed.values()), self.queue.scratch_bytes)
        arena, weights, scratch = (f"{size / 2**20:.1f}" for size in sizes)
        return (
            f"{self.plan.describe(self.algorithms)}\n"
            f"CPU, {self.queue.size} threads; MiB: arena {arena}, packed weights {weights}, scratch {scratch}"
        )

    def run(self, x: np.ndarray) -> list[np.ndarray]:
        """Run the plan on x (N, C, H, W); return new arrays, one per output."""
        results = [np.empty((self.plan.batch, *m.shape), np.float32) for m in self.plan.outputs]
        with self.queue as queue:
            if self.workers != queue.size:  # set_num_threads
                self._record()
            if self.poison:
                self.arena.fill(np.nan)
            queue.run(self.stages_for(x, results))
        return results

    def stages_for(self, x: np.ndarray, results: Sequence[np.ndarray]) -> list[Stage]:
        """Return the stages that read x (N, C, H, W) and write the results, one per output."""
        record = self.queue.record_stage
        outputs = [self._store_output(m, result) for m, result in zip(self.plan.outputs, results, strict=True)]
        return [record(self.load_input(x)), *chain(*self.stages), *map(record, outputs)]

    def _store_output(self, m: FeatureMap, result: np.ndarray) -> list[Task]:
        """Return tasks that transpose a map into a result (N, C, H, W)."""
        y, (N, C) = self.view(m).transpose(0, 3, 1, 2), result.shape[:2]

        def task(n: int, c: slice) -> Task:
            return lambda commands: commands.record(np.copyto, result[n, c], y[n, c])

        return [task(n, slice(*c)) for n in range(N) for c in split_range(C, C, self.queue.size)]


class ImageParallelProgram:
    """Runs a plan for one image on each image of a batch, whole images on different workers.

    No worker waits for another, and maps stay in its caches: more images per second than with all workers on each layer. Its
    plan is that of one image; the rest is as in `Program`.
    """

    def __init__(
        self,
        plan: Plan,
        batch: int,
        choices: Mapping[str, str] | None = None,
        packed_weights: dict[Any, Any] | None = None,
    ):
        self.plan, self.batch, self.choices = plan, batch, choices
        self.packed_weights = {} if packed_weights is None else packed_weights
        self.programs: list[Program] = []
        self._resize(command_queue().size)
        self.engine = self.programs[0].engine

    def _resize(self, workers: int) -> None:
        """Have a program for each worker."""
        for worker in range(len(self.programs), min(workers, self.batch)):
            queue = worker_queue(worker)
            self.programs.append(Program(self.plan, self.choices, self.packed_weights, queue=queue))
        self.programs = self.programs[:workers]

    def describe(self) -> str:
        """Return one worker's program as text."""
        return f"{self.programs[0].describe()}, for each of {len(self.programs)} workers"

    def run(self, x: np.ndarray) -> list[np.ndarray]:
        """Run the plan on x (N, C, H, W); return new arrays, one per output."""
        N = self.batch
        results = [np.empty((N, *m.shape), np.float32) for m in self.plan.outputs]
        with command_queue() as queue:
            if len(self.programs) != min(queue.size, N):  # set_num_threads
                self._resize(queue.size)
            stage = [
                [
                    command
                    for n in range(k, N, len(self.programs))
                    for (commands,) in program.stages_for(x[n : n + 1], [y[n : n + 1] for y in results])
                    for command in commands
                ]
                for k, program in enumerate(self.programs)
            ]
            queue.run([stage + [[]] * (queue.size - len(stage))])
        return results


def allocate_arena(plan: PlacedMaps) -> np.ndarray:
    """Return the arena. Raises BackendError, which says how many images would fit, if there is not enough memory."""
    have = machine.memory_bytes()
    need = 4 * plan.arena_size
    try:
        if have is None or need <= have:
            return np.zeros(plan.arena_size, np.float32)
    except MemoryError:
        have = None
    C, H, W = plan.input.shape
    fit = plan.batch * have // need if have else plan.batch // 2
    advice = f"a batch of {fit} would fit" if fit > 0 else "not one image would fit; make them smaller"
    raise BackendError(f"batch {plan.batch} of {C} x {H} x {W} needs {need:,} bytes for its maps, this machine has "
                       f"{'less' if have is None else f'{have:,}'}; {advice}")  # fmt: skip


def _convolve(program: BoundMaps, step: Convolve) -> TaskStages:
    x, y = program.view(step.xs[0]), program.view(step.y)
    name = program.algorithms[step]
    algorithm, key = ALGORITHMS[name], (step.layers[0], name)
    if key not in program.packed_weights:
        w = fold_batch_norm(step.w)
        program.packed_weights[key] = algorithm.pack_weights(w["kernel"], w["bias"])
    epilogue = partial(bind_epilogue, step.epilogue, y, program.view)
    return algorithm.make_tasks(step, x, y, program.packed_weights[key], epilogue, program.queue.size)


def _by_rows(
    program: BoundMaps, step: Step, work: Callable[[CommandList, int, int, int], None], row_size: int
) -> TaskStages:
    """Return one stage: work(commands, image, first row, end row), then the epilogue, for bands of every image."""
    y = program.view(step.y)
    N, H, _, C = y.shape
    apply_epilogue = bind_epilogue(step.epilogue, y, program.view)

    def task(n: int, r0: int, r1: int) -> Task:
        def record(commands: CommandList) -> None:
            work(commands, n, r0, r1)
            apply_epilogue(commands, n, r0, r1, 0, C, None)

        return record

    return [[task(n, *r) for n in range(N) for r in split_range(H, TASK_SIZE // row_size, program.queue.size)]]


def _copy(program: BoundMaps, step: Copy) -> TaskStages:
    x, y = program.view(step.xs[0]), program.view(step.y)
    N, H, W, C = y.shape
    apply_epilogue = bind_epilogue(step.epilogue, y, program.view)

    def task(n: int, r0: int, r1: int) -> Task:
        return lambda commands: apply_epilogue(commands, n, r0, r1, 0, C, x[n, r0:r1])

    return [[task(n, *r) for n in range(N) for r in split_range(H, TASK_SIZE // (W * C), program.queue.size)]]


def _upsample(program: BoundMaps, step: Upsample) -> TaskStages:
    x, y, s = program.view(step.xs[0]), program.view(step.y), step.s

    def work(commands: CommandList, n: int, r0: int, r1: int) -> None:
        for r in range(r0, r1):
            if r > r0 and r % s:
                commands.record(np.copyto, y[n, r], y[n, r - 1])
            else:
                row = y[n, r].reshape(x.shape[2], s, -1)
                commands.record(np.multiply, x[n, r // s, :, None], step.scale, out=row)

    return _by_rows(program, step, work, y.shape[2] * y.shape[3])


def _maxpool(program: BoundMaps, step: MaxPool) -> TaskStages:
    x, y = program.view(step.xs[0]), program.view(step.y)
    (_, H, W, C), (OH, OW), size, (sy, sx) = x.shape, y.shape[1:3], step.size, step.strides
    pad = step.padding // 2
    padded_width = max(pad + W, (OW - 1) * sx + size)
    inside = pad == 0 and (OH - 1) * sy + size <= H and padded_width == W

    def work(commands: CommandList, n: int, r0: int, r1: int) -> None:
        top, rows = r0 * sy - pad, (r1 - r0 - 1) * sy + size
        if inside:
            source = x[n, top : top + rows]
        else:
            source = commands.scratch("padded", rows, padded_width, C)
            copy_padded(commands, x[n], top, -pad, source, -np.inf)
        down = commands.scratch("rows", r1 - r0, padded_width, C)
        _maximum(commands, [source[p : p + (r1 - r0 - 1) * sy + 1 : sy] for p in range(size)], down)
        _maximum(commands, [down[:, q : q + (OW - 1) * sx + 1 : sx] for q in range(size)], y[n, r0:r1])

    return _by_rows(program, step, work, sy * padded_width * C)


def _maximum(commands: CommandList, arrays: list[np.ndarray], out: np.ndarray) -> None:
    if len(arrays) == 1:
        commands.record(np.copyto, out, arrays[0])
        return
    commands.record(np.maximum, arrays[0], arrays[1], out=out)
    for a in arrays[2:]:
        commands.record(np.maximum, out, a, out=out)


def _yolo(program: BoundMaps, step: YoloHead) -> TaskStages:
    x, y = program.view(step.xs[0]), program.view(step.y)
    channels = x.shape[3] // step.A

    def work(commands: CommandList, n: int, r0: int, r1: int) -> None:
        raw, out = (as_matrix(a[n, r0:r1]).reshape(-1, step.A, channels) for a in (x, y))
        if step.new_coords:
            commands.record(np.copyto, out, raw)
        else:
            logistic(commands, raw, out, *commands.scratch("epilogue", 2, *out.shape))
            commands.record(np.copyto, out[..., 2:4], raw[..., 2:4])
        if step.scale_x_y != 1:
            commands.record(np.multiply, out[..., :2], step.scale_x_y, out=out[..., :2])
            commands.record(np.subtract, out[..., :2], 0.5 * (step.scale_x_y - 1), out=out[..., :2])

    return _by_rows(program, step, work, x.shape[2] * x.shape[3])


def _layer_call(program: BoundMaps, step: LayerCall) -> TaskStages:
    xs, y, be = [program.view(m) for m in step.xs], program.view(step.y), Backend("numpy", np)

    def run() -> None:
        maps = [np.ascontiguousarray(x.transpose(0, 3, 1, 2)) for x in xs]
        output, _ = step.layer.forward(be, step.w, *maps, ctx=ForwardContext())
        y.transpose(0, 3, 1, 2)[...] = output

    return [[lambda commands: commands.record(run)]]


EMITTERS: dict[type[Step], Callable[[BoundMaps, Any], TaskStages]] = {
    Convolve: _convolve,
    Copy: _copy,
    MaxPool: _maxpool,
    LayerCall: _layer_call,
    Upsample: _upsample,
    YoloHead: _yolo,
}
