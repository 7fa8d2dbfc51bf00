"""Time every launch of a plan, with its modelled time, bytes and operations; and measure the overhead of a launch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from gpudarknet.backend import cuda as kernels
from gpudarknet.ops import activation
from gpudarknet.plan import cuda
from gpudarknet.plan.cuda.time_model import CARDS, card_of_device

from .. import seeded
from ..launch_rows import COLUMNS, cells
from .case import Case, Context, Row, Skipped, wait
from .networks import compile_plan, seeded_network
from .speed import MAX_REPLAYS, Workload, time_budget, variants, workloads


def launches(context: Context) -> Iterable[Case]:
    """List the plans whose launches are timed; part A times those of the implicit GEMM's plans in fp16."""
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


def each_launch(context: Context, workload: Workload, name: str = "") -> Row:
    """Time every launch of a plan separately, repeated until it takes long enough to measure. name: of a variant of the plan."""
    if context.be.cublas is None:
        raise Skipped("plans on CUDA need cuBLAS")
    network = seeded_network(workload.network, context, workload.size)
    plan, packed = compile_plan(network, workload.batch), network.program_cache.packed_weights
    options = variants(plan, workload.precision)[name] if name else {}
    program = cuda.Program(plan, network.backend, workload.precision, packed, graph=False, **options)
    x = network.backend.asarray(seeded.network_input(network, workload.batch))
    program.run(x)
    wait(network.backend)
    seconds, _ = time_budget(context)
    limits = seconds / 50, 1 if context.small else 2, MAX_REPLAYS
    card = card_of_device(program.stream_context.properties.name)
    known = program.launch_times(card or CARDS[0])
    known = known if card else [replace(launch, modelled=None) for launch in known]
    in_graph, inputs = [launch for launch in known if launch.in_graph], known[: len(program.input_stage.costs)]
    lines = [cells(launch, t) for launch, t in zip(in_graph, program.time_launches(*limits), strict=True)]
    feed = program.stream_context.time(lambda: program.input_stage.feed(x), *limits)
    return {
        **workload.fields(),
        "variant": name,
        "card": card.name if card else None,
        "launch_columns": COLUMNS,
        "launches": lines,
        "sums": sums(lines),
        **{f"total_{column}": total(lines, column) for column in ("us", "modelled_us")},
        "input_us": round(1e6 * feed, 2),
        "input_modelled_us": total([cells(launch, 0) for launch in inputs], "modelled_us"),
        "plan_gflop": round(plan.flops * workload.batch / 1e9, 3),
    }


def total(lines: Sequence[Sequence[Any]], column: str) -> float | None:
    """Add up a column; None if a value is."""
    values = [one[COLUMNS.index(column)] for one in lines]
    return None if None in values else round(sum(values), 1)


def sums(lines: Sequence[Sequence[Any]]) -> Row:
    """Sum launches by kernel: count, us measured and modelled, GB/s and TFLOP/s, the longest first."""
    groups: dict[str, list[Sequence[Any]]] = {}
    for one in lines:
        name = one[0]
        groups.setdefault("gemm" if " x gemm " in name or name.startswith("gemm ") else name, []).append(one)
    result: Row = {}
    for kind, group in sorted(groups.items(), key=lambda item: -sum(one[1] for one in item[1])):
        us, mb, gflop = (sum(one[COLUMNS.index(column)] for one in group) for column in ("us", "mb", "gflop"))
        if us:
            result[kind] = {
                "count": len(group),
                "us": round(us, 1),
                "modelled_us": total(group, "modelled_us"),
                "gb_s": round(1e3 * mb / us, 1),
                "tflop_s": round(1e3 * gflop / us, 2),
            }
    return result
