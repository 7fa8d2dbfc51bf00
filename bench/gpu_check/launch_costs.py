"""Time every launch of a plan, with the bytes that it moves and its operations; and the overhead of a launch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import Any

from gpudarknet.backend import Backend
from gpudarknet.backend import cuda as kernels
from gpudarknet.backend.cublas import PRECISIONS, R_16F
from gpudarknet.ops import activation
from gpudarknet.plan import cuda
from gpudarknet.plan.steps import Convolve

from .. import seeded
from .case import Case, Context, Row, Skipped, wait
from .networks import compile_plan, seeded_network
from .speed import MAX_REPLAYS, Workload, time_budget, workloads

COLUMNS = ("launch", "us", "mb", "gflop")  # of a row's "launches"


@dataclass
class LaunchCost:
    """The cost of a launch: name, bytes of the arrays that it reads and writes (once each), and operations."""

    name: str
    bytes: float
    flops: float


@dataclass
class Recorder:
    """Wraps a backend and, while `launched` is a list, records launches."""

    be: Backend
    launched: list[LaunchCost] | None = field(default=None)

    def backend(self) -> Backend:
        """Return a backend whose launches are recorded."""
        return replace(self.be, launch=self.launch, cublas=self.handle)

    def launch(self, name: str, threads: int, *args: Any, **options: Any) -> None:
        """Launch a kernel."""
        if self.launched is not None:
            self.launched.append(LaunchCost(name, kernel_bytes(name, args), 0.0))
        assert self.be.launch is not None
        self.be.launch(name, threads, *args, **options)

    def handle(self, *args: Any) -> Handle:
        """Open a cuBLAS handle."""
        assert self.be.cublas is not None
        return Handle(self, self.be.cublas(*args))


@dataclass
class Handle:
    """A cuBLAS handle that records gemms."""

    recorder: Recorder
    handle: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.handle, name)

    def gemm(self, precision: str, y: int, a: int, w: int, M: int, N: int, K: int, *lds: int) -> None:
        """Run a gemm."""
        self._record(f"gemm {M} x {N} x {K}", precision, 1, M, N, K)
        self.handle.gemm(precision, y, a, w, M, N, K, *lds)

    def gemm_batched(
        self, precision: str, count: int, y: int, a: int, w: int, M: int, N: int, K: int, *more: int
    ) -> None:
        """Run a strided batched gemm."""
        self._record(f"{count} x gemm {M} x {N} x {K}", precision, count, M, N, K)
        self.handle.gemm_batched(precision, count, y, a, w, M, N, K, *more)

    def _record(self, name: str, precision: str, count: int, M: int, N: int, K: int) -> None:
        if self.recorder.launched is not None:
            itemsize = 2 if PRECISIONS[precision][0] == R_16F else 4
            moved = itemsize * count * (M * K + N * K + M * N)
            self.recorder.launched.append(LaunchCost(name, moved, 2.0 * count * M * N * K))


def kernel_bytes(name: str, args: tuple[Any, ...]) -> float:
    """Return the bytes of a kernel's arrays; of im2col's input, only the part that this launch needs."""
    file, _, own = name.partition(".")
    sizes = {p.name: a.nbytes for p, a in zip(kernels.parameters(file)[own], args, strict=True) if hasattr(a, "nbytes")}
    moved = sum(sizes.values())
    if name == "nhwc.im2col":
        names = [p.name for p in kernels.parameters(file)[own]]
        x, col = names[:2]
        # All patches together read the map at least once; this launch makes the patches in col.
        stride = args[names.index("sy")] * args[names.index("sx")]
        moved = sizes[col] + min(sizes[x], sizes[col] / args[names.index("size")] ** 2 * stride)
    return float(moved)


def launches(context: Context) -> Iterable[Case]:
    """List the plans whose launches are timed."""
    yield Case("empty", partial(empty, context))
    for network in ("yolov4-tiny", "yolov3"):
        for s in workloads(context, network, (416,), ("fp16", "fp32"), (1, 64)):
            yield Case(f"{network}/{s}", partial(each_launch, context, s))


def empty(context: Context) -> Row:
    """Measure the overhead of an empty kernel, and of an op on one element."""
    from .ceilings import seconds

    be, calls = context.be, 10 if context.small else 1000
    x = be.zeros((1, 1, 1, 1))
    row: Row = {"op_us": 1e6 * seconds(be, lambda: activation.activate(be, x, "relu"), calls)}
    if be.name == "cupy":
        kernel = be.xp.RawKernel('extern "C" __global__ void empty() {}', "empty", options=kernels.OPTIONS)
        row["empty_kernel_us"] = 1e6 * seconds(be, lambda: kernel((1,), (32,), ()), calls)
    return row


def each_launch(context: Context, workload: Workload) -> Row:
    """Time every launch of a plan separately, repeated until it takes long enough to measure."""
    if context.be.cublas is None:
        raise Skipped("plans on CUDA need cuBLAS")
    network = seeded_network(workload.network, context, workload.size)
    recorder, plan = Recorder(network.backend), compile_plan(network, workload.batch)
    program = cuda.Program(plan, recorder.backend(), workload.precision, graph=False)
    x = network.backend.asarray(seeded.network_input(network, workload.batch))
    program.run(x)
    wait(network.backend)
    work = list(program.launches)
    costs = [cost_of(program, recorder, one) for one in work]
    seconds, rounds = time_budget(context)
    times = [program.stream_context.time(one, seconds / 50, 1 if context.small else 2, MAX_REPLAYS) for one in work]
    if program.input_stage.step is not None:
        work.insert(0, lambda: program.input_stage.feed(x))
        costs.insert(
            0, LaunchCost("input", first_bytes(program, x), first_flops(program.input_stage.step, workload.batch))
        )
        times.insert(0, program.stream_context.time(work[0], seconds / 50, 1 if context.small else 2, MAX_REPLAYS))
    lines = [
        [c.name, round(1e6 * t, 2), round(c.bytes / 1e6, 3), round(c.flops / 1e9, 4)]
        for c, t in zip(costs, times, strict=True)
    ]
    return {**workload.fields(), "launch_columns": COLUMNS, "launches": lines, "sums": sums(lines),
            "total_us": round(1e6 * sum(times), 1), "plan_gflop": round(plan.flops * workload.batch / 1e9, 3)}  # fmt: skip


def cost_of(program: cuda.Program, recorder: Recorder, work: Any) -> LaunchCost:
    """Run one item of work and return the cost of its launches."""
    recorder.launched = []
    with program.stream_context.use():
        work()
    launches, recorder.launched = recorder.launched, None
    return LaunchCost(
        " + ".join(c.name for c in launches), sum(c.bytes for c in launches), sum(c.flops for c in launches)
    )


def first_bytes(program: cuda.Program, x: Any) -> float:
    """Return the bytes that the first convolution moves."""
    step = program.input_stage.step
    assert step is not None
    return float(x.nbytes + program.emitter.view(step.y).a.nbytes)


def first_flops(step: Convolve, batch: int) -> float:
    """Return a convolution's operations."""
    return (
        2.0 * batch * step.y.shape[0] * prod(step.conv_output_size) * step.xs[0].shape[0] // step.groups * step.size**2
    )


def sums(lines: list[list[Any]]) -> Row:
    """Sum launches by kernel: count, us, GB/s and TFLOP/s."""
    groups: dict[str, list[float]] = {}
    for name, us, mb, gflop in lines:
        kind = "gemm" if "gemm" in name else name
        group = groups.setdefault(kind, [0, 0.0, 0.0, 0.0])
        for i, value in enumerate((1, us, mb, gflop)):
            group[i] += value
    return {
        kind: {"count": n, "us": round(us, 1), "gb_s": round(1e3 * mb / us, 1), "tflop_s": round(1e3 * gflop / us, 2)}
        for kind, (n, us, mb, gflop) in sorted(groups.items(), key=lambda item: -item[1][1])
        if us
    }
