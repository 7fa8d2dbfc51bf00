"""Run a plan with NumPy: all cores, BLAS for the products, nothing allocated between one image and the next but results."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from ..backend import Backend
from ..errors import BackendError
from ..layers import Run
from ..layers.convolutional import folded
from ..ops.yolo import yolo_activate
from .after import finish
from .choose import METHODS, choose
from .convolve import Phases, pieces
from .steps import Convolve, Copy, Map, MaxPool, Plan, Reference, Step, Upsample, YoloHead
from .team import Task, team

Prepared = Any  # a convolution's weights and bias, as its method wants them
BLOCK = 1 << 16  # numbers that one task of a pool or a copy takes


class Program:
    """A plan bound to an arena and to prepared weights; `run` may be called from any thread.

    choices: name of the method for a convolution's key, as `tune` measures them; others are chosen by rule.
    prepared: (layer, method) -> its weights, which programs of one network share.
    poison: fill the arena with NaN before each run, so that reading what no step wrote shows in the results.
    Raises BackendError where memory does not suffice.
    """

    def __init__(
        self,
        plan: Plan,
        choices: Mapping[str, str] | None = None,
        prepared: dict[tuple[int, str], Prepared] | None = None,
        poison: bool = False,
    ):
        self.plan, self.poison, self.team = plan, poison, team()
        self.prepared = {} if prepared is None else prepared
        self.arena = reserve(plan)
        self.methods = {s: choose(s, plan.batch, choices or {}) for s in plan.steps if isinstance(s, Convolve)}
        with self.team:  # weights are prepared as they will be used: BLAS on one thread
            self.phases: Phases = [tasks for step in plan.steps for tasks in BIND[type(step)](self, step)]

    def describe(self) -> str:
        """Return the plan as text, how each convolution is done, and the memory it takes."""
        own = {id(a): a.nbytes for made in self.prepared.values() for a in made if isinstance(a, np.ndarray)}
        sizes = (self.arena.nbytes, sum(own.values()), self.team.scratch_bytes)
        arena, weights, scratch = (f"{size / 2**20:.1f}" for size in sizes)
        return (
            f"{self.plan.describe(self.methods)}\n"
            f"CPU, {self.team.size} threads; MiB: arena {arena}, prepared weights {weights}, scratch {scratch}"
        )

    def view(self, m: Map) -> np.ndarray:
        """Return a map's memory as (N, C, H, W); images lie apart where the map is a part of another."""
        offset, apart = self.plan.place(m)
        C, H, W = m.shape
        one = np.lib.stride_tricks.as_strided
        return one(self.arena[offset:], (self.plan.batch, C, H, W), (4 * apart, 4 * H * W, 4 * W, 4))

    def run(self, x: np.ndarray) -> list[np.ndarray]:
        """Run the plan on x (N, C, H, W); return fresh arrays, one per output."""
        with self.team as workers, np.errstate(all="ignore"):
            if self.poison:
                self.arena.fill(np.nan)
            self.view(self.plan.input)[...] = x
            for tasks in self.phases:
                workers.run(tasks)
            return [self.view(m).copy() for m in self.plan.outputs]


def reserve(plan: Plan) -> np.ndarray:
    """Return the arena. Raises BackendError, which says how many images would fit, where memory does not suffice."""
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    need = 4 * plan.numbers
    try:
        if have is None or need <= have:
            return np.zeros(plan.numbers, np.float32)
    except MemoryError:
        have = None
    C, H, W = plan.input.shape
    fit = plan.batch * have // need if have else plan.batch // 2
    way = f"a batch of {fit} would fit" if fit > 0 else "not one image would fit; make them smaller"
    raise BackendError(f"batch {plan.batch} of {C} x {H} x {W} needs {need:,} bytes for its maps, this machine has "
                       f"{'less' if have is None else f'{have:,}'}; {way}")  # fmt: skip


def _convolve(program: Program, step: Convolve) -> Phases:
    x, y = program.view(step.xs[0]), program.view(step.y)
    name = program.methods[step]
    method, key = METHODS[name], (step.layers[0], name)
    if key not in program.prepared:
        w = folded(step.w)
        program.prepared[key] = method.prepare(w["kernel"], w["bias"])
    last = partial(finish, step.after, y, program.view, program.team)
    return method.bind(step, x, y, program.prepared[key], last, program.team)


