"""Run a plan with NumPy: all cores, BLAS for the products, nothing allocated between one image and the next but results."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from ...backend import Backend
from ...backend.threads import Stage, split_range
from ...errors import BackendError
from ...layers import ForwardContext
from ...layers.convolutional import fold_batch_norm
from ..steps import Convolve, Copy, FeatureMap, LayerCall, MaxPool, Plan, Step, Upsample, YoloHead
from .algorithms import METHODS, choose
from .command_list import Tape, Task, team
from .convolution import Phases, pixels, window
from .epilogue import finish, logistic

BLOCK = 1 << 16  # numbers that one task of a pool or a copy takes


class Program:
    """A plan bound to an arena and to prepared weights; `run` may be called from any thread.

    choices: name of the method for a convolution's key, as `tune` measures them; others are chosen by rule.
    packed_weights: (layer, algorithm) -> its weights, which programs of one network share.
    poison: fill the arena with NaN before each run, so that reading what no step wrote shows in the results.
    Raises BackendError where memory does not suffice.
    """

    def __init__(
        self,
        plan: Plan,
        choices: Mapping[str, str] | None = None,
        packed_weights: dict[Any, Any] | None = None,
        poison: bool = False,
    ):
        self.plan, self.poison, self.team = plan, poison, team()
        self.packed_weights = {} if packed_weights is None else packed_weights
        self.arena = reserve(plan)
        self.algorithms = {s: choose(s, plan.batch, choices or {}) for s in plan.steps if isinstance(s, Convolve)}
        with self.team:  # weights are prepared as they will be used: BLAS on one thread
            self.work = self.team.settled(self._record)

    def _record(self) -> list[list[Stage]]:
        return [[self.team.record(tasks) for tasks in BIND[type(step)](self, step)] for step in self.plan.steps]

    def describe(self) -> str:
        """Return the plan as text, how each convolution is done, and the memory it takes."""
        own = {id(a): a.nbytes for made in self.packed_weights.values() for a in made if isinstance(a, np.ndarray)}
        sizes = (self.arena.nbytes, sum(own.values()), self.team.scratch_bytes)
        arena, weights, scratch = (f"{size / 2**20:.1f}" for size in sizes)
        return (
            f"{self.plan.describe(self.algorithms)}\n"
            f"CPU, {self.team.size} threads; MiB: arena {arena}, prepared weights {weights}, scratch {scratch}"
        )

    def view(self, m: FeatureMap) -> np.ndarray:
        """Return a map's memory as (N, H, W, C); pixels lie apart where the map is a part of another."""
        offset, ld = self.plan.address(m)
        C, H, W = m.shape
        strides = (4 * H * W * ld, 4 * W * ld, 4 * ld, 4)
        return np.lib.stride_tricks.as_strided(self.arena[offset:], (self.plan.batch, H, W, C), strides)

    def run(self, x: np.ndarray) -> list[np.ndarray]:
        """Run the plan on x (N, C, H, W); return fresh arrays, one per output."""
        results = [np.empty((self.plan.batch, *m.shape), np.float32) for m in self.plan.outputs]
        with self.team as workers:
            if self.poison:
                self.arena.fill(np.nan)
            ends = [self._leave(m, result) for m, result in zip(self.plan.outputs, results, strict=True)]
            workers.run([workers.record(self._enter(x)), *chain(*self.work), *map(workers.record, ends)])
        return results

    def _enter(self, x: np.ndarray) -> list[Task]:
        """Return the tasks that bring x (N, C, H, W) into the order of maps, channel by channel: they are few."""
        to, (N, C, H, _) = self.view(self.plan.input), x.shape

        def task(n: int, r: slice) -> Task:
            def record(tape: Tape) -> None:
                for c in range(C):
                    tape(np.copyto, to[n, r, :, c], x[n, c, r])

            return record

        return [task(n, slice(*r)) for n in range(N) for r in split_range(H, H, self.team.size)]

    def _leave(self, m: FeatureMap, result: np.ndarray) -> list[Task]:
        """Return the tasks that bring a map into the order of results (N, C, H, W)."""
        y, (N, C) = self.view(m).transpose(0, 3, 1, 2), result.shape[:2]

        def task(n: int, c: slice) -> Task:
            return lambda tape: tape(np.copyto, result[n, c], y[n, c])

        return [task(n, slice(*c)) for n in range(N) for c in split_range(C, C, self.team.size)]


def reserve(plan: Plan) -> np.ndarray:
    """Return the arena. Raises BackendError, which says how many images would fit, where memory does not suffice."""
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    need = 4 * plan.arena_size
    try:
        if have is None or need <= have:
            return np.zeros(plan.arena_size, np.float32)
    except MemoryError:
        have = None
    C, H, W = plan.input.shape
    fit = plan.batch * have // need if have else plan.batch // 2
    way = f"a batch of {fit} would fit" if fit > 0 else "not one image would fit; make them smaller"
    raise BackendError(f"batch {plan.batch} of {C} x {H} x {W} needs {need:,} bytes for its maps, this machine has "
                       f"{'less' if have is None else f'{have:,}'}; {way}")  # fmt: skip


