"""Check a machine with a GPU in under 8 minutes: `make gpu-check`.

Every kernel against its plain float64 form, five networks and every way to convolve against NumPy, compute-sanitizer where it
is installed, and the ceilings that speed is measured against. The result goes to bench/results/, a part as soon as it is known.
Exit code 0: all passed, 1: something failed, 2: there is no GPU that CuPy can use.

    python -m bench.gpu_check                     # everything, in a checkout
    python -m bench.gpu_check STAGE [BACKEND]     # one stage, its result on stdout
"""

from __future__ import annotations

import datetime
import importlib.metadata
import inspect
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gpudarknet import Network, cfg, cuda, load_network, shelf
from gpudarknet import backend as backends
from gpudarknet.backend import Backend
from gpudarknet.ops import activation

from .stages import Result, Skipped, Stage, run_all, run_here

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))  # the cases of the tests are the cases of this check

NETWORKS = {  # name -> (width, height, how far float32 may go, in standard deviations of a layer's output)
    "yolov2": (96, 64, 2e-4),  # reorg, region
    "yolov4-tiny": (96, 64, 2e-4),  # route groups, yolo
    "yolov4-csp": (128, 96, 1e-3),  # mish, scale_x_y, 175 layers
    "resnet50-sort": (64, 96, 1e-3),  # sort_shortcut, avgpool, softmax
    "darknet19": (96, 64, 2e-4),  # a classifier
}
PRECISIONS: dict[Any, float] = {"fp32": 2e-5, "tf32": 1e-2, "fp16": 1e-2}  # how far a whole network may be off
PRECISE = ("yolov2", "yolov4-tiny")  # the networks that are run in each of them
WAYS = """[net]
width=40
height=24
channels=3
[convolutional]
filters=32
size=3
pad=1
activation=leaky
batch_normalize=1
[convolutional]
filters=40
size=3
pad=1
activation=leaky
[maxpool]
size=2
stride=2
[convolutional]
filters=32
size=1
activation=mish
[route]
layers=-2
[convolutional]
filters=32
size=1
activation=leaky
[convolutional]
filters=32
size=3
pad=1
activation=swish
[shortcut]
from=-2
activation=relu
[convolutional]
filters=24
groups=4
size=3
pad=1
activation=elu
[convolutional]
filters=24
groups=24
size=3
pad=1
[convolutional]
filters=40
size=3
stride=2
pad=1
activation=leaky
[upsample]
stride=2
[route]
layers=-1,3
[convolutional]
filters=21
size=1
activation=linear
[yolo]
mask=0,1,2
anchors=10,12,14,16,18,20
classes=2
num=3
"""  # every kind of convolution, a pool, siblings, a residual
LARGE = {"cupy": 8192, "numpy": 128}  # side of the gemm's matrices
BYTES = {"cupy": 1 << 28, "numpy": 1 << 16}  # of the copies


