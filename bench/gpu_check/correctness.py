"""Compare kernels, networks, precisions and convolution algorithms with NumPy."""

from __future__ import annotations

import inspect
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from gpudarknet import Network, cfg
from gpudarknet.backend import cuda
from gpudarknet.backend.threads import get_num_threads
from gpudarknet.plan import cuda as cuda_plan
from gpudarknet.plan.cuda import autotune
from gpudarknet.plan.cuda.algorithms import IMPLICIT_GEMMS, ConvProblem, supported
from gpudarknet.plan.cuda.stream import stream_context
from gpudarknet.plan.steps import Convolve

from .case import Case, Context, Row, Skipped
from .child import TAIL
from .networks import CONVOLUTIONS, compile_plan, config, pair, relative_error

ROOT = Path(__file__).resolve().parent.parent.parent

NETWORKS = {  # name -> (width, height, float32 tolerance in standard deviations of a layer's output)
    "yolov2": (96, 64, 2e-4),  # reorg, region
    "yolov4-tiny": (96, 64, 2e-4),  # route groups, yolo
    "yolov4-csp": (128, 96, 1e-3),  # mish, scale_x_y, 175 layers
    "resnet50-sort": (64, 96, 1e-3),  # sort_shortcut, avgpool, softmax
    "darknet19": (96, 64, 2e-4),  # a classifier
}
SMALL_NETWORKS = ("yolov4-tiny",)
PRECISIONS = {"fp32": 2e-5, "tf32": 1e-2, "fp16": 1e-2}  # tolerance of a whole network's relative error
SMALL_IMPLICIT_GEMMS = {"implicit_gemm_64x64", "implicit_gemm_128x32_splitk3"}
MAX_PROCESSES = 12  # that compile in parallel
PRECISION_NETWORKS = ("yolov2", "yolov4-tiny")  # networks that run in each precision


# --- kernels -----------------------------------------------------------------------------------------------------------


def compilation(context: Context) -> Iterable[Case]:
    """List what is compiled first, so that other stages' limits exclude compilation: our kernels and CuPy's."""
    yield Case("kernels", lambda: compile_all(context, [f"{file}:{T}" for file, T in storage_types()], "compile_files"))
    yield Case(
        "cupy", lambda: compile_all(context, list(dict.fromkeys(case.op.name for case in op_cases().CASES)), "warm_ops")
    )


def storage_types() -> list[tuple[str, str]]:
    """Return every (file, T) to compile; a file whose kernels have no array of T only with float."""
    pairs = []
    for file in cuda.files():
        both = any(p.type == "T" for own in cuda.parameters(file).values() for p in own)
        pairs += [(file, T) for T in (("float", "half_t") if both else ("float",))]
    return sorted(pairs, key=lambda pair: -len(cuda.source(*pair)))  # longest first


