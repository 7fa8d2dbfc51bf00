"""Run a small network once, for compute-sanitizer and Nsight Compute to watch: python -m bench.gpu_check.watched fp16

CuPy's memory pool and a plan's arena are one allocation each, inside of which no tool sees where a map ends. So there is no
pool here, every map is an array of its own, and nothing is captured. Of a network with heads, boxes are read off too.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from gpudarknet import backend as backends
from gpudarknet.backend import Backend
from gpudarknet.plan import Plan, cuda
from gpudarknet.plan.cuda.algorithms import rounded
from gpudarknet.plan.cuda.program import View
from gpudarknet.plan.steps import FeatureMap, Step

from .. import seeded
from .networks import blank, config, planned

KERNELS = ("to_nchw", "rank_boxes")  # those of a prediction that use shared memory, where threads can race


class Apart(cuda.Program):
    """A program whose maps and work spaces are arrays of their own, filled with NaN before they are used."""

    def __init__(self, plan: Plan, be: Backend, precision: str):
        self.own: dict[Any, Any] = {}
        super().__init__(plan, be, precision, graph=False)

    def _array(self, key: Any, numbers: int) -> Any:
        if key not in self.own:
            self.own[key] = self.be.empty((numbers,), self.type)
            self.own[key].fill(np.nan)
        return self.own[key]

    def view(self, m: FeatureMap) -> View:
        """Return a map's memory."""
        C, H, W = m.shape
        ld, pixels = rounded(m.storage.shape[0]), self.plan.batch * H * W
        whole = self._array(m.storage, ld * pixels)
        return View(
            whole[m.channel_offset : m.channel_offset + (pixels - 1) * ld + C], m.shape, ld, pixels, m.channel_offset
        )

    def memory(self, step: Step, name: str) -> Any:
        """Return memory that a step needs beside its maps."""
        return self._array((step, name), self.scheme.needs[step, name])


def main(
    precision: str,
    backend: str | Backend = "cupy",
    small: str = "0",
    width: str = "64",
    height: str = "96",
    batch: str = "2",
) -> None:
    """Run yolov4-tiny in a precision; small: a thin one."""
    if backend == "cupy":
        import cupy

        cupy.cuda.set_allocator(None)
    network = blank(config("yolov4-tiny", small == "1"), backends.get(backend), int(width), int(height))
    seeded.fill(network)
    be = network.backend
    program = Apart(planned(network, int(batch)), be, precision)
    heads = program.run(be.asarray(seeded.picture(network, int(batch))))
    rows = network.detections(heads, 0.1)
    finite = all(np.isfinite(be.to_numpy(y)).all() for y in heads)
    print(f"{len(program.work)} pieces of work, {len(program.own)} arrays, {len(rows)} boxes")
    if not finite:
        sys.exit("numbers that are not finite")


if __name__ == "__main__":
    main(*sys.argv[1:])
