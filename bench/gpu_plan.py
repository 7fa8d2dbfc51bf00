"""Time plans on a GPU, next to PyTorch on the same networks and weights: `python -m bench.gpu_plan`.

For each network first whether it is right (plan against the reference engine, graph against eager, twice the same), then
images per second for sizes, batches and precisions: our plan as a CUDA graph and eagerly; PyTorch eagerly, in fp16 with
channels_last, and that as a CUDA graph. An input lies on the device; heads' outputs end there. The result goes to
bench/results/, a network as soon as it is done. About 9 minutes on an H100; exit codes as gpu_check's.

    python -m bench.gpu_plan                      # every network
    python -m bench.gpu_plan STAGE [BACKEND]      # one network, its result on stdout; BACKEND numpy tries it without a GPU
"""

from __future__ import annotations

import gc
import importlib
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpudarknet import backend as backends
from gpudarknet import load_network, shelf
from gpudarknet.errors import BackendError
from gpudarknet.network import Network
from gpudarknet.plan import compile, cuda

from . import seeded, torch_network
from .gpu_check import ROOT, head, versions
from .stages import Result, Stage, run_all, run_here

PRECISIONS = ("fp32", "tf32", "fp16")
BATCHES = (1, 8, 64)
SIZES = {"yolov2-tiny": (416,), "yolov3-tiny": (416,), "yolov4-tiny": (416,), "yolov2": (416, 608),
         "yolov3": (416, 608), "yolov4": (416, 608)}  # fmt: skip
# Parts of an output's largest number that a result may be off: float32 in another order; 11 bits of tf32 and fp16.
TOLERANCE = {"fp32": 1e-4, "tf32": 2e-2, "fp16": 2e-2}
TIMED = 0.25  # seconds for each figure, and at least ROUNDS rounds
ROUNDS = 5
BUDGET = 0.8  # part of a stage's limit after which no new figure is begun


def opened(name: str, backend: str, size: int) -> Network:
    """Return a shipped network with seeded weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = load_network(shelf.shipped_cfg(name), backend=backend, width=size, height=size)
    seeded.fill(network)
    return network


def image_rate(call: Callable[[], object], wait: Callable[[], object], batch: int) -> Result:
    """Return images per second, calls queued one behind the other, and the milliseconds of a single call with its wait."""
    for _ in range(2):
        call()
    wait()
    start = time.perf_counter()
    call()
    wait()
    once = max(time.perf_counter() - start, 1e-6)
    calls = max(1, min(100, int(TIMED / ROUNDS / once)))
    queued, single = [], []
    for _ in range(ROUNDS):
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


def check(network: Network) -> tuple[Result, list[str]]:
    """Compare the plan with the reference engine in every precision; return how far they are apart, and what is wrong."""
    be, found, failed = network.backend, {}, []
    x = be.asarray(seeded.picture(network, 2))
    want = [be.to_numpy(y) for y in network.predict(x, engine="reference")]
    for precision in PRECISIONS:
        got = [be.to_numpy(y).copy() for y in network.predict(x, precision=precision)]
        again = [be.to_numpy(y) for y in network.predict(x, precision=precision)]
        apart = max(float(np.abs(g - w).max() / np.abs(w).max()) for g, w in zip(got, want, strict=True))
        found[precision] = apart
        if not apart <= TOLERANCE[precision]:
            failed.append(f"{precision}: {apart:.2g} of the largest number off")
        if not all(np.array_equal(a, b) for a, b in zip(got, again, strict=True)):
            failed.append(f"{precision}: two runs differ")
    runs = [p for p in network.engine.programs.values() if isinstance(p, cuda.Program)]
    for run in runs:
        if run.eagerly:
            failed.append(f"{run.precision}: not captured: {run.eagerly}")
    found["described"] = runs[0].describe().splitlines()[-1] if runs else "on NumPy"
    return found, failed


def ours(network: Network) -> Iterator[Result]:
    """Time the plan for every batch and precision, as a graph and eagerly."""
    be = network.backend
    wait = be.xp.cuda.Device().synchronize if be.name == "cupy" else lambda: None
    for batch in BATCHES:
        x = be.asarray(seeded.picture(network, batch))
        for precision in PRECISIONS if be.cublas is not None else ("fp32",):
            for graph in (True, False) if be.cublas is not None else (False,):
                row = {"engine": "plan, graph" if graph else "plan, eager", "batch": batch, "precision": precision}
                try:
                    if be.cublas is None:
                        run = lambda: network.predict(x)  # noqa: B023, E731
                    else:
                        plan = compile(network.nodes, network.weights, network.heads, network.net.input, batch)
                        program = cuda.Program(plan, be, precision, network.engine.prepared, graph=graph)
                        run = lambda: program.run(x)  # noqa: B023, E731
                    yield {**row, **image_rate(run, wait, batch)}
                except BackendError as e:
                    yield {**row, "why_not": str(e)}
                gc.collect()


def theirs(network: Network, torch: Any) -> Iterator[Result]:
    """Time PyTorch for every batch: eagerly in each precision, in fp16 with channels_last, and that as a CUDA graph."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    host = load_network(network.config, backend="numpy")
    host.weights = [{k: network.backend.to_numpy(a) for k, a in own.items()} for own in network.weights]
    torch.backends.cudnn.benchmark = True
    for precision in PRECISIONS if device == "cuda" else ("fp32",):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        dtype = torch.float16 if precision == "fp16" else torch.float32
        for last in (False, True) if precision == "fp16" else (False,):
            layout = torch.channels_last if last else None
            forward = torch_network.build(host, torch, device, dtype, layout)
            for batch in BATCHES:
                x = torch_network.tensor(torch, seeded.picture(host, batch)).to(device, dtype)
                x = x.contiguous(memory_format=torch.channels_last) if last else x
                for graph in (False, True) if last else (False,):
                    kind = "torch" + (", channels_last" if last else "") + (", graph" if graph else ", eager")
                    row = {"engine": kind, "batch": batch, "precision": precision}
                    try:
                        with torch.inference_mode():
                            call = captured(torch, forward, x) if graph else lambda: forward(x)  # noqa: B023
                            yield {**row, **image_rate(call, wait, batch)}
                    except RuntimeError as e:  # torch.OutOfMemoryError is one
                        yield {**row, "why_not": str(e).splitlines()[0]}
                    gc.collect()
                    if device == "cuda":
                        torch.cuda.empty_cache()


