"""Time plans on a GPU: the graph alone, `predict` with its host's part, and `detect` from a JPEG file to boxes.

An input lies on the device, heads' outputs end there. images_s is of calls of `predict` queued one behind the other,
graph_images_s of the replay of the graph alone, which is what PyTorch's graph is compared with.
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
from gpudarknet.plan.steps import Convolve

from .. import seeded
from .case import Case, Context, Row, Skipped
from .environment import clocks, opencv
from .networks import opened, planned

# Parts of an output's largest number that a result may be off: float32 in another order; 11 bits of tf32 and fp16.
TOLERANCE = {"fp32": 1e-4, "tf32": 2e-2, "fp16": 2e-2}
TIMED = 0.25  # seconds for each figure, and at least ROUNDS rounds
ROUNDS = 5
MOST = 200  # replays in a round
SMI_SECONDS = 3.0  # for nvidia-smi
HOST_CALLS = 30  # that are queued to measure the host's part of one; fewer than a queue holds


@dataclass(frozen=True)
class Subject:
    """What is timed: a network at size x size, in a precision, for a batch."""

    network: str
    size: int
    precision: str
    batch: int

    def __str__(self) -> str:
        return f"{self.size}/{self.precision}/batch-{self.batch}"

    def fields(self) -> Row:
        """Return it as the fields of a row."""
        return {"network": self.network, "size": self.size, "precision": self.precision, "batch": self.batch}


def subjects(
    context: Context, network: str, sizes: Iterable[int], precisions: Iterable[str], batches: Iterable[int]
) -> list[Subject]:
    """List what is to be timed of a network; small: one small size, and batches of 1 and 2."""
    if context.small:
        sizes, batches = (64,), (1, 2)
    return [Subject(network, s, p, n) for s in sizes for p in precisions for n in batches]


def wait_for(context: Context) -> Callable[[], object]:
    """Return the function that waits for the device."""
    return context.be.xp.cuda.Device().synchronize if context.backend == "cupy" else lambda: None


def timed(context: Context) -> tuple[float, int]:
    """Return the seconds and the rounds for a figure."""
    return (0.0, 1) if context.small else (TIMED, ROUNDS)


def image_rate(call: Callable[[], object], wait: Callable[[], object], batch: int, context: Context) -> Row:
    """Return images per second, calls queued one behind the other, and the milliseconds of a single call with its wait."""
    seconds, rounds = timed(context)
    for _ in range(1 if context.small else 2):
        call()
    wait()
    start = time.perf_counter()
    call()
    wait()
    once = max(time.perf_counter() - start, 1e-6)
    calls = max(1, min(100, int(seconds / rounds / once)))
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
        "spread": [round(batch / t, 1) for t in (max(queued), min(queued))],
        "latency_ms": round(1e3 * statistics.median(single), 4),
        "calls": calls,
    }


def host_us(call: Callable[[], object], wait: Callable[[], object], context: Context) -> float:
    """Return the microseconds that the host needs to queue a call."""
    calls = 2 if context.small else HOST_CALLS
    wait()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    taken = (time.perf_counter() - start) / calls
    wait()
    return round(1e6 * taken, 1)


@lru_cache(maxsize=1)
def reference(context: Context, name: str, size: int, batch: int) -> list[np.ndarray]:
    """Return what the reference engine makes of the first and the last image of a batch."""
    network = opened(name, context, size)
    x = seeded.picture(network, batch)[[0, -1]]
    found = [network.predict(one[None], engine="reference") for one in x]
    return [np.concatenate([network.backend.to_numpy(y) for y in ys]) for ys in zip(*found, strict=True)]


def ends(network: Network, heads: list[Any]) -> list[np.ndarray]:
    """Return the first and the last image's outputs."""
    return [network.backend.to_numpy(y)[[0, -1]] for y in heads]


def ours(context: Context, subject: Subject) -> Row:
    """Compare `predict` with the reference engine and itself, and time it, the host's part, and the graph's replay alone."""
    network = opened(subject.network, context, subject.size)
    be, wait, batch = network.backend, wait_for(context), subject.batch
    x = be.asarray(seeded.picture(network, batch))
    precision: Any = subject.precision
    start = time.perf_counter()
    heads = network.predict(x, precision=precision)
    wait()
    row: Row = {**subject.fields(), "engine": "ours", "first_s": round(time.perf_counter() - start, 3), "failed": []}
    first, again = ends(network, heads), ends(network, network.predict(x, precision=precision))
    want = reference(context, subject.network, subject.size, batch)
    row["off"] = max(float(np.abs(g - w).max() / np.abs(w).max()) for g, w in zip(again, want, strict=True))
    if not row["off"] <= TOLERANCE[precision]:
        row["failed"].append(f"{row['off']:.2g} of the largest number off the reference engine")
    if not all(np.array_equal(a, b) for a, b in zip(first, again, strict=True)):
        row["failed"].append("two runs differ")

    def call() -> object:
        return network.predict(x, precision=precision)

    row |= image_rate(call, wait, batch, context)
    program = list(network.program_cache.programs.values())[-1]
    if isinstance(program, cuda.Program):
        row["host_us"] = host_us(call, wait, context)
        row |= replayed(program, context)
        row |= {"eagerly": program.eagerly, "described": program.describe().splitlines()[-1]}
        if program.eagerly is not None and context.backend == "cupy":
            row["failed"].append(f"not a CUDA graph: {program.eagerly}")
    network.program_cache.programs.clear()
    return row


