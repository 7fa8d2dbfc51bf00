"""The basis of the emitters: the plan with its schedule, views of the arena, packed weights, and launches.

An emitter turns a step into launches. It reads an `Emitter` and returns `Emitted`; it changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ...array import Array, KernelArgument
from ...backend import Backend
from ...backend.cuda import prepare
from ..steps import Convolve, FeatureMap, Plan, Step
from .algorithms import ConvProblem, align_channels
from .schedule import Schedule
from .stream import StreamContext
from .view import View
from .weights import PackedWeights


class Launch(NamedTuple):
    """One launch, queued on the current stream by run(). kernel: the kernel to compile for it, or ""."""

    run: Callable[[], None]
    kernel: str = ""


@dataclass(frozen=True)
class Emitted:
    """The result of emitting a step. algorithm: in words, for the printed plan.

    fallback: the section whose layer runs its own `forward`, if so. row_major: the elements of its map are the results in memory
    order, not a map with channels.
    """

    launches: Sequence[Launch]
    algorithm: str = ""
    fallback: str = ""
    row_major: bool = False


def storage_dtype(precision: str) -> np.dtype[Any]:
    """Return the type of maps and weights in a precision."""
    return np.dtype(np.float16 if precision == "fp16" else np.float32)


class Emitter:
    """The context in which steps are emitted. vector: elements in 16 bytes, which kernels can move at once."""

    def __init__(
        self,
        plan: Plan,
        be: Backend,
        precision: str,
        schedule: Schedule,
        weights: PackedWeights,
        arena: Array,
        context: StreamContext,
    ):
        assert be.launch is not None
        self.plan, self.batch, self.be, self.precision = plan, plan.batch, be, precision
        self.schedule, self.weights, self.arena, self.handle = schedule, weights, arena, context.handle
        self.dtype = storage_dtype(precision)
        self.vector = 16 // self.dtype.itemsize
        self.launch_kernel = be.launch

    def view(self, m: FeatureMap) -> View:
        """Return a map's memory."""
        C, H, W = m.shape
        ld, pixels = align_channels(m.storage.shape[0]), self.batch * H * W
        first = self.schedule.arena.offsets[m.storage] + m.channel_offset
        return View(self.arena[first : first + (pixels - 1) * ld + C], m.shape, ld, pixels, m.channel_offset)

    def workspace(self, step: Step, name: str) -> Array:
        """Return a workspace of a step."""
        first = self.schedule.arena.offsets[step, name]
        return self.arena[first : first + self.schedule.arena.workspaces[step, name]]

    def problem(self, step: Convolve) -> ConvProblem:
        """Return the properties on which a convolution's algorithm depends."""
        return ConvProblem(step, self.batch, self.dtype.itemsize)

    def can_vectorize(self, *views: View) -> bool:
        """Return whether kernels can move 16 bytes at once in all of these."""
        return all(view.can_vectorize(self.vector) for view in views)

    def threads(self, elements: int, vectorized: bool) -> int:
        """Return the threads of a kernel that handles one element each, or one vector."""
        return elements // (self.vector if vectorized else 1)

    def prepare(
        self, kernel: str, threads: int, *args: KernelArgument, varying: Sequence[int] = (0,)
    ) -> Callable[..., None]:
        """Return a launch for each call of `run`, outside the graph; see `backend.cuda.prepare`."""
        return prepare(self.launch_kernel, kernel, threads, *args, varying=varying)

    def launch(self, kernel: str, threads: int, *args: KernelArgument) -> Launch:
        """Return the launch of a kernel."""
        launch = self.launch_kernel
        return Launch(lambda: launch(kernel, threads, *args), kernel)
