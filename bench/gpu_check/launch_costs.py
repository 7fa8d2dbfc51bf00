"""Time every launch of a plan, with the bytes that it moves and its operations; and the overhead of a launch."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from gpudarknet.backend import cuda as kernels
from gpudarknet.ops import activation
from gpudarknet.plan import cuda
from gpudarknet.plan.cuda.time_model import CARDS

from .. import seeded
from ..launch_rows import COLUMNS, cells
from .case import Case, Context, Row, Skipped, wait
from .networks import compile_plan, seeded_network
from .speed import MAX_REPLAYS, Workload, time_budget, workloads


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
    plan = compile_plan(network, workload.batch)
    program = cuda.Program(plan, network.backend, workload.precision, graph=False)
    x = network.backend.asarray(seeded.network_input(network, workload.batch))
    program.run(x)
    wait(network.backend)
    seconds, _ = time_budget(context)
    limits = seconds / 50, 1 if context.small else 2, MAX_REPLAYS
    in_graph = [launch for launch in program.launch_times(CARDS[0]) if launch.in_graph]  # any card: for their costs
    lines = [cells(launch, t) for launch, t in zip(in_graph, program.time_launches(*limits), strict=True)]
    feed = program.stream_context.time(lambda: program.input_stage.feed(x), *limits)
    return {**workload.fields(), "launch_columns": COLUMNS, "launches": lines, "sums": sums(lines),
            "total_us": round(sum(one[1] for one in lines), 1), "input_us": round(1e6 * feed, 2),
            "plan_gflop": round(plan.flops * workload.batch / 1e9, 3)}  # fmt: skip


def sums(lines: list[list[Any]]) -> Row:
    """Sum launches by kernel: count, us, GB/s and TFLOP/s."""
    groups: dict[str, list[float]] = {}
    for name, us, mb, gflop in lines:
        kind = "gemm" if name.rpartition(" x gemm ")[2] != name or name.startswith("gemm ") else name
        group = groups.setdefault(kind, [0, 0.0, 0.0, 0.0])
        for i, value in enumerate((1, us, mb, gflop)):
            group[i] += value
    return {
        kind: {"count": n, "us": round(us, 1), "gb_s": round(1e3 * mb / us, 1), "tflop_s": round(1e3 * gflop / us, 2)}
        for kind, (n, us, mb, gflop) in sorted(groups.items(), key=lambda item: -item[1][1])
        if us
    }
