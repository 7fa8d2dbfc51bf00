"""Check long runs and threads: memory after many frames, concurrent networks, programs freed during capture."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np

from gpudarknet import Detector
from gpudarknet.backend import Backend
from gpudarknet.network import Network
from gpudarknet.plan import cuda

from .. import seeded
from .case import Case, Context, Row, Skipped
from .networks import compile_plan, config, without_weights
from .speed import suppress_detections

FRAMES = 10_000
WARMUP_FRAMES = 200  # frames after which memory must not grow
FRAME_SECONDS = 11.0  # time limit for the frames
SLACK = 64 << 20  # bytes that other processes may allocate meanwhile
ROUNDS = 20


def memory(be: Backend) -> Row:
    """Return the memory in CuPy's pool and the free memory of the device."""
    gc.collect()
    be.xp.cuda.Device().synchronize()
    pool, (free, _) = be.xp.get_default_memory_pool(), be.xp.cuda.runtime.memGetInfo()
    return {"used_bytes": pool.used_bytes(), "total_bytes": pool.total_bytes(), "free_bytes": free}


def small_network(context: Context, name: str, seed: int = 1) -> Network:
    """Return a small network with almost no detections."""
    network = without_weights(config(name, context.small), context.be, 96, 64)
    seeded.fill(network, seed)
    suppress_detections(network)
    return network


def frames(context: Context) -> Iterable[Case]:
    """List the long-running cases."""
    yield Case("detect", partial(many_frames, context))


def many_frames(context: Context) -> Row:
    """Detect in thousands of images of two alternating sizes; memory must not grow."""
    if context.backend != "cupy":
        raise Skipped(f"backend {context.backend} has no memory pool")
    be, network = context.be, small_network(context, "yolov4-tiny")
    detector, rng = Detector(network, precision="fp16"), np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((96, 128), (64, 96))]
    total, warm = (40, 10) if context.small else (FRAMES, WARMUP_FRAMES)
    for i in range(warm):
        detector.detect(images[i % 2])
    before, start, done = memory(be), time.perf_counter(), 0
    while done < total and time.perf_counter() - start < FRAME_SECONDS * context.time_scale:
        detector.detect(images[done % 2])
        done += 1
    seconds, after = time.perf_counter() - start, memory(be)
    failed = [
        f"{name} grew from {before[name]:,} to {after[name]:,}"
        for name in ("used_bytes", "total_bytes")
        if after[name] > before[name]
    ]
    if after["free_bytes"] < before["free_bytes"] - SLACK:
        failed.append(f"free memory fell from {before['free_bytes']:,} to {after['free_bytes']:,} bytes")
    return {
        "frames": done,
        "frame_us": round(1e6 * seconds / done, 1),
        "before": before,
        "after": after,
        "failed": failed,
    }


def threads(context: Context) -> Iterable[Case]:
    """List the cases with several threads or several networks."""
    yield Case("two-threads-one-network", partial(concurrent_predictions, context, ["yolov4-tiny"] * 2, shared=True))
    yield Case(
        "two-threads-two-networks",
        partial(concurrent_predictions, context, ["yolov4-tiny", "yolov3-tiny"], shared=False),
    )
    yield Case("two-networks-interleaved", partial(interleaved_networks, context))
    yield Case("programs-freed-during-capture", partial(freed_during_capture, context))


def run_in_threads(tasks: list[Callable[[], object]]) -> None:
    """Run tasks in threads. Raises the first error."""
    errors: list[BaseException] = []

    def guarded(task: Callable[[], object]) -> None:
        try:
            task()
        except BaseException as e:
            errors.append(e)

    running = [threading.Thread(target=guarded, args=(task,)) for task in tasks]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if errors:
        raise errors[0]


def to_numpy(network: Network, heads: list[Any]) -> list[np.ndarray]:
    """Copy heads' outputs to the host."""
    return [network.backend.to_numpy(y).copy() for y in heads]