def versions(name: str) -> Result:
    """Say what this machine is."""
    found: Result = {"python": platform.python_version(), "system": platform.platform()}
    for package in ("gpudarknet", "numpy", "cupy-cuda12x", "cupy-cuda13x", "nvidia-cublas-cu12", "nvidia-cublas"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if name == "cupy":
        import cupy

        device = cupy.cuda.runtime.getDeviceProperties(0)
        found |= {
            "device": device["name"].decode(),
            "architecture": f"sm_{device['major']}{device['minor']}",
            "multiprocessors": device["multiProcessorCount"],
            "memory_bytes": device["totalGlobalMem"],
            "driver_cuda": cupy.cuda.runtime.driverGetVersion(),
            "runtime_cuda": cupy.cuda.runtime.runtimeGetVersion(),
            "cublas": cupy.cuda.cublas.getVersion(cupy.cuda.device.get_cublas_handle()),
        }
    smi = shutil.which("nvidia-smi")
    if smi:
        query = [smi, "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
        found["nvidia_smi"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return found


def kernels(name: str) -> Result:
    """Run every op on the inputs of its tests, float16 storage too, and compare with its plain form in float64."""
    from op_cases import CASES, Case, arrays, each

    be, failed = backends.get(name), []
    worst: dict[str, float] = {}  # op -> largest error, in units of its tolerance

    def check(case: Case, args: Any, rtol: float, atol: float, label: str) -> None:
        here = each(args, lambda a: be.asarray(a.copy()))
        result = case.op(be, *here)
        got = [be.to_numpy(a) for a in arrays(here if result is None else result)]
        for g, want in zip(got, case.want(args), strict=True):
            allowed = 1e-300 if case.exact else atol + rtol * np.abs(want)
            ratio = float((np.abs(g - want) / allowed).max(initial=0))
            worst[label] = max(worst.get(label, 0.0), ratio)
            if g.shape != want.shape or not ratio <= 1:
                failed.append(f"{case} ({label}): {ratio:.3g} times its tolerance")

    for case in CASES:
        check(case, case.args, case.rtol, case.atol, case.op.name)
        if case.half and be.launch is not None:
            names = list(inspect.signature(case.plain).parameters)
            args = tuple(
                each(a, lambda a: a.astype(np.float16)) if n in case.half else a
                for n, a in zip(names, case.args, strict=True)
            )
            check(case, args, 1e-3, 4e-3, f"{case.op.name} float16")
    return {"cases": len(CASES), "worst_in_tolerances": worst, "failed": failed}


def pair(network: str, name: str, width: int, height: int) -> tuple[Network, Network, np.ndarray]:
    """Return a shipped network with seeded weights on a backend, the same on NumPy, and an input for both."""
    import seeded

    path = shelf.shipped_cfg(network)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # resnet50's three unequal shortcuts
        blank = load_network(path, backend="numpy", width=width, height=height)
        weights = seeded.write_weights(blank, Path(folder) / "seeded.weights", 1)
        here, numpy = (load_network(path, weights, backend=b, width=width, height=height) for b in (name, "numpy"))
    return here, numpy, seeded.network_input(blank, 1, batch=2)


def outputs(network: str, name: str, width: int, height: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return every layer's output and `predict`'s of a shipped network, on a backend and on NumPy's reference engine."""
    here, numpy, x = pair(network, name, width, height)
    layers = numpy.trace(x)
    heads = [here.backend.to_numpy(y) for y in here.predict(x)]
    return here.trace(x) + heads, layers + [layers[index] for index in here.heads]


def networks(name: str) -> Result:
    """Run networks on this backend and on NumPy, and compare every layer's output, then `predict`'s."""
    rows: Result = {}
    failed = []
    for network, (width, height, tolerance) in NETWORKS.items():
        pairs = zip(*outputs(network, name, width, height), strict=True)
        distances = [float(np.abs(got - want).max() / (want.std() or 1)) for got, want in pairs]
        worst = float(np.max(distances))  # NaN if any is
        rows[network] = {"outputs": len(distances), "worst": worst, "tolerance": tolerance}
        if not worst <= tolerance:
            failed.append(f"{network}: output {int(np.argmax(distances))} is {worst:.2g} standard deviations off")
    return {"networks": rows, "failed": failed}


def precisions(name: str) -> Result:
    """Compare `predict` in every precision with NumPy's reference engine: norm of the difference over that of the output."""
    rows: Result = {}
    failed = []
    for network in PRECISE:
        here, numpy, x = pair(network, name, *NETWORKS[network][:2])
        wanted = numpy.predict(x, engine="reference")
        for precision, tolerance in PRECISIONS.items():
            for _ in range(2):  # a plan is captured in its first run and replayed in the second
                got = [here.backend.to_numpy(y) for y in here.predict(x, precision=precision)]
            off = max(float(np.linalg.norm(y - w) / np.linalg.norm(w)) for y, w in zip(got, wanted, strict=True))
            eagerly = [getattr(program, "eagerly", "on the CPU") for program in here.engine.programs.values()][-1]
            rows[f"{network} {precision}"] = {"relative": off, "tolerance": tolerance, "eagerly": eagerly}
            if not off <= tolerance:
                failed.append(f"{network} in {precision}: {off:.2g} off, {tolerance} allowed")
            if name == "cupy" and eagerly is not None:
                failed.append(f"{network} in {precision}: not a CUDA graph, {eagerly}")
    return {"precisions": rows, "failed": failed}


def ways(name: str) -> Result:
    """Compare every way to convolve, forced once, with NumPy's reference engine; then all of them by what a race chooses."""
    import seeded

    from gpudarknet.plan import compile, race
    from gpudarknet.plan.cuda import Program
    from gpudarknet.plan.steps import Convolve
    from gpudarknet.plan.ways import Case, possible

    config = cfg.parse(WAYS)
    with tempfile.TemporaryDirectory() as folder:
        blank = load_network(config, backend="numpy")
        weights = seeded.write_weights(blank, Path(folder) / "seeded.weights", 1)
        here, numpy = (load_network(config, weights, backend=b) for b in (name, "numpy"))
    be, rows, failed = here.backend, dict[str, float](), list[str]()
    if be.cublas is None:
        raise Skipped("plans run on CUDA where there is cuBLAS")

    def compare(label: str, program: Program, x: np.ndarray, wanted: list[np.ndarray]) -> None:
        for _ in range(2):  # captured, then replayed
            got = [be.to_numpy(y) for y in program.run(be.asarray(x))]
        off = max(float(np.linalg.norm(y - w) / np.linalg.norm(w)) for y, w in zip(got, wanted, strict=True))
        rows[label] = max(rows.get(label, 0.0), off)
        if not off <= PRECISIONS[program.precision]:
            failed.append(f"{label}: {off:.2g} off, {PRECISIONS[program.precision]} allowed")

    for batch in (1, 3):
        x = seeded.network_input(blank, 1, batch)
        wanted = numpy.predict(x, engine="reference")
        plan = compile(here.nodes, here.weights, here.heads, here.net.input, batch)
        for precision in PRECISIONS:
            prepared, itemsize = dict[Any, Any](), 2 if precision == "fp16" else 4
            for step in (s for s in plan.steps if isinstance(s, Convolve)):
                for way in possible(Case(step, batch, itemsize)):
                    program = Program(plan, be, precision, prepared, {step.key(batch): way})
                    compare(f"{precision} {way}", program, x, wanted)
            choices = {key: choice for key, choice, _ in race.measure(plan, be, precision)}
            for together in (True, False):
                for ahead in (True, False):
                    program = Program(
                        plan, be, precision, prepared, choices,
                        poison=True, graph=ahead, together=together, ahead=ahead,
                    )  # fmt: skip
                    compare(f"{precision} raced", program, x, wanted)
    return {"relative": rows, "failed": failed}


def small(name: str) -> Result:
    """Run a small network once, for compute-sanitizer to watch."""
    got, _ = outputs("yolov4-tiny", name, 64, 96)
    return {"outputs": len(got)}


def sanitizer(tool: str) -> Callable[[str], Result]:
    """Return the stage that runs `small` under a tool of compute-sanitizer."""

    def run(name: str) -> Result:
        program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
        if program is None or name != "cupy":
            raise Skipped("compute-sanitizer is not installed" if program is None else "it watches GPUs only")
        command = [
            program,
            "--tool",
            tool,
            "--error-exitcode",
            "9",
            sys.executable,
            "-m",
            "bench.gpu_check",
            "small",
            name,
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        report = [line for line in done.stdout.splitlines() if line.startswith("=========")]
        return {
            "report": report[-20:],
            "failed": [report[-1] if report else done.stderr[-300:]] * bool(done.returncode),
        }

    return run


def wait(be: Backend) -> None:
    """Wait until the device has done what it was asked."""
    if be.name == "cupy":
        be.xp.cuda.Device().synchronize()


def seconds(be: Backend, work: Callable[[], object], calls: int, rounds: int = 7) -> float:
    """Return the median time of one call, over rounds of `calls` calls with one wait each, after a warm-up."""
    taken = []
    for _ in range(rounds + 1):
        wait(be)
        start = time.perf_counter()
        for _ in range(calls):
            work()
        wait(be)
        taken.append((time.perf_counter() - start) / calls)
    return statistics.median(taken[1:])


def launches(name: str) -> Result:
    """Measure what one op costs before it computes anything: an activation of one number."""
    be = backends.get(name)
    x = be.zeros((1, 1, 1, 1))
    result: Result = {"op_us": 1e6 * seconds(be, lambda: activation.activate(be, x, "relu"), 1000)}
    if be.launch is not None and be.name == "cupy":
        empty = be.xp.RawKernel('extern "C" __global__ void empty() {}', "empty", options=cuda.OPTIONS)
        result["empty_kernel_us"] = 1e6 * seconds(be, lambda: empty((1,), (32,), ()), 1000)
    return result


def copies(name: str) -> Result:
    """Measure memory: inside the device, to it and from it, in GB/s (reading and writing both counted inside)."""
    be = backends.get(name)
    host = np.ones(BYTES[name] // 4, np.float32)
    a, b = be.asarray(host), be.empty(host.shape)

    def inside() -> None:
        b[...] = a

    size = host.nbytes / 1e9
    return {
        "inside_gb_s": 2 * size / seconds(be, inside, 10),
        "to_device_gb_s": size / seconds(be, lambda: be.xp.asarray(host.copy() if be.xp is np else host), 1),
        "from_device_gb_s": size / seconds(be, lambda: be.to_numpy(a).copy() if be.xp is np else be.to_numpy(a), 1),
        "bytes": host.nbytes,
        "note": "host memory is pageable, as users' arrays are",
    }


def gemm(dtype: str) -> Callable[[str], Result]:
    """Return the stage that measures a square matrix product of that storage type through the backend's BLAS."""

    def run(name: str) -> Result:
        be, n = backends.get(name), LARGE[name]
        rng = np.random.default_rng(0)
        a, b = (be.asarray(rng.random((n, n), dtype=np.float32) - 0.5).astype(dtype) for _ in range(2))
        c = be.xp.matmul(a, b)
        rows = slice(0, 4)
        want = be.to_numpy(a[rows]).astype(np.float64) @ be.to_numpy(b).astype(np.float64)
        error = float(np.abs(be.to_numpy(c[rows]) - want).max() / want.std())
        taken = seconds(be, lambda: be.xp.matmul(a, b), 5)
        limit = 1e-2 if dtype == "float16" or os.environ.get("CUPY_TF32") == "1" else 1e-4
        failed = [] if error <= limit else [f"error {error:.2g} standard deviations"]
        return {"n": n, "tflop_s": 2e-12 * n**3 / taken, "error": error, "failed": failed}

    return run


STAGES = (
    Stage("versions", versions, 30),
    Stage("kernels", kernels, 90),
    Stage("networks", networks, 75),
    Stage("precisions", precisions, 35),
    Stage("ways", ways, 40),
    Stage("memcheck", sanitizer("memcheck"), 60),
    Stage("racecheck", sanitizer("racecheck"), 60),
    Stage("launches", launches, 20),
    Stage("copies", copies, 20),
    Stage("gemm-fp32", gemm("float32"), 15, {"CUPY_TF32": "0"}),
    Stage("gemm-tf32", gemm("float32"), 15, {"CUPY_TF32": "1"}),
    Stage("gemm-fp16", gemm("float16"), 15),
)


def git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def head(name: str) -> Result:
    """Return what every result begins with: device, driver, commit and date."""
    found = versions(name)
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "check": "gpu-check",
        "date": now.isoformat(timespec="seconds"),
        "commit": git("rev-parse", "HEAD") or "unknown",
        "changed": bool(git("status", "--porcelain")),
        "device": found.get("device", platform.processor() or platform.machine()),
        "driver": found.get("nvidia_smi", "none").split(",")[0],
    }


def main(words: list[str]) -> int:
    """Run everything, or the stage that is named."""
    if words:
        run = {stage.name: stage for stage in STAGES} | {"small": Stage("small", small, 60)}
        run_here(run[words[0]], words[1] if len(words) > 1 else "cupy")
        return 0
    why = backends.why_no_cupy()
    if why is not None:
        print(f"gpu-check: no GPU to check: {why}", file=sys.stderr)
        return 2
    top = head("cupy")
    device = "-".join(str(top["device"]).lower().replace("nvidia", "").split())
    path = ROOT / "bench" / "results" / f"gpu-check-{device}-{top['date'][:10]}.json"
    print(f"{top['device']}, driver {top['driver']}: {path.relative_to(ROOT)}")
    return 0 if run_all("bench.gpu_check", STAGES, "cupy", top, path) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
