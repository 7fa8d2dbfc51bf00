"""Run a training plan with NumPy: forward, losses and backward of a part of a batch, on all cores.

The calls are recorded once and replayed for every part; in the steady state nothing is allocated but by losses and fallback
layers. How work is split does not depend on the number of threads, so neither do the bits of the results.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, zip_longest
from operator import itemgetter
from typing import Any

import numpy as np

from ....array import Arrays
from ....backend import Backend
from ....backend.threads import Stage
from ....layers import ForwardContext, Layer
from ....layers.base import Backward as LayerBackward
from ...steps import Convolve, Copy, FeatureMap, LayerCall, MaxPool, Step, Upsample, YoloHead
from ...training.steps import Backward, BatchNorm, Bias, Loss, TrainingPlan, Zero, saved_maps
from ..algorithms import select_algorithm
from ..command_list import CommandList, Task, TaskStages, command_queue
from ..program import EMITTERS, BoundMaps, allocate_arena
from . import layers, winograd
from .batch_norm import BatchNormPass, BiasPass
from .convolution import Convolution

TRIALS = 3  # runs that measure each form of the stages

# (layer, input or None, output, both (N, C, H, W)) -> the delta of the output
ComputeDelta = Callable[[Layer, np.ndarray | None, np.ndarray], np.ndarray]


@dataclass
class Part:
    """What a run computes with besides arrays: the context of the layers' forward, and of the losses."""

    ctx: ForwardContext
    delta: ComputeDelta


