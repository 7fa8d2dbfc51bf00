"""Time plans on a GPU: the graph alone, `predict` including host time, and `detect` from a JPEG file to boxes.

Inputs and heads' outputs are in device memory. images_s measures back-to-back calls of `predict`, graph_images_s the replay
of the graph alone, which is compared with PyTorch's graph.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from gpudarknet import Detector, image
from gpudarknet.io import resources
from gpudarknet.network import Network
from gpudarknet.plan import Plan, cuda
from gpudarknet.plan.cuda import autotune
from gpudarknet.plan.steps import Convolve
from gpudarknet.plan.tuning import DEFAULT

from .. import seeded
from .case import Case, Context, Row, Skipped
from .environment import clocks, opencv
from .networks import compile_plan, seeded_network

# Tolerance relative to an output's largest value: float32 in another summation order; 11 bits of tf32 and fp16.
TOLERANCE = {"fp32": 1e-4, "tf32": 2e-2, "fp16": 2e-2}
SECONDS = 0.25  # for each measurement, over at least ROUNDS rounds
ROUNDS = 5
MAX_REPLAYS = 200  # in a round
SMI_SECONDS = 3.0  # for nvidia-smi
IMPLICIT = "implicit-gemm"  # the variant of a plan that prefers the implicit GEMM
HOST_CALLS = 30  # that are queued to measure host time; fewer than a queue holds


@dataclass(frozen=True)
class Workload:
    """What is timed: a network at size x size, a precision and a batch size."""

    network: str
    size: int
    precision: str
    batch: int

    def __str__(self) -> str:
        return f"{self.size}/{self.precision}/batch-{self.batch}"

    def fields(self) -> Row:
        """Return it as fields of a row."""
        return {"network": self.network, "size": self.size, "precision": self.precision, "batch": self.batch}


def workloads(
    context: Context, network: str, sizes: Iterable[int], precisions: Iterable[str], batches: Iterable[int]
) -> list[Workload]:
    """List a network's workloads; small: one small size, and batches of 1 and 2."""
    if context.small:
        sizes, batches = (64,), (1, 2)
    return [Workload(network, s, p, n) for s in sizes for p in precisions for n in batches]


def synchronizer(context: Context) -> Callable[[], object]:
    """Return the function that waits for the device."""
    return context.be.xp.cuda.Device().synchronize if context.backend == "cupy" else lambda: None


def time_budget(context: Context) -> tuple[float, int]:
    """Return the seconds and rounds of a measurement."""
    return (0.0, 1) if context.small else (SECONDS, ROUNDS)


def image_rate(call: Callable[[], object], wait: Callable[[], object], batch: int, context: Context) -> Row:
    """Return images per second of back-to-back calls, and the milliseconds of a single synchronized call."""
    seconds, rounds = time_budget(context)
    for _ in range(1 if context.small else 2):
        call()
    wait()
    start = time.perf_counter()
    call()
    wait()
    estimate = max(time.perf_counter() - start, 1e-6)
    calls = max(1, min(100, int(seconds / rounds / estimate)))
    queued, single = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        wait()
        queued.append((time.perf_counter() - start) / calls)
        start = time.perf_counter()
        call()
        wait()
        single.append(time.perf_counter() - start)
    return {
        "images_s": round(batch / statistics.median(queued), 1),
        "images_s_range": [round(batch / t, 1) for t in (max(queued), min(queued))],
        "latency_ms": round(1e3 * statistics.median(single), 4),
        "calls": calls,
    }


def host_us(call: Callable[[], object], wait: Callable[[], object], context: Context) -> float:
    """Return the microseconds of host time to queue a call."""
    calls = 2 if context.small else HOST_CALLS
    wait()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    elapsed = (time.perf_counter() - start) / calls
    wait()
    return round(1e6 * elapsed, 1)


@lru_cache(maxsize=1)
def reference(context: Context, name: str, size: int, batch: int) -> list[np.ndarray]:
    """Return the reference engine's outputs for the first and last image of a batch."""
    network = seeded_network(name, context, size)
    x = seeded.network_input(network, batch)[[0, -1]]
    outputs = [network.predict(one[None], engine="reference") for one in x]
    return [np.concatenate([network.backend.to_numpy(y) for y in ys]) for ys in zip(*outputs, strict=True)]


