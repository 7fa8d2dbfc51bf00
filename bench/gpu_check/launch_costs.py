"""Time every launch of a plan, beside the bytes that it moves and the operations that it does; and what a launch costs at all."""

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
from .networks import opened, planned
from .speed import MOST, Subject, subjects, timed

ROWS = ("launch", "us", "mb", "gflop")  # of each launch in a row's "launches"


@dataclass
class Count:
    """What one launch is: its name, the bytes of the arrays that it reads and writes, once each, and its operations."""

    name: str
    bytes: float
    flops: float


@dataclass
class Recorder:
    """A backend that passes everything on and, while `found` is a list, notes what is launched."""

    be: Backend
    found: list[Count] | None = field(default=None)

    def backend(self) -> Backend:
        """Return the backend."""
        return replace(self.be, launch=self.launch, cublas=self.handle)

    def launch(self, name: str, threads: int, *args: Any, **options: Any) -> None:
        """Launch a kernel."""
        if self.found is not None:
            self.found.append(Count(name, kernel_bytes(name, args), 0.0))
        assert self.be.launch is not None
        self.be.launch(name, threads, *args, **options)

    def handle(self, *args: Any) -> Handle:
        """Open a cuBLAS handle."""
        assert self.be.cublas is not None
        return Handle(self, self.be.cublas(*args))


@dataclass
class Handle:
    """A cuBLAS handle that notes products."""

    recorder: Recorder
    handle: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.handle, name)

    def gemm(self, precision: str, y: int, a: int, w: int, M: int, N: int, K: int, *lds: int) -> None:
        """Multiply."""
        self._note(f"gemm {M} x {N} x {K}", precision, 1, M, N, K)
        self.handle.gemm(precision, y, a, w, M, N, K, *lds)

    def gemms(self, precision: str, count: int, y: int, a: int, w: int, M: int, N: int, K: int, *more: int) -> None:
        """Multiply `count` times."""
        self._note(f"{count} gemms {M} x {N} x {K}", precision, count, M, N, K)
        self.handle.gemms(precision, count, y, a, w, M, N, K, *more)

    def _note(self, name: str, precision: str, count: int, M: int, N: int, K: int) -> None:
        if self.recorder.found is not None:
            itemsize = 2 if PRECISIONS[precision][0] == R_16F else 4
            moved = itemsize * count * (M * K + N * K + M * N)
            self.recorder.found.append(Count(name, moved, 2.0 * count * M * N * K))


def kernel_bytes(name: str, args: tuple[Any, ...]) -> float:
    """Return the bytes of a kernel's arrays; of what im2col reads, only the part that makes its rows."""
    file, _, own = name.partition(".")
    sizes = {p.name: a.nbytes for p, a in zip(kernels.parameters(file)[own], args, strict=True) if hasattr(a, "nbytes")}
    moved = sum(sizes.values())
    if name == "plan.im2col":
        names = [p.name for p in kernels.parameters(file)[own]]
        x, col = names[:2]
        # The map is read at least once for all of its patches; this launch makes col's share of them.
        stride = args[names.index("sy")] * args[names.index("sx")]
        moved = sizes[col] + min(sizes[x], sizes[col] / args[names.index("size")] ** 2 * stride)
    return float(moved)


def launches(context: Context) -> Iterable[Case]:
    """List the plans whose launches are timed."""
    yield Case("empty", partial(empty, context))
    for network in ("yolov4-tiny", "yolov3"):
        for s in subjects(context, network, (416,), ("fp16", "fp32"), (1, 64)):
            yield Case(f"{network}/{s}", partial(each_launch, context, s))


def empty(context: Context) -> Row:
    """Measure what a launch costs that computes nothing, and an op on one number."""
    from .ceilings import seconds

    be, calls = context.be, 10 if context.small else 1000
    x = be.zeros((1, 1, 1, 1))
    row: Row = {"op_us": 1e6 * seconds(be, lambda: activation.activate(be, x, "relu"), calls)}
    if be.name == "cupy":
        kernel = be.xp.RawKernel('extern "C" __global__ void empty() {}', "empty", options=kernels.OPTIONS)
        row["empty_kernel_us"] = 1e6 * seconds(be, lambda: kernel((1,), (32,), ()), calls)
    return row


def each_launch(context: Context, subject: Subject) -> Row:
    """Time every launch of a plan by itself, replayed until it takes long enough to be measured."""
    if context.be.cublas is None:
        raise Skipped("plans run on CUDA where there is cuBLAS")
    network = opened(subject.network, context, subject.size)
    recorder, plan = Recorder(network.backend), planned(network, subject.batch)
    program = cuda.Program(plan, recorder.backend(), subject.precision, graph=False)
    x = network.backend.asarray(seeded.picture(network, subject.batch))
    program.run(x)
    wait(network.backend)
    work = list(program.work)
    counts = [counted(program, recorder, one) for one in work]
    seconds, rounds = timed(context)
    taken = [program.stream_context.time(one, seconds / 50, 1 if context.small else 2, MOST) for one in work]
    if program.entry.step is not None:
        work.insert(0, lambda: program.entry.take(x))
        counts.insert(0, Count("entry", first_bytes(program, x), first_flops(program.entry.step, subject.batch)))
        taken.insert(0, program.stream_context.time(work[0], seconds / 50, 1 if context.small else 2, MOST))
    lines = [
        [c.name, round(1e6 * t, 2), round(c.bytes / 1e6, 3), round(c.flops / 1e9, 4)]
        for c, t in zip(counts, taken, strict=True)
    ]
    return {**subject.fields(), "launch_columns": ROWS, "launches": lines, "sums": sums(lines),
            "total_us": round(1e6 * sum(taken), 1), "gflop_of_the_plan": round(plan.flops * subject.batch / 1e9, 3)}  # fmt: skip


def counted(program: cuda.Program, recorder: Recorder, work: Any) -> Count:
    """Run one piece of work and return what it launched."""
    recorder.found = []
    with program.stream_context.use():
        work()
    found, recorder.found = recorder.found, None
    return Count(" + ".join(c.name for c in found), sum(c.bytes for c in found), sum(c.flops for c in found))


def first_bytes(program: cuda.Program, x: Any) -> float:
    """Return the bytes that the first convolution moves."""
    step = program.entry.step
    assert step is not None
    return float(x.nbytes + program.view(step.y).a.nbytes)


def first_flops(step: Convolve, batch: int) -> float:
    """Return a convolution's operations."""
    return (
        2.0 * batch * step.y.shape[0] * prod(step.conv_output_size) * step.xs[0].shape[0] // step.groups * step.size**2
    )


def sums(lines: list[list[Any]]) -> Row:
    """Add up launches by kernel: how many, us, GB/s and TFLOP/s."""
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