def replayed(program: cuda.Program, context: Context) -> Row:
    """Return the time that the device takes to replay the graph."""
    seconds, rounds = timed(context)
    taken = program.stream_context.time(program.replay, seconds / rounds, rounds, MOST)
    return {"graph_ms": round(1e3 * taken, 4), "graph_images_s": round(program.plan.batch / taken, 1)}


def variants(plan: Plan, precision: str) -> dict[str, dict[str, Any]]:
    """Return other forms of a plan than the graph by rule: name -> options of its program."""
    found: dict[str, dict[str, Any]] = {"eager": {"graph": False}, "one-by-one": {"together": False, "ahead": False}}
    if precision == "fp32":
        keys = [step.key(plan.batch) for step in plan.steps if isinstance(step, Convolve) and step.size > 1]
        found["without-winograd"] = {"choices": dict.fromkeys(keys, "patches")}
    return found


def variant(context: Context, subject: Subject, name: str) -> Row:
    """Compare another form of a plan with the usual one, and time it."""
    network = opened(subject.network, context, subject.size)
    be, wait = network.backend, wait_for(context)
    if be.cublas is None:
        raise Skipped("plans run on CUDA where there is cuBLAS")
    plan, x = planned(network, subject.batch), be.asarray(seeded.picture(network, subject.batch))
    options, prepared = variants(plan, subject.precision)[name], network.program_cache.packed_weights
    want = [be.to_numpy(y) for y in cuda.Program(plan, be, subject.precision, prepared).run(x)]
    program = cuda.Program(plan, be, subject.precision, prepared, **options)
    got = [be.to_numpy(y) for y in program.run(x)]
    apart = max(float(np.abs(g - w).max() / np.abs(w).max()) for g, w in zip(got, want, strict=True))
    failed = (
        [] if apart <= 2 * TOLERANCE[subject.precision] else [f"{apart:.2g} of the largest number from the usual form"]
    )
    row = {**subject.fields(), "engine": name, "apart": apart, "failed": failed}
    return {**row, **image_rate(lambda: program.run(x), wait, subject.batch, context), **replayed(program, context)}


def calm(network: Network) -> None:
    """Lower what random weights take for objects, so that nearly nothing is found, as in an ordinary image."""
    for index in network.heads:
        layer, own = network.nodes[index].layer, network.weights[index - 1]
        classes = getattr(layer, "classes", 0)
        if "bias" in own and classes and own["bias"].size % (5 + classes) == 0:
            own["bias"].reshape(-1, 5 + classes)[:, 4] = -1e4
    network.program_cache.clear()


def detect(context: Context, subject: Subject) -> Row:
    """Time `detect`: from an array, from a JPEG file, and as a stream of such files."""
    opencv()  # reads images
    network = opened(subject.network, context, subject.size)
    calm(network)
    path = resources.folder() / "digits.jpg"
    precision: Any = subject.precision
    detector, array = Detector(network, precision=precision), image.read(path)
    found = [detector.detect(array) for _ in range(2)][-1]
    rounds = 1 if context.small else 30

    def median(call: Callable[[], object]) -> float:
        taken = []
        for _ in range(rounds):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
        return round(1e3 * statistics.median(taken), 4)

    x, program = detector.upload([array]), list(network.program_cache.programs.values())[-1]
    row: Row = {**subject.fields(), "engine": "ours", "boxes": len(found), "image": list(array.shape)}
    row["read_ms"] = median(lambda: image.read(path))
    row["detect_ms"] = median(lambda: detector.detect(array))
    row["detect_jpeg_ms"] = median(lambda: detector.detect(path))
    if isinstance(program, cuda.Program):
        row["graph_ms"] = replayed(program, context)["graph_ms"]
        row["beside_graph_us"] = round(1e3 * (row["detect_ms"] - row["graph_ms"]), 1)
    row["rows_ms"] = median(lambda: detector.infer(x, 0.25))
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
    more: bool = False,
    skip: Callable[[Subject], bool] = lambda subject: False,
) -> Callable[[Context], Iterable[Case]]:
    """Return the function that lists a network's cases: ours first, so that PyTorch can cost us nothing.

    more: other forms of the plan, too, in place of `detect`.
    """
    from .torch_speed import measure  # it needs this module

    def listed(context: Context) -> Iterable[Case]:
        every = [s for s in subjects(context, network, sizes, precisions, batches) if not skip(s)]
        yield Case("clocks-before", clocks, SMI_SECONDS)
        for s in every:
            yield Case(f"{s}/ours", partial(ours, context, s))
        if every and not more:
            first = every[0]
            yield Case(f"{first.size}/{first.precision}/detect", partial(detect, context, first))
        for kind in torch:
            for s in every:
                yield Case(f"{s}/{kind}", partial(measure, context, s, kind))
        for s in every if more else []:
            for name in ("eager", "one-by-one", *(["without-winograd"] if s.precision == "fp32" else [])):
                yield Case(f"{s}/{name}", partial(variant, context, s, name))
        yield Case("clocks-after", clocks, SMI_SECONDS)

    return listed