class TrainingProgram(BoundMaps):
    """A training plan bound to an arena, to weights and to their gradients.

    gradients: for each layer, name -> the array that `run` overwrites. Kernels and their gradients are views (F, C, size, size)
    of arrays in the order (size, size, C, F). statistics: layer -> mean and variance (2, C) of its batch norm, for the running
    averages. arena: memory to use, at least of the plan's size. poison: fill it with NaN before each run.
    """

    def __init__(
        self, plan: TrainingPlan, gradients: Sequence[Arrays], arena: np.ndarray | None = None, poison: bool = False
    ):
        super().__init__(plan, allocate_arena(plan) if arena is None else arena, command_queue())
        self.plan, self.gradients, self.poison = plan, gradients, poison
        uses = Counter(id(own) for own in gradients)
        self.shared = {id(own): own for own in gradients if uses[id(own)] > 1}  # gradients of weights that layers share
        self.algorithms = {
            s: select_algorithm(s, plan.batch, {}) for s in plan.forward[: plan.frozen] if isinstance(s, Convolve)
        }
        self.statistics: dict[int, np.ndarray] = {}
        self.outputs: dict[int, np.ndarray] = {}  # of fallback layers with a loss, until it is computed
        # gets the seconds of each step
        self.report: Callable[[Step | Backward | Zero | None, float], None] | None = None
        self.part: Part
        with self.queue:
            self._record()

    def _record(self) -> None:
        def record() -> list[list[Stage]]:
            self.passes: dict[Step, Any] = {}  # what a step's forward and backward share
            emitted: list[TaskStages] = [[[self._clear_shared_gradients]]]
            emitted += [self._forward(k, step) for k, step in enumerate(self.plan.forward)]
            emitted += [self._backward(step) for step in self.plan.backward]
            return [[self.queue.record_stage(tasks) for tasks in stages] for stages in emitted]

        self.stages, self.workers = self.queue.record_until_stable(record), self.queue.size
        # each stage as recorded, and on one worker
        self.forms: list[tuple[Stage, Stage]] = [(s, [[*chain(*s)]]) for stages in self.stages for s in stages]
        self.trials, self.seconds = 2 * TRIALS if self.workers > 1 else 0, np.full((2, len(self.forms)), np.inf)
        self.fastest: list[Stage] = [stage for stage, _ in self.forms]

    def run(self, x: np.ndarray, part: Part) -> None:
        """Compute the gradients of a part: x (N, C, H, W). `part.delta` is called for each loss in the order of the layers."""
        self.part = part
        with self.queue as queue:
            if self.workers != queue.size:
                self._record()
            if self.poison:
                self.arena.fill(np.nan)
            queue.run([queue.record_stage(self.load_input(x))])
            if self.report is None:
                self._run_stages()
                return
            for step, stages in zip([None, *self.plan.forward, *self.plan.backward], self.stages, strict=True):
                begin = time.perf_counter()
                queue.run(stages)
                self.report(step, time.perf_counter() - begin)

    def _run_stages(self) -> None:
        """Run all stages. The first runs measure which are faster on one worker than on all: waking others takes time."""
        if not self.trials:
            self.queue.run(self.fastest)
            return
        self.trials -= 1
        alone = self.trials % 2
        for k, forms in enumerate(self.forms):
            begin = time.perf_counter()
            self.queue.run([forms[alone]])
            self.seconds[alone, k] = min(self.seconds[alone, k], time.perf_counter() - begin)
        if not self.trials:
            self.fastest = [forms[k] for forms, k in zip(self.forms, self.seconds.argmin(axis=0), strict=True)]

    def describe(self) -> str:
        """Return the plan as text, and the memory in use."""
        scratch = self.queue.scratch_bytes / 2**20
        return f"{self.plan.describe(self.algorithms)}\nCPU, {self.queue.size} threads; MiB: scratch {scratch:.1f}"

    def _forward(self, k: int, step: Step) -> TaskStages:
        if isinstance(step, Loss):
            return [[lambda commands: commands.record(lambda: self._loss(step))]]
        if k < self.plan.frozen:
            return EMITTERS[type(step)](self, step)
        if isinstance(step, Convolve):
            return self._convolve(step)
        if isinstance(step, BatchNorm):
            z, y = self.view(step.xs[0]), self.view(step.y)
            rolling = self.statistics.setdefault(step.layers[0], np.zeros((2, y.shape[3]), np.float32))
            self.passes[step] = norm = BatchNormPass(step, z, y, rolling, self.queue.size)
            return norm.forward()
        if isinstance(step, Bias):
            self.passes[step] = bias = BiasPass(step, self.view(step.xs[0]), self.view(step.y))
            return bias.forward()
        if isinstance(step, LayerCall):
            return [[lambda commands: commands.record(lambda: self._call_layer(step))]]
        if isinstance(step, (Copy, YoloHead)):  # pixel by pixel: a batch is like one image, in fewer calls
            return EMITTERS[type(step)](Folded(self), step)
        return EMITTERS[type(step)](self, step)

    def _clear_shared_gradients(self, commands: CommandList) -> None:
        """Record setting gradients to 0 that several layers add to."""
        for grad in self.shared.values():
            for a in grad.values():
                commands.record(a.fill, 0)

    def _gradients(self, layer: int) -> tuple[Arrays, TaskStages]:
        """Return the arrays for a layer's gradients, and the stages after they are written: with shared weights, a sum."""
        total = self.gradients[layer]
        if id(total) not in self.shared:
            return total, []
        own = {name: np.zeros_like(a) for name, a in total.items()}

        def add() -> None:
            for name, a in own.items():
                total[name][...] += a

        return own, [[lambda commands: commands.record(add)]]

    def _convolve(self, step: Convolve) -> TaskStages:
        x, z, matrix = self.view(step.xs[0]), self.view(step.y), weight_matrix(step.w["kernel"])
        if not winograd.pays(step, self.batch):
            self.passes[step] = convolution = Convolution(step, x, z, matrix)
            return convolution.forward()
        U = self._transformed(step)
        weights = U.reshape(len(U), x.shape[3], -1)
        self.passes[step] = passes = winograd.WinogradPass(step, x, z, weights, self.queue.size)
        return merge(winograd.transform_kernel(matrix, U, rotated=False), passes.stages())

    def _transformed(self, step: Convolve) -> np.ndarray:
        """Return memory for a transformed kernel (36, C*F), which all convolutions share."""
        return self.queue.scratch(0, "U", winograd.POSITIONS, step.xs[0].shape[0] * step.y.shape[0])

    def _convolve_backward(self, backward: Backward, step: Convolve) -> TaskStages:
        passes, (grad, after) = self.passes[step], self._gradients(step.layers[0])
        dz, dx = self.view(backward.dy), None if backward.dxs[0] is None else self.view(backward.dxs[0])
        stages: TaskStages = passes.filter_gradient(dz, weight_matrix(grad["kernel"])) + after
        if dx is None:
            return stages
        if isinstance(passes, Convolution):
            return merge(stages, passes.data_gradient(dz, dx, backward.adds[0]))
        U, C = self._transformed(step), dx.shape[3]
        by_position = U.reshape(len(U), C, -1).transpose(0, 2, 1)  # the transpose of each position's matrix: (F, C)
        inputs = winograd.WinogradPass(
            step, dz, dx, by_position, self.queue.size, backward.adds[0], name=" of gradients"
        )
        kernel = winograd.transform_kernel(weight_matrix(step.w["kernel"]), U, rotated=True)
        return merge(merge(kernel, stages), inputs.stages())

    def _backward(self, step: Backward | Zero) -> TaskStages:
        if isinstance(step, Zero):
            return [[partial(_fill_zero, image) for image in self.view(step.y)]]
        forward = step.step
        dy, dxs = self.view(step.dy), [None if m is None else self.view(m) for m in step.dxs]
        if isinstance(forward, Convolve):
            return self._convolve_backward(step, forward)
        if isinstance(forward, (BatchNorm, Bias)):
            grad, after = self._gradients(forward.layers[0])
            stages: TaskStages = self.passes[forward].backward(dy, grad) + after
            return stages
        if isinstance(forward, MaxPool) and dxs[0] is not None:
            x, y = map(self.view, saved_maps(forward))
            return layers.maxpool_backward(forward, x, y, dy, dxs[0], step.adds[0], self.queue.size)
        if isinstance(forward, Upsample) and dxs[0] is not None:
            return layers.upsample_backward(forward, dy, dxs[0], step.adds[0])
        if isinstance(forward, LayerCall):
            grad, after = self._gradients(forward.layers[0])
            return [[lambda commands: commands.record(lambda: self._call_backward(step, grad))], *after]
        assert isinstance(forward, Copy)
        saved = [self.view(m) for m in saved_maps(forward)]
        return layers.copy_backward(forward, saved, dy, dxs, step.adds, self.queue.size)

    def _loss(self, step: Loss) -> None:
        x = nchw(self.view(step.xs[1])) if len(step.xs) > 1 else None
        # that of a fallback layer as it is: the output of [region] has an order of its own
        y = self.outputs.pop(step.layers[0], None)
        delta = self.part.delta(step.layer, x, nchw(self.view(step.xs[0])) if y is None else y)
        nchw(self.view(step.y))[...] = delta

    def _call_layer(self, step: LayerCall) -> None:
        """Run the layer's `forward` on copies of its inputs, which its backward may need; keep that."""
        xs = [nchw(self.view(m)).copy() for m in step.xs]
        wanted = next((b for b in self.plan.backward if isinstance(b, Backward) and b.step is step), None)
        skip = wanted is not None and all(m is None for m in wanted.dxs)
        y, backward = step.layer.forward(NUMPY, step.w, *xs, ctx=replace(self.part.ctx, skip_input_grad=skip))
        nchw(self.view(step.y))[...] = y
        self.passes[step] = backward
        if step.layer.has_loss:
            self.outputs[step.layers[0]] = y

    def _call_backward(self, step: Backward, grad: Arrays) -> None:
        backward: LayerBackward = self.passes.pop(step.step)
        new: Arrays = {}
        dxs = backward(np.ascontiguousarray(nchw(self.view(step.dy))), new)
        for name, value in new.items():
            grad[name][...] = value
        for m, dx, add in zip(step.dxs, dxs, step.adds, strict=True):
            if m is not None:
                target = nchw(self.view(m))
                target[...] = (target if add else 0) + (0 if dx is None else dx)