def _by_channels(program: Program, step: Step, work: Callable[[int, int, slice], None], per_channel: int) -> Phases:
    """Return one phase: work(worker, n, channels) and then `after`, for pieces of the channels of every image."""
    N, (C, H, W) = program.plan.batch, step.y.shape
    last = finish(step.after, program.view(step.y), program.view, program.team)

    def task(n: int, c0: int, c1: int) -> Task:
        def run(worker: int) -> None:
            work(worker, n, slice(c0, c1))
            last(worker, n, c0, c1, 0, H * W)

        return run

    return [[task(n, *c) for n in range(N) for c in pieces(C, BLOCK // per_channel, program.team.size)]]


def _copy(program: Program, step: Copy) -> Phases:
    x, y = program.view(step.xs[0]), program.view(step.y)

    def work(worker: int, n: int, c: slice) -> None:
        y[n, c] = x[n, c]

    return _by_channels(program, step, work, x.shape[2] * x.shape[3])


def _upsample(program: Program, step: Upsample) -> Phases:
    x, y, s = program.view(step.xs[0]), program.view(step.y), step.s

    def work(worker: int, n: int, c: slice) -> None:
        for j in range(s):
            np.multiply(x[n, c], step.scale, out=y[n, c, ::s, j::s])
        for i in range(1, s):
            y[n, c, i::s] = y[n, c, ::s]

    return _by_channels(program, step, work, y.shape[2] * y.shape[3])


def _maxpool(program: Program, step: MaxPool) -> Phases:
    x, y = program.view(step.xs[0]), program.view(step.y)
    (H, W), (OH, OW), size, (sy, sx) = x.shape[2:], y.shape[2:], step.size, step.strides
    before = step.padding // 2
    WP = max(before + W, (OW - 1) * sx + size)
    HP = max(before + H, (OH - 1) * sy + size)

    def work(worker: int, n: int, c: slice) -> None:
        C = c.stop - c.start
        source = x[n, c]
        if (HP, WP) != (H, W):
            source = program.team.scratch(worker, "padded", C, HP, WP)
            source[:, :before] = -np.inf
            source[:, before + H :] = -np.inf
            source[:, before : before + H, :before] = -np.inf
            source[:, before : before + H, before + W :] = -np.inf
            source[:, before : before + H, before : before + W] = x[n, c]
        rows = [source[:, p : p + (OH - 1) * sy + 1 : sy] for p in range(size)]
        down = program.team.scratch(worker, "rows", C, OH, WP)
        _maximum(rows, down)
        _maximum([down[:, :, q : q + (OW - 1) * sx + 1 : sx] for q in range(size)], y[n, c])

    return _by_channels(program, step, work, HP * WP)


def _maximum(parts: list[np.ndarray], out: np.ndarray) -> None:
    if len(parts) == 1:
        out[...] = parts[0]
        return
    np.maximum(parts[0], parts[1], out=out)
    for part in parts[2:]:
        np.maximum(out, part, out=out)


def _yolo(program: Program, step: YoloHead) -> Phases:
    x, y = program.view(step.xs[0]), program.view(step.y)
    entries = x.shape[1] // step.A
    be = Backend("numpy", np)

    def task(n: int, a: int) -> Task:
        c = slice(a * entries, (a + 1) * entries)

        def run(worker: int) -> None:
            y[n, c] = yolo_activate(be, x[n : n + 1, c], 1, step.scale_x_y, step.new_coords)[0]

        return run

    return [[task(n, a) for n in range(program.plan.batch) for a in range(step.A)]]


def _reference(program: Program, step: Reference) -> Phases:
    xs, y, be = [program.view(m) for m in step.xs], program.view(step.y), Backend("numpy", np)

    def run(worker: int) -> None:
        found, _ = step.layer.forward(be, step.w, *xs, run=Run())
        y[...] = found

    return [[run]]


BIND: dict[type[Step], Callable[[Program, Any], Phases]] = {
    Convolve: _convolve,
    Copy: _copy,
    MaxPool: _maxpool,
    Reference: _reference,
    Upsample: _upsample,
    YoloHead: _yolo,
}