def first_and_last(network: Network, heads: list[Any]) -> list[np.ndarray]:
    """Return the outputs of the first and last image."""
    return [network.backend.to_numpy(y)[[0, -1]] for y in heads]


def ours(context: Context, workload: Workload) -> Row:
    """Compare `predict` with the reference engine and with itself; time it, its host time, and the graph's replay alone."""
    network = seeded_network(workload.network, context, workload.size)
    be, wait, batch = network.backend, synchronizer(context), workload.batch
    x = be.asarray(seeded.network_input(network, batch))
    precision: Any = workload.precision
    start = time.perf_counter()
    heads = network.predict(x, precision=precision)
    wait()
    row: Row = {
        **workload.fields(),
        "engine": "ours",
        "first_call_s": round(time.perf_counter() - start, 3),
        "failed": [],
    }
    first, again = first_and_last(network, heads), first_and_last(network, network.predict(x, precision=precision))
    want = reference(context, workload.network, workload.size, batch)
    row["max_error"] = max(float(np.abs(g - w).max() / np.abs(w).max()) for g, w in zip(again, want, strict=True))
    if not row["max_error"] <= TOLERANCE[precision]:
        row["failed"].append(f"{row['max_error']:.2g} of the largest value from the reference engine")
    if not all(np.array_equal(a, b) for a, b in zip(first, again, strict=True)):
        row["failed"].append("two runs differ")

    def call() -> object:
        return network.predict(x, precision=precision)

    row |= image_rate(call, wait, batch, context)
    program = list(network.program_cache.programs.values())[-1]
    if isinstance(program, cuda.Program):
        row["host_us"] = host_us(call, wait, context)
        row |= replay_rate(program, context)
        row |= {"eager_reason": program.eager_reason, "description": program.describe().splitlines()[-1]}
        if program.eager_reason is not None and context.backend == "cupy":
            row["failed"].append(f"not a CUDA graph: {program.eager_reason}")
    network.program_cache.programs.clear()
    return row


def replay_rate(program: cuda.Program, context: Context) -> Row:
    """Return the device time of replaying the graph."""
    seconds, rounds = time_budget(context)
    elapsed = program.stream_context.time(program.replay, seconds / rounds, rounds, MAX_REPLAYS)
    return {"graph_ms": round(1e3 * elapsed, 4), "graph_images_s": round(program.plan.batch / elapsed, 1)}


def variants(plan: Plan, precision: str) -> dict[str, dict[str, Any]]:
    """Return variants of the default plan: name -> options of its program."""
    options: dict[str, dict[str, Any]] = {
        "eager": {"graph": False},
        "unfused": {"fuse_gemms": False, "fuse_im2col": False},
        IMPLICIT: {"choices": {DEFAULT: "implicit_gemm"}},
    }
    if precision == "fp32":
        keys = [step.key(plan.batch) for step in plan.steps if isinstance(step, Convolve) and step.size > 1]
        options["no-winograd"] = {"choices": dict.fromkeys(keys, "im2col_gemm")}
    return options


def variant(context: Context, workload: Workload, name: str) -> Row:
    """Compare a variant of a plan with the default one, which uses cuBLAS by rule, and time both."""
    network = seeded_network(workload.network, context, workload.size)
    be, wait = network.backend, synchronizer(context)
    if be.cublas is None:
        raise Skipped("plans on CUDA need cuBLAS")
    plan, x = compile_plan(network, workload.batch), be.asarray(seeded.network_input(network, workload.batch))
    options, packed = variants(plan, workload.precision)[name], network.program_cache.packed_weights
    default = cuda.Program(plan, be, workload.precision, packed)
    want = [be.to_numpy(y) for y in default.run(x)]
    program = cuda.Program(plan, be, workload.precision, packed, **options)
    got = [be.to_numpy(y) for y in program.run(x)]
    difference = max(float(np.abs(g - w).max() / np.abs(w).max()) for g, w in zip(got, want, strict=True))
    failed = (
        []
        if difference <= 2 * TOLERANCE[workload.precision]
        else [f"{difference:.2g} of the largest value from the default plan"]
    )
    if context.backend == "cupy" and program.eager_reason not in (None, "requested"):
        failed.append(f"not a CUDA graph: {program.eager_reason}")
    row = {
        **workload.fields(),
        "engine": name,
        "max_difference": difference,
        "tuned_for": autotune.device_name(be, workload.precision),
        "description": program.describe().splitlines()[-1],
        "failed": failed,
    }
    rates = image_rate(lambda: program.run(x), wait, workload.batch, context) | replay_rate(program, context)
    return row | rates | {"default_graph_images_s": replay_rate(default, context)["graph_images_s"]}


