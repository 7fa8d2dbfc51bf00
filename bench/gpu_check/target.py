"""Run a small network once, as the target of compute-sanitizer and Nsight Compute.

    python -m bench.gpu_check.target fp16

CuPy's memory pool and a plan's arena are one allocation each, in which the tools cannot see where a feature map ends. So this
program uses no pool, allocates every feature map separately, and captures nothing. It also decodes the heads' boxes.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from gpudarknet import backend as backends
from gpudarknet.backend import Backend
from gpudarknet.plan import Plan, cuda
from gpudarknet.plan.cuda.emitter import Emitter
from gpudarknet.plan.cuda.schedule import leading_dimension
from gpudarknet.plan.cuda.view import View
from gpudarknet.plan.steps import FeatureMap, Step

from .. import seeded
from .networks import compile_plan, config, without_weights

KERNELS = ("to_nchw", "rank_boxes")  # those of a prediction that use shared memory, where threads can race


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

    def __init__(self, plan: Plan, be: Backend, precision: str):
        super().__init__(plan, be, precision, graph=False)

    @property
    def buffers(self) -> dict[Any, Any]:
        """The arrays, by feature map or (step, workspace)."""
        assert isinstance(self.emitter, SeparateBuffers)
        return self.emitter.buffers


def main(
    precision: str,
    backend: str | Backend = "cupy",
    small: str = "0",
    width: str = "64",
    height: str = "96",
    batch: str = "2",
) -> None:
    """Run yolov4-tiny in a precision; small: with fewer filters."""
    if backend == "cupy":
        import cupy

        cupy.cuda.set_allocator(None)
    network = without_weights(config("yolov4-tiny", small == "1"), backends.get(backend), int(width), int(height))
    seeded.fill(network)
    be = network.backend
    program = TargetProgram(compile_plan(network, int(batch)), be, precision)
    heads = program.run(be.asarray(seeded.network_input(network, int(batch))))
    rows = network.decode(heads, 0.1)
    finite = all(np.isfinite(be.to_numpy(y)).all() for y in heads)
    print(f"{len(program.launches)} launches, {len(program.buffers)} arrays, {len(rows)} boxes")
    if not finite:
        sys.exit("values are not finite")


if __name__ == "__main__":
    main(*sys.argv[1:])
