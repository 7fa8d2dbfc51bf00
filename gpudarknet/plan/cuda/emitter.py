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
from ...backend.cuda import parameters, prepare
from ..steps import Convolve, FeatureMap, Plan, Step
from .algorithms import ConvProblem
from .schedule import Schedule, leading_dimension
from .stream import StreamContext
from .time_model import Cost, Gemm
from .view import View
from .weights import PackedWeights


class Launch(NamedTuple):
    """One launch, queued on the current stream by run().

    kernel: the kernel to compile for it, or "". cost: None for a fallback layer, whose launches are not known.
    """

    run: Callable[[], None]
    kernel: str = ""
    cost: Cost | None = None

    @property
    def name(self) -> str:
        """Its kernel, or the sizes of its gemm."""
        return self.kernel or (str(self.cost.gemm) if self.cost else "fallback")


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
        self.device, self.split_counters = context.properties, context.split_counters
        self.dtype = storage_dtype(precision)
        self.vector = 16 // self.dtype.itemsize
        self.launch_kernel = be.launch

    def view(self, m: FeatureMap) -> View:
        """Return a map's memory."""
        C, H, W = m.shape
        ld, pixels = leading_dimension(m, self.plan.input), self.batch * H * W
        first = self.schedule.arena.offsets[m.storage] + m.channel_offset
        return View(self.arena[first : first + (pixels - 1) * ld + C], m.shape, ld, pixels, m.channel_offset)

    def workspace(self, step: Step, name: str) -> Array:
        """Return a workspace of a step."""
        first = self.schedule.arena.offsets[step, name]
        return self.arena[first : first + self.schedule.arena.workspaces[step, name]]

    def problem(self, step: Convolve) -> ConvProblem:
        """Return the properties on which a convolution's algorithm depends."""
        return ConvProblem(step, self.batch, self.precision, self.device)

    def can_vectorize(self, *views: View) -> bool:
        """Return whether kernels can move 16 bytes at once in all of these."""
        return all(view.can_vectorize(self.vector) for view in views)

    def threads(self, elements: int, vectorized: bool) -> int:
        """Return the threads of a kernel that handles one element each, or one vector."""
        return elements // (self.vector if vectorized else 1)

    def prepare(
        self, kernel: str, threads: int, *args: KernelArgument | View, block: int = 256, shared: int = 0,
        varying: Sequence[int] = (0,),
    ) -> Callable[..., None]:  # fmt: skip
        """Return a launch for each call of `run`, outside the graph; see `backend.cuda.prepare`."""
        arrays = [a.a if isinstance(a, View) else a for a in args]
        return prepare(self.launch_kernel, kernel, threads, *arrays, block=block, shared=shared, varying=varying)

    def launch(
        self, kernel: str, threads: int, *args: KernelArgument | View, block: int = 256, shared: int = 0,
        flops: float = 0, gemm: Gemm | None = None,
    ) -> Launch:  # fmt: skip
        """Return the launch of a kernel. Its cost counts every array once, and of a View the elements without the gaps."""
        launch, arrays = self.launch_kernel, [a.a if isinstance(a, View) else a for a in args]
        cost = Cost(*bytes_moved(kernel, args), flops, gemm)
        return Launch(lambda: launch(kernel, threads, *arrays, block=block, shared=shared), kernel, cost)

    def gemm(
        self, y: int, a: int, w: int, M: int, N: int, K: int, ldy: int, lda: int, ldw: int,
        count: int = 1, strides: tuple[int, int, int] = (0, 0, 0),
    ) -> Launch:  # fmt: skip
        """Return the launch of `count` gemms by cuBLAS; the arguments are those of its `Handle`."""
        handle, precision, size = self.handle, self.precision, self.dtype.itemsize
        arguments = (y, a, w, M, N, K, ldy, lda, ldw)
        weights = N * K * (count if strides[2] else 1)
        cost = Cost(size * (count * M * K + weights), size * count * M * N, gemm=Gemm(M, N, K, count))
        if count == 1:
            return Launch(lambda: handle.gemm(precision, *arguments), cost=cost)
        return Launch(lambda: handle.gemm_batched(precision, count, *arguments, *strides), cost=cost)


def bytes_moved(kernel: str, args: Sequence[KernelArgument | View]) -> tuple[int, int]:
    """Return the bytes of the arrays that a kernel reads, and of those that it writes."""
    file, _, name = kernel.partition(".")
    moved = [0, 0]
    for parameter, a in zip(parameters(file)[name], args, strict=True):
        if parameter.pointer and a is not None:
            moved[not parameter.const] += a.nbytes  # type: ignore[union-attr]
    return moved[0], moved[1]