def suppress_detections(network: Network) -> None:
    """Lower the objectness bias, so that random weights detect almost nothing, as in an ordinary image."""
    for index in network.heads:
        layer, own = network.nodes[index].layer, network.weights[index - 1]
        classes = getattr(layer, "classes", 0)
        if "bias" in own and classes and own["bias"].size % (5 + classes) == 0:
            own["bias"].reshape(-1, 5 + classes)[:, 4] = -1e4
    network.program_cache.clear()


def detect(context: Context, workload: Workload) -> Row:
    """Time `detect`: on an array, on a JPEG file, and on a stream of such files."""
    opencv()  # needed to read images
    network = seeded_network(workload.network, context, workload.size)
    suppress_detections(network)
    path = resources.folder() / "digits.jpg"
    precision: Any = workload.precision
    detector, array = Detector(network, precision=precision), image.read(path)
    detections = [detector.detect(array) for _ in range(2)][-1]
    rounds = 1 if context.small else 30

    def median(call: Callable[[], object]) -> float:
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return round(1e3 * statistics.median(times), 4)

    x, program = detector.upload([array]), list(network.program_cache.programs.values())[-1]
    row: Row = {**workload.fields(), "engine": "ours", "boxes": len(detections), "image": list(array.shape)}
    row["read_ms"] = median(lambda: image.read(path))
    row["detect_ms"] = median(lambda: detector.detect(array))
    row["detect_jpeg_ms"] = median(lambda: detector.detect(path))
    if isinstance(program, cuda.Program):
        row["graph_ms"] = replay_rate(program, context)["graph_ms"]
        row["outside_graph_us"] = round(1e3 * (row["detect_ms"] - row["graph_ms"]), 1)
    row["infer_ms"] = median(lambda: detector.decode(detector.predict(x), 0.25, [array.shape[1::-1]]))
    count = 2 if context.small else 128
    start = time.perf_counter()
    list(detector.detect_stream([path] * count, batch=min(8, count)))
    row["stream_images_s"] = round(count / (time.perf_counter() - start), 1)
    network.program_cache.programs.clear()
    return row


def cases(
    network: str,
    sizes: tuple[int, ...],
    precisions: tuple[str, ...],
    batches: tuple[int, ...],
    torch: tuple[str, ...] = ("torch-graph",),
    with_variants: bool = False,
    skip: Callable[[Workload], bool] = lambda workload: False,
    with_launches: bool = False,
) -> Callable[[Context], Iterable[Case]]:
    """Return the function that lists a network's cases: ours first, so that PyTorch cannot affect them.

    with_variants: time variants of the plan instead of `detect`. with_launches: time each launch of the implicit GEMM's plans.
    """
    from .launch_costs import each_launch  # these import this module
    from .torch_speed import measure

    def list_cases(context: Context) -> Iterable[Case]:
        chosen = [s for s in workloads(context, network, sizes, precisions, batches) if not skip(s)]
        implicit = [s for s in chosen if s.precision == "fp16"]
        yield Case("clocks-before", clocks, SMI_SECONDS)
        for s in chosen:
            yield Case(f"{s}/ours", partial(ours, context, s))
        for s in implicit:
            yield Case(f"{s}/{IMPLICIT}", partial(variant, context, s, IMPLICIT))
        for s in implicit if with_launches else []:
            yield Case(f"{s}/{IMPLICIT}-launches", partial(each_launch, context, s, IMPLICIT))
        if chosen and not with_variants:
            first = chosen[0]
            yield Case(f"{first.size}/{first.precision}/detect", partial(detect, context, first))
        for kind in torch:
            for s in chosen:
                yield Case(f"{s}/{kind}", partial(measure, context, s, kind))
        for s in chosen if with_variants else []:
            for name in ("eager", "unfused", *(["no-winograd"] if s.precision == "fp32" else [])):
                yield Case(f"{s}/{name}", partial(variant, context, s, name))
        yield Case("clocks-after", clocks, SMI_SECONDS)

    return list_cases