def _convolve(program: Program, step: Convolve) -> Phases:
    x, y = program.view(step.xs[0]), program.view(step.y)
    name = program.algorithms[step]
    method, key = METHODS[name], (step.layers[0], name)
    if key not in program.packed_weights:
        w = fold_batch_norm(step.w)
        program.packed_weights[key] = method.prepare(w["kernel"], w["bias"])
    last = partial(finish, step.epilogue, y, program.view)
    return method.bind(step, x, y, program.packed_weights[key], last, program.team.size)


def _by_rows(program: Program, step: Step, work: Callable[[Tape, int, int, int], None], per_row: int) -> Phases:
    """Return one phase: work(tape, n, from, to) and then `after`, for pieces of the rows of every image."""
    N, (C, H, _) = program.plan.batch, step.y.shape
    last = finish(step.epilogue, program.view(step.y), program.view)

    def task(n: int, r0: int, r1: int) -> Task:
        def record(tape: Tape) -> None:
            work(tape, n, r0, r1)
            last(tape, n, r0, r1, 0, C)

        return record

    return [[task(n, *r) for n in range(N) for r in split_range(H, BLOCK // per_row, program.team.size)]]


def _copy(program: Program, step: Copy) -> Phases:
    x, y = program.view(step.xs[0]), program.view(step.y)
    N, H, W, C = y.shape
    last = finish(step.epilogue, y, program.view)

    def task(n: int, r0: int, r1: int) -> Task:
        return lambda tape: last(tape, n, r0, r1, 0, C, x[n, r0:r1])

    return [[task(n, *r) for n in range(N) for r in split_range(H, BLOCK // (W * C), program.team.size)]]


def _upsample(program: Program, step: Upsample) -> Phases:
    x, y, s = program.view(step.xs[0]), program.view(step.y), step.s

    def work(tape: Tape, n: int, r0: int, r1: int) -> None:
        for r in range(r0, r1):
            if r > r0 and r % s:
                tape(np.copyto, y[n, r], y[n, r - 1])
            else:
                row = y[n, r].reshape(x.shape[2], s, -1)
                tape(np.multiply, x[n, r // s, :, None], step.scale, out=row)

    return _by_rows(program, step, work, y.shape[2] * y.shape[3])


def _maxpool(program: Program, step: MaxPool) -> Phases:
    x, y = program.view(step.xs[0]), program.view(step.y)
    (_, H, W, C), (OH, OW), size, (sy, sx) = x.shape, y.shape[1:3], step.size, step.strides
    before = step.padding // 2
    WP = max(before + W, (OW - 1) * sx + size)
    inside = before == 0 and (OH - 1) * sy + size <= H and WP == W

    def work(tape: Tape, n: int, r0: int, r1: int) -> None:
        top, rows = r0 * sy - before, (r1 - r0 - 1) * sy + size
        if inside:
            source = x[n, top : top + rows]
        else:
            source = tape.scratch("padded", rows, WP, C)
            window(tape, x[n], top, -before, source, -np.inf)
        down = tape.scratch("rows", r1 - r0, WP, C)
        _maximum(tape, [source[p : p + (r1 - r0 - 1) * sy + 1 : sy] for p in range(size)], down)
        _maximum(tape, [down[:, q : q + (OW - 1) * sx + 1 : sx] for q in range(size)], y[n, r0:r1])

    return _by_rows(program, step, work, sy * WP * C)


def _maximum(tape: Tape, parts: list[np.ndarray], out: np.ndarray) -> None:
    if len(parts) == 1:
        tape(np.copyto, out, parts[0])
        return
    tape(np.maximum, parts[0], parts[1], out=out)
    for part in parts[2:]:
        tape(np.maximum, out, part, out=out)


def _yolo(program: Program, step: YoloHead) -> Phases:
    x, y = program.view(step.xs[0]), program.view(step.y)
    entries = x.shape[3] // step.A

    def work(tape: Tape, n: int, r0: int, r1: int) -> None:
        raw, out = (pixels(a[n, r0:r1]).reshape(-1, step.A, entries) for a in (x, y))
        if step.new_coords:
            tape(np.copyto, out, raw)
        else:
            logistic(tape, raw, out, *tape.scratch("finish", 2, *out.shape))
            tape(np.copyto, out[..., 2:4], raw[..., 2:4])
        if step.scale_x_y != 1:
            tape(np.multiply, out[..., :2], step.scale_x_y, out=out[..., :2])
            tape(np.subtract, out[..., :2], 0.5 * (step.scale_x_y - 1), out=out[..., :2])

    return _by_rows(program, step, work, x.shape[2] * x.shape[3])


def _reference(program: Program, step: LayerCall) -> Phases:
    xs, y, be = [program.view(m) for m in step.xs], program.view(step.y), Backend("numpy", np)

    def run() -> None:
        maps = [np.ascontiguousarray(x.transpose(0, 3, 1, 2)) for x in xs]
        found, _ = step.layer.forward(be, step.w, *maps, ctx=ForwardContext())
        y.transpose(0, 3, 1, 2)[...] = found

    return [[lambda tape: tape(run)]]


BIND: dict[type[Step], Callable[[Program, Any], Phases]] = {
    Convolve: _convolve,
    Copy: _copy,
    MaxPool: _maxpool,
    LayerCall: _reference,
    Upsample: _upsample,
    YoloHead: _yolo,
}