def concurrent_predictions(context: Context, names: list[str], shared: bool) -> Row:
    """Predict in two threads, each on its own stream; results must be bit-identical to those without the other thread."""
    networks = [small_network(context, name) for name in (names[:1] if shared else names)]
    networks = networks * 2 if shared else networks
    inputs = [[seeded.network_input(n, 1, seed) for seed in (i, i + 10)] for i, n in enumerate(networks)]
    expected = [[to_numpy(n, n.predict(x)) for x in xs] for n, xs in zip(networks, inputs, strict=True)]
    wrong, rounds = [0, 0], 3 if context.small else ROUNDS

    def work(i: int) -> None:
        stream = context.be.xp.cuda.Stream(non_blocking=True) if context.backend == "cupy" else None
        for k in range(rounds):
            if k % 5 == 2 and not shared:
                # so that programs are compiled and captured while the other thread runs
                networks[i].program_cache.clear()
            with stream or nullcontext():
                got = to_numpy(networks[i], networks[i].predict(inputs[i][k % 2]))
            wrong[i] += not all(np.array_equal(g, w) for g, w in zip(got, expected[i][k % 2], strict=True))

    run_in_threads([lambda: work(0), lambda: work(1)])
    failed = [f"thread {i}: {count} of {rounds} results differ" for i, count in enumerate(wrong) if count]
    return {"rounds": rounds, "failed": failed + capture_failures(context, networks)}


def capture_failures(context: Context, networks: list[Network]) -> list[str]:
    """Return which programs run eagerly although capture was requested."""
    programs = [p for n in networks for p in n.program_cache.programs.values() if isinstance(p, cuda.Program)]
    return [
        f"not a CUDA graph: {p.eager_reason}"
        for p in programs
        if p.eager_reason is not None and context.backend == "cupy"
    ]


def interleaved_networks(context: Context) -> Row:
    """Interleave two networks, batch sizes and precisions on one thread; results must be bit-identical."""
    networks = [small_network(context, name) for name in ("yolov4-tiny", "yolov3-tiny")]
    first: dict[Any, list[np.ndarray]] = {}
    failed = []
    for _ in range(2 if context.small else 4):
        for precision in ("fp32", "fp16"):
            for batch in (1, 2, 3):
                for i, network in enumerate(networks):
                    x = seeded.network_input(network, batch)
                    got = to_numpy(network, network.predict(x, precision=precision))
                    want = first.setdefault((precision, batch, i), got)
                    if not all(np.array_equal(g, w) for g, w in zip(got, want, strict=True)):
                        failed.append(f"network {i}, batch {batch}, {precision}: the result differs")
    return {"results": len(first), "failed": failed + capture_failures(context, networks)}


def freed_during_capture(context: Context) -> Row:
    """Free programs in one thread, also by garbage collection, while another captures some; all must be captured."""
    network = small_network(context, "yolov4-tiny")
    be = network.backend
    if be.cublas is None:
        raise Skipped("plans on CUDA need cuBLAS")
    plan, packed, rounds = (
        compile_plan(network, 1),
        network.program_cache.packed_weights,
        2 if context.small else ROUNDS,
    )
    x = be.asarray(seeded.network_input(network))
    want = to_numpy(network, cuda.Program(plan, be, "fp32", packed).run(x))
    context.wait()
    garbage: list[Any] = []
    eager, wrong, done = list[str](), [0], threading.Event()

    def make() -> None:
        try:
            for _ in range(rounds):
                program = cuda.Program(plan, be, "fp32", packed)
                got = to_numpy(network, program.run(x))
                wrong[0] += not all(np.array_equal(g, w) for g, w in zip(got, want, strict=True))
                if program.eager_reason is not None and context.backend == "cupy":
                    eager.append(program.eager_reason)
                cycle: list[Any] = [program]
                cycle.append(cycle)  # only the garbage collector frees it
                garbage.append(cycle)
        finally:
            done.set()

    def free() -> None:
        while not done.is_set():
            if garbage:
                garbage.pop()
                gc.collect()
            time.sleep(0.0005)

    run_in_threads([make, free])
    garbage.clear()
    gc.collect()
    failed = [f"{wrong[0]} of {rounds} results differ"] * bool(wrong[0])
    failed += [f"{len(eager)} of {rounds} are not CUDA graphs: {eager[0]}"] if eager else []
    return {"programs": rounds, "failed": failed}