class Folded(BoundMaps):
    """The maps of a program as those of one image, in which the images of the batch are above each other."""

    def __init__(self, program: BoundMaps):
        super().__init__(program.placed, program.arena, program.queue)
        self.batch, self.program = 1, program

    def view(self, m: FeatureMap) -> np.ndarray:
        """Return a map's memory as (1, N*H, W, C)."""
        a = self.program.view(m)
        N, H, W, C = a.shape
        return np.lib.stride_tricks.as_strided(a, (1, N * H, W, C), (N * a.strides[0], *a.strides[1:]))


def merge(a: TaskStages, b: TaskStages) -> TaskStages:
    """Return the stages of both, which do not depend on each other, at the same time; each worker gets its share of both."""
    none: list[Task] = []
    return [interleave(x, y) for x, y in zip_longest(a, b, fillvalue=none)]


def interleave(a: list[Task], b: list[Task]) -> list[Task]:
    """Return the tasks of both lists, evenly mixed."""
    places = [((k + 0.5) / len(tasks), task) for tasks in (a, b) for k, task in enumerate(tasks)]
    return [task for _, task in sorted(places, key=itemgetter(0))]


NUMPY = Backend("numpy", np)


def _fill_zero(a: np.ndarray, commands: CommandList) -> None:
    commands.record(a.fill, 0)


def nchw(a: np.ndarray) -> np.ndarray:
    """View a map (N, H, W, C) as (N, C, H, W)."""
    return a.transpose(0, 3, 1, 2)


def weight_matrix(kernel: np.ndarray) -> np.ndarray:
    """View a kernel (F, C, size, size) that is stored as (size, size, C, F) as a matrix (size * size * C, F)."""
    matrix = kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel))
    assert np.shares_memory(matrix, kernel)
    return matrix