def captured(torch: Any, forward: Callable[[Any], Any], x: Any) -> Callable[[], object]:
    """Record forward(x) as a CUDA graph, as PyTorch's manual says: warm-ups on another stream first."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            forward(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = forward(x)

    def replay() -> object:
        graph.replay()
        return kept

    return replay


def stage(name: str, size: int, limit: float) -> Stage:
    """Return the stage of one network at one size."""

    def run(backend: str) -> Result:
        start = time.monotonic()
        network = opened(name, backend, size)
        found, failed = check(network)
        network.engine.programs.clear()
        result: Result = {"network": name, "size": size, "check": found, "failed": failed, "rows": []}
        sources = [ours(network)]
        try:
            sources.append(theirs(network, importlib.import_module("torch")))
        except ImportError as e:
            result["torch"] = f"does not import: {e}"
        for rows in sources:
            until = start + limit * BUDGET * (0.5 if rows is sources[0] and len(sources) > 1 else 1)
            for row in rows:
                result["rows"].append(row)
                if time.monotonic() > until:
                    result["rows"].append({"why_not": "no time was left for the rest"})
                    break
        return result

    return Stage(f"{name}-{size}", run, limit)


STAGES = (
    Stage("versions", versions, 30),
    *(stage(name, size, 45 if "tiny" in name else 65) for name, sizes in SIZES.items() for size in sizes),
)


def main(words: list[str]) -> int:
    """Run everything, or the stage that is named."""
    if words:
        run_here({stage.name: stage for stage in STAGES}[words[0]], words[1] if len(words) > 1 else "cupy")
        return 0
    why = backends.why_no_cupy()
    if why is not None:
        print(f"gpu-plan: no GPU to time: {why}", file=sys.stderr)
        return 2
    top = {**head("cupy"), "check": "gpu-plan"}
    device = "-".join(str(top["device"]).lower().replace("nvidia", "").split())
    path = ROOT / "bench" / "results" / f"gpu-plan-{device}-{top['date'][:10]}.json"
    print(f"{top['device']}, driver {top['driver']}: {path.relative_to(ROOT)}")
    return 0 if run_all("bench.gpu_plan", STAGES, "cupy", top, path) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
