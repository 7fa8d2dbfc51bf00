"""Time plans on a GPU, next to PyTorch on the same networks and weights: `python -m bench.gpu_plan`.

For each network first whether it is right (plan against the reference engine, its variants too, twice the same), then images
per second for sizes, batches and precisions: our plan as a CUDA graph and eagerly, without what is done together and ahead, in
fp32 without Winograd; PyTorch eagerly, in fp16 with channels_last, and that as a CUDA graph. One network is tuned, with the
time of every way to convolve. An input lies on the device; heads' outputs end there. The result goes to bench/results/, a
network as soon as it is done. At most 10 minutes; exit codes as gpu_check's.

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
from gpudarknet.plan import Plan, compile, cuda, race
from gpudarknet.plan.steps import Convolve

from . import seeded, torch_network
from .gpu_check import ROOT, head, versions
from .stages import Result, Skipped, Stage, run_all, run_here

PRECISIONS = ("fp32", "tf32", "fp16")
BATCHES = (1, 8, 64)
SIZES = {"yolov2-tiny": (416,), "yolov3-tiny": (416,), "yolov4-tiny": (416,), "yolov2": (416, 608),
         "yolov3": (416, 608), "yolov4": (416, 608)}  # fmt: skip
# Parts of an output's largest number that a result may be off: float32 in another order; 11 bits of tf32 and fp16.
TOLERANCE = {"fp32": 1e-4, "tf32": 2e-2, "fp16": 2e-2}
MAIN = ("graph", "eager")  # of a plan's variants those that are timed first; the others if time is left
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


def planned(network: Network, batch: int) -> Plan:
    """Compile a network."""
    return compile(network.nodes, network.weights, network.heads, network.net.input, batch)


def variants(plan: Plan, precision: str) -> dict[str, dict[str, Any]]:
    """Return the forms of a plan that are compared: name -> options of its program."""
    found: dict[str, dict[str, Any]] = {
        "graph": {},
        "eager": {"graph": False},
        "one by one": {"together": False, "ahead": False},
    }
    if precision == "fp32":
        keys = [step.key(plan.batch) for step in plan.steps if isinstance(step, Convolve) and step.size > 1]
        found["patches"] = {"choices": dict.fromkeys(keys, "patches")}
    return found


def check(network: Network) -> tuple[Result, list[str]]:
    """Compare the plan with the reference engine in every precision; return how far they are apart, and what is wrong."""
    be, found, failed = network.backend, {}, []
    x, plan = be.asarray(seeded.picture(network, 2)), planned(network, 2)
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
        for name, options in list(variants(plan, precision).items())[1:] if be.cublas is not None else ():
            run = cuda.Program(plan, be, precision, network.engine.prepared, **options)
            other = [be.to_numpy(y) for y in run.run(x)]
            apart = max(float(np.abs(g - w).max() / np.abs(w).max()) for g, w in zip(other, want, strict=True))
            found[f"{precision}, {name}"] = apart
            if not apart <= TOLERANCE[precision]:
                failed.append(f"{precision}, {name}: {apart:.2g} of the largest number off")
    runs = [p for p in network.engine.programs.values() if isinstance(p, cuda.Program)]
    for run in runs:
        if run.eagerly:
            failed.append(f"{run.precision}: not captured: {run.eagerly}")
    found["described"] = runs[0].describe().splitlines()[-1] if runs else "on NumPy"
    return found, failed


def ours(network: Network, chosen: Callable[[str], bool]) -> Iterator[Result]:
    """Time the plan for every batch and precision, in those of its variants that are chosen by name."""
    be = network.backend
    wait = be.xp.cuda.Device().synchronize if be.name == "cupy" else lambda: None
    for batch in BATCHES:
        x = be.asarray(seeded.picture(network, batch))
        if be.cublas is None:
            if chosen("eager"):
                row = {"engine": "plan, eager", "batch": batch, "precision": "fp32"}
                yield {**row, **image_rate(lambda: network.predict(x), wait, batch)}  # noqa: B023
            continue
        plan = planned(network, batch)
        for precision in PRECISIONS:
            for name, options in variants(plan, precision).items():
                if not chosen(name):
                    continue
                row = {"engine": f"plan, {name}", "batch": batch, "precision": precision}
                try:
                    program = cuda.Program(plan, be, precision, network.engine.prepared, **options)
                    yield {**row, **image_rate(lambda: program.run(x), wait, batch)}  # noqa: B023
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


def tuned(name: str, size: int, limit: float) -> Stage:
    """Return the stage that measures every way to convolve, for one network, and times the plan that follows the fastest."""

    def run(backend: str) -> Result:
        until = time.monotonic() + limit * BUDGET
        network = opened(name, backend, size)
        be, failed = network.backend, list[str]()
        if be.cublas is None:
            raise Skipped("the CPU's ways are measured by gpudarknet plan -tune")
        wait = be.xp.cuda.Device().synchronize if be.name == "cupy" else lambda: None
        result: Result = {"network": name, "size": size, "failed": failed, "rows": []}
        for batch, precision in ((1, "fp32"), (1, "fp16"), (8, "fp32"), (8, "fp16")):
            plan, x = planned(network, batch), be.asarray(seeded.picture(network, batch))
            choices: dict[str, str] = {}
            ways: Result = {}
            for key, choices[key], times in race.measure(plan, be, precision):
                ways[key] = {way: round(1e6 * seconds, 2) for way, seconds in times.items()}
                if time.monotonic() > until:
                    result["rows"].append({"why_not": "no time was left for the rest"})
                    return result
            row: Result = {"batch": batch, "precision": precision, "microseconds": ways, "choices": choices}
            outputs = []
            for kind, options in (("rule", {}), ("tuned", choices)):
                program = cuda.Program(plan, be, precision, network.engine.prepared, options)
                outputs.append([be.to_numpy(y) for y in program.run(x)])
                row[kind] = image_rate(lambda: program.run(x), wait, batch)  # noqa: B023
            apart = max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(*outputs, strict=True))
            if not apart <= 2 * TOLERANCE[precision]:
                failed.append(f"batch {batch} in {precision}: {apart:.2g} of the largest number between rule and tuned")
            result["rows"].append({**row, "apart": apart})
        return result

    return Stage(f"tuned-{name}-{size}", run, limit)


def stage(name: str, size: int, limit: float) -> Stage:
    """Return the stage of one network at one size."""

    def run(backend: str) -> Result:
        start = time.monotonic()
        network = opened(name, backend, size)
        found, failed = check(network)
        network.engine.programs.clear()
        result: Result = {"network": name, "size": size, "check": found, "failed": failed, "rows": []}
        sources = [ours(network, MAIN.__contains__)]
        try:
            sources.append(theirs(network, importlib.import_module("torch")))
        except ImportError as e:
            result["torch"] = f"does not import: {e}"
        sources.append(ours(network, lambda variant: variant not in MAIN))
        for i, rows in enumerate(sources):
            until = start + limit * BUDGET * (0.5 if i == 0 else 1)
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
    tuned("yolov3", 416, 45),
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