def compile_all(context: Context, names: list[str], function: str) -> Row:
    """Compile in parallel processes into CuPy's cache; return the seconds per name."""
    if context.backend != "cupy":
        raise Skipped(f"backend {context.backend} compiles no kernels")
    count = min(get_num_threads(), MAX_PROCESSES, len(names))
    code = f"import sys; from bench.gpu_check import correctness; correctness.{function}(sys.argv[1:])"
    running = [
        subprocess.Popen([sys.executable, "-c", code, *names[i::count]], cwd=ROOT, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for i in range(count)
    ]  # fmt: skip
    result: Row = {"processes": count, "seconds_of": {}, "failed": []}
    for process in running:
        out, err = process.communicate()
        result["seconds_of"] |= {name: float(elapsed) for name, elapsed in (line.split() for line in out.splitlines())}
        if process.returncode:
            result["failed"].append((err.strip().splitlines() or ["a process failed without a message"])[-1])
            result["stderr"] = err[-TAIL:]
    return result


def compile_files(files: list[str]) -> None:
    """Compile kernel files, each given as FILE:TYPE; print the seconds of each."""
    launcher = cuda.launcher()
    for name in files:
        start, (file, T) = time.perf_counter(), name.split(":")
        launcher.compile([file], T)
        print(name, round(time.perf_counter() - start, 2), flush=True)


def warm_ops(names: list[str]) -> None:
    """Run ops once in each type, so that CuPy compiles its kernels; a later stage checks the results."""
    for name in names:
        start = time.perf_counter()
        for dtype in ("float32", "float16"):
            with suppress(Exception):
                check_op(Context("cupy", small=True), name, dtype)
        print(name, round(time.perf_counter() - start, 2), flush=True)


def op_cases() -> Any:
    """Import the tests' op cases, which this check uses."""
    if str(ROOT / "tests") not in sys.path:
        sys.path.append(str(ROOT / "tests"))
    import op_cases

    return op_cases


def kernels(context: Context) -> Iterable[Case]:
    """List the ops, each with float32 and, if it has kernels for it, float16 arrays."""
    tests = op_cases()
    names = dict.fromkeys(case.op.name for case in tests.CASES)
    half = {case.op.name for case in tests.CASES if case.half}
    for name in names:
        for dtype in ("float32", "float16") if name in half else ("float32",):
            yield Case(f"{name}/{dtype}", partial(check_op, context, name, dtype))


def check_op(context: Context, name: str, dtype: str) -> Row:
    """Run an op on its tests' inputs, and compare with the plain loops in float64."""
    tests, be = op_cases(), context.be
    if dtype == "float16" and be.launch is None:
        raise Skipped(f"backend {context.backend} has no kernels")
    worst, failed, count = 0.0, [], 0  # worst: largest error in units of its tolerance
    for case in tests.CASES:
        if case.op.name != name or (context.small and case.shape != tests.SHAPES[1]):
            continue
        if dtype == "float16" and not case.half:
            continue
        args, rtol, atol = case.args, case.rtol, case.atol
        if dtype == "float16":
            names, rtol, atol = list(inspect.signature(case.plain).parameters), 1e-3, 4e-3
            args = tuple(
                tests.each(a, lambda a: a.astype(np.float16)) if n in case.half else a
                for n, a in zip(names, args, strict=True)
            )
        here = tests.each(args, lambda a: be.asarray(a.copy()))
        result = case.op(be, *here)
        count += 1
        got = [be.to_numpy(a) for a in tests.arrays(here if result is None else result)]
        for g, want in zip(got, case.want(args), strict=True):
            allowed = 1e-300 if case.exact else atol + rtol * np.abs(want)
            ratio = float((np.abs(g - want) / allowed).max(initial=0)) if g.shape == want.shape else np.inf
            worst = max(worst, ratio)
            if not ratio <= 1:
                failed.append(f"{case}: {ratio:.3g} times its tolerance")
    return {"calls": count, "max_error_in_tolerances": worst, "failed": failed}


# --- networks ----------------------------------------------------------------------------------------------------------


def networks(context: Context) -> Iterable[Case]:
    """List networks whose layers are all compared."""
    for name in SMALL_NETWORKS if context.small else NETWORKS:
        yield Case(name, partial(check_network, context, name))


def outputs(name: str, context: Context) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return every layer's output and `predict`'s, on the backend and on NumPy's reference engine."""
    here, numpy, x = pair(config(name, context.small), context, *NETWORKS[name][:2])
    layers = numpy.trace(x)
    heads = [here.backend.to_numpy(y) for y in here.predict(x)]
    return here.trace(x) + heads, layers + [layers[index] for index in here.heads]


def check_network(context: Context, name: str) -> Row:
    """Run a network on this backend and on NumPy; compare every layer's output, then `predict`'s."""
    tolerance = NETWORKS[name][2]
    pairs = zip(*outputs(name, context), strict=True)
    distances = [float(np.abs(got - want).max() / (want.std() or 1)) for got, want in pairs]
    worst = float(np.max(distances))  # NaN if any is
    failed = (
        [] if worst <= tolerance else [f"output {int(np.argmax(distances))} differs by {worst:.2g} standard deviations"]
    )
    return {"outputs": len(distances), "max_error": worst, "tolerance": tolerance, "failed": failed}


def precisions(context: Context) -> Iterable[Case]:
    """List networks in each precision."""
    for name in SMALL_NETWORKS if context.small else PRECISION_NETWORKS:
        for precision in PRECISIONS:
            yield Case(f"{name}/{precision}", partial(check_precision, context, name, precision))


@lru_cache(maxsize=1)
def expected(name: str, context: Context) -> tuple[Network, np.ndarray, list[np.ndarray]]:
    """Return a network on the backend, an input, and the outputs of NumPy's reference engine."""
    here, numpy, x = pair(config(name, context.small), context, *NETWORKS[name][:2])
    return here, x, numpy.predict(x, engine="reference")


def check_precision(context: Context, name: str, precision: Any) -> Row:
    """Compare `predict` in a precision, captured and replayed, with NumPy's reference engine."""
    here, x, want = expected(name, context)
    first, again = (
        [here.backend.to_numpy(y).copy() for y in here.predict(x, precision=precision)] for _ in range(2)
    )  # the first run captures the plan, the second replays it
    error = max(relative_error(y, w) for y, w in zip(again, want, strict=True))
    program = list(here.program_cache.programs.values())[-1]
    eager_reason = getattr(program, "eager_reason", "on the CPU")
    failed = [] if error <= PRECISIONS[precision] else [f"{error:.2g} relative error, {PRECISIONS[precision]} allowed"]
    if context.backend == "cupy" and eager_reason is not None:
        failed.append(f"not a CUDA graph: {eager_reason}")
    if not all(np.array_equal(a, b) for a, b in zip(first, again, strict=True)):
        failed.append("two runs differ")
    return {"relative_error": error, "tolerance": PRECISIONS[precision], "eager_reason": eager_reason, "failed": failed}


# --- convolution algorithms --------------------------------------------------------------------------------------------


def algorithms(context: Context) -> Iterable[Case]:
    """List every convolution algorithm in every precision; then the autotuned plan with every option."""
    for precision in PRECISIONS:
        problems = [ConvProblem(step, batch, precision) for batch in (1, 3) for step in convolutions(batch)]
        names = {name for problem in problems for name in supported(problem)}
        if context.small:
            names -= set(IMPLICIT_GEMMS) - SMALL_IMPLICIT_GEMMS
        for name in sorted(names):
            yield Case(f"{precision}/{name}", partial(check_algorithm, context, precision, name))
        yield Case(f"{precision}/autotuned", partial(check_autotuned, context, precision))


@lru_cache(maxsize=2)
def convolutions(batch: int) -> list[Convolve]:
    """Return the convolutions of CONVOLUTIONS, which has every kind."""
    here, _, _ = pair(cfg.parse(CONVOLUTIONS), Context("numpy"), batch=1)
    return [s for s in compile_plan(here, batch).steps if isinstance(s, Convolve)]


@lru_cache(maxsize=1)
def convolution_network(context: Context) -> tuple[Network, dict[int, Any], dict[Any, Any]]:
    """Return that network on the backend, an input with its outputs for each batch size, and the arrays that programs share."""
    if context.be.cublas is None:
        raise Skipped("plans on CUDA need cuBLAS")
    size = (16, 8) if context.small else (40, 24)
    here, numpy, x = pair(cfg.parse(CONVOLUTIONS), context, *size, batch=3)
    batches = (2,) if context.small else (1, 3)
    runs = {n: (compile_plan(here, n), x[:n], numpy.predict(x[:n], engine="reference")) for n in batches}
    return here, runs, {}


def check_algorithm(context: Context, precision: str, name: str) -> Row:
    """Run all convolutions that an algorithm can solve with it, and compare the network with NumPy's reference engine.

    If it differs, run them one at a time, to name those that are wrong.
    """
    here, runs, packed = convolution_network(context)
    device = stream_context(here.backend).properties
    worst, failed, count = 0.0, [], 0

    def error(batch: int, keys: Iterable[str]) -> float:
        plan, x, want = runs[batch]
        return error_of(cuda_plan.Program(plan, here.backend, precision, packed, dict.fromkeys(keys, name)), x, want)

    for batch, (plan, _, _) in runs.items():
        problems = [ConvProblem(s, batch, precision, device) for s in plan.steps if isinstance(s, Convolve)]
        keys = [problem.step.key(batch) for problem in problems if name in supported(problem)]
        if not keys:
            continue
        together, count = error(batch, keys), count + len(keys)
        worst = max(worst, together)
        if not together <= PRECISIONS[precision]:
            failed.append(f"batch {batch}: {together:.2g} relative error, {PRECISIONS[precision]} allowed")
            alone = {key: error(batch, [key]) for key in keys}
            failed += [
                f"{key} alone: {value:.2g}" for key, value in alone.items() if not value <= PRECISIONS[precision]
            ]
    if not count:
        raise Skipped(f"this device has no convolution with it in {precision}")
    return {"relative_error": worst, "convolutions": count, "failed": failed}


def check_autotuned(context: Context, precision: str) -> Row:
    """Compare the network with autotuned algorithms, with every combination of options, in poisoned memory."""
    here, runs, packed = convolution_network(context)
    worst, failed = 0.0, []
    for plan, x, want in runs.values():
        choices = dict[str, str]()
        for problem in autotune.problems(plan, here.backend, precision):
            times = {name: timed_once(program) for name, program in autotune.programs(problem, here.backend)}
            choices[problem.step.key(plan.batch)] = min(times, key=times.__getitem__)
        for fuse_gemms in (True, False):
            for fuse_im2col in (True, False):
                program = cuda_plan.Program(
                    plan, here.backend, precision, packed, choices,
                    poison=True, graph=fuse_im2col, fuse_gemms=fuse_gemms, fuse_im2col=fuse_im2col,
                )  # fmt: skip
                error = error_of(program, x, want)
                worst = max(worst, error)
                if not error <= PRECISIONS[precision]:
                    options = f"fuse_gemms={fuse_gemms}, fuse_im2col={fuse_im2col}"
                    failed.append(f"batch {plan.batch}, {options}: relative error {error:.2g}")
    return {"relative_error": worst, "failed": failed}


def timed_once(program: cuda_plan.Program) -> float:
    """Return the seconds of a replay, roughly."""
    return program.stream_context.time(program.replay, min_seconds=0, rounds=1, max_calls=1)


def error_of(program: cuda_plan.Program, x: np.ndarray, want: list[np.ndarray]) -> float:
    """Return a program's relative error in its second run, which replays what the first captured."""
    for _ in range(2):
        got = [program.be.to_numpy(y) for y in program.run(program.be.asarray(x))]
    return max(relative_error(y, w) for y, w in zip(got, want, strict=True))
