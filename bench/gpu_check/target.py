"""Run a small network once, as the target of compute-sanitizer and Nsight Compute.

    python -m bench.gpu_check.target fp16
    python -m bench.gpu_check.target fp16 cupy 0 416 416 16 implicit-gemm

CuPy's memory pool and a plan's arena are one allocation each, in which the tools cannot see where a feature map ends. So this
program uses no pool, allocates every feature map separately, and captures nothing. It also decodes the heads' boxes. Where there
are tensor cores it runs a second plan, of implicit GEMMs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gpudarknet import backend as backends
from gpudarknet.backend import Backend
from gpudarknet.plan import Plan, cuda
from gpudarknet.plan.cuda.algorithms import ALGORITHMS, ConvProblem, implicit_gemms
from gpudarknet.plan.cuda.emitter import Emitter
from gpudarknet.plan.cuda.implicit_gemm import IMAGE_KERNELS, TILE_KERNELS
from gpudarknet.plan.cuda.schedule import leading_dimension
from gpudarknet.plan.cuda.stream import stream_context
from gpudarknet.plan.cuda.view import View
from gpudarknet.plan.steps import Convolve, FeatureMap, Step
from gpudarknet.plan.tuning import DEFAULT

from .. import seeded
from .networks import compile_plan, config, without_weights

KERNELS = (  # those of a prediction that use shared memory, where threads can race
    "to_nchw",
    "rank_boxes",
    "decode",
    *(kernel.partition(".")[2] for kernel in (*TILE_KERNELS, *IMAGE_KERNELS.values())),
)


class SeparateBuffers(Emitter):
    """An emitter whose feature maps and workspaces are separate arrays, initially NaN."""

    def __init__(self, *args: Any):
        self.buffers: dict[Any, Any] = {}
        super().__init__(*args)

    def _array(self, key: Any, size: int) -> Any:
        if key not in self.buffers:
            self.buffers[key] = self.be.empty((size,), self.dtype)
            self.buffers[key].fill(np.nan)
        return self.buffers[key]

    def view(self, m: FeatureMap) -> View:
        """Return a feature map's memory."""
        C, H, W = m.shape
        ld, pixels = leading_dimension(m, self.plan.input), self.batch * H * W
        storage = self._array(m.storage, ld * pixels)
        a = storage[m.channel_offset : m.channel_offset + (pixels - 1) * ld + C]
        return View(a, m.shape, ld, pixels, m.channel_offset)

    def workspace(self, step: Step, name: str) -> Any:
        """Return a step's workspace."""
        return self._array((step, name), self.schedule.arena.workspaces[step, name])


class TargetProgram(cuda.Program):
    """An eager program of separate buffers."""

    emitter_type = SeparateBuffers

    def __init__(self, plan: Plan, be: Backend, precision: str, choices: Mapping[str, str] | None = None):
        super().__init__(plan, be, precision, choices=choices, graph=False)

    @property
    def buffers(self) -> dict[Any, Any]:
        """The arrays, by feature map or (step, workspace)."""
        assert isinstance(self.emitter, SeparateBuffers)
        return self.emitter.buffers


def every_tile(plan: Plan, be: Backend, precision: str) -> dict[str, str]:
    """Return algorithms for the convolutions of a plan that give each tile in turn to one of them, whether it is fast or not."""
    choices, device = {}, stream_context(be).properties
    for i, step in enumerate(s for s in plan.steps if isinstance(s, Convolve)):
        supported = implicit_gemms(ConvProblem(step, plan.batch, precision, device))
        names = [name for name in ALGORITHMS if name in supported]
        if names:
            choices[step.key(plan.batch)] = names[i % len(names)]
    return choices


PLANS: dict[str, Callable[[Plan, Backend, str], Mapping[str, str]]] = {  # name -> the algorithms of its convolutions
    "library": lambda plan, be, precision: {},
    "implicit-gemm": lambda plan, be, precision: {DEFAULT: "implicit_gemm"},
    "every-tile": every_tile,
}


def main(
    precision: str,
    backend: str | Backend = "cupy",
    small: str = "0",
    width: str = "64",
    height: str = "96",
    batch: str = "2",
    *names: str,
) -> None:
    """Run plans of yolov4-tiny in a precision; small: with fewer filters. names: of PLANS."""
    if backend == "cupy":
        import cupy

        cupy.cuda.set_allocator(None)
    network = without_weights(config("yolov4-tiny", small == "1"), backends.get(backend), int(width), int(height))
    seeded.fill(network)
    be, plan = network.backend, compile_plan(network, int(batch))
    x = be.asarray(seeded.network_input(network, int(batch)))
    for name in names or (("library",) if precision == "fp32" else ("library", "every-tile")):
        program = TargetProgram(plan, be, precision, PLANS[name](plan, be, precision))
        heads = program.run(x)
        rows = network.decode(heads, 0.1)
        finite = all(np.isfinite(be.to_numpy(y)).all() for y in heads)
        print(f"{name}: {len(program.launches)} launches, {len(program.buffers)} arrays, {len(rows)} boxes")
        if not finite:
            sys.exit("values are not finite")


if __name__ == "__main__":
    main(*sys.argv[1:])
