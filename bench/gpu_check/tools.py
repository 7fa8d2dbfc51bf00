"""Run a small network under NVIDIA's tools: compute-sanitizer (memory errors, races) and Nsight Compute (kernel profiles)."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from .case import Case, Context, Row, Skipped
from .child import TAIL
from .environment import find_tool, probe
from .target import KERNELS

ROOT = Path(__file__).resolve().parent.parent.parent
ERROR_EXIT_CODE = 9  # of compute-sanitizer if it reports errors
METRICS = {
    "us": "gpu__time_duration.sum",
    "dram_percent": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm_percent": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "occupancy_percent": "sm__warps_active.avg.pct_of_peak_sustained_active",
}
PROFILED = {  # plan -> the names of the kernels that ncu profiles
    "implicit-gemm": "implicit_gemm_|image_gemm_",
    "library": "^epilogue|^im2col$|^convolve_float32$|gemm|nvjet|cutlass|xmma",  # ours, and cuBLAS's
}
PROFILED_LAUNCHES = "24"  # of each
PROFILED_SIZE = ("416", "416", "16")  # width, height and batch: the small network's would be too small to profile
NOT_PERMITTED = (
    "ERR_NVGPUCTRPERM",
    "not supported",
    "permission",
)  # ncu's messages without access to performance counters


def run_under(context: Context, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a tool on the target program. Raises Skipped without a GPU."""
    if context.backend != "cupy":
        raise Skipped("it needs a GPU")
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def target_command(context: Context, precision: str, *size: str) -> tuple[str, ...]:
    """Return the command that runs the target program."""
    size = size if not context.small else ()
    return sys.executable, "-m", "bench.gpu_check.target", precision, context.backend, str(int(context.small)), *size


def sanitize(context: Context, tool: str, precision: str, names: Sequence[str] = ()) -> Row:
    """Run the target program under compute-sanitizer; names: check only these kernels."""
    filters = [word for name in names for word in ("--kernel-name", f"kne={name}")]
    if tool == "memcheck" and probe(context.backend).get("emulated"):
        command = []  # an emulated device checks every address itself
    else:
        command = [
            find_tool("compute-sanitizer"),
            "--tool",
            tool,
            "--error-exitcode",
            str(ERROR_EXIT_CODE),
            "--print-limit",
            "20",
        ]
        if tool == "memcheck":  # libraries query unsupported features, which are API errors but no bugs
            command += ["--report-api-errors", "no"]
    done = run_under(context, *command, *filters, *target_command(context, precision))
    report = [line for line in done.stdout.splitlines() if line.startswith("=========")]
    row: Row = {"report": report[-20:], "failed": []}
    if done.returncode:
        row["failed"] = [report[-1] if report else f"exit code {done.returncode}"]
        row |= {"stdout": done.stdout[-TAIL:], "stderr": done.stderr[-TAIL:]}
    return row


def memcheck(precision: str, context: Context) -> Iterable[Case]:
    """List memcheck in a precision: out-of-bounds and misaligned accesses."""
    yield Case(precision, partial(sanitize, context, "memcheck", precision))


def racecheck(context: Context) -> Iterable[Case]:
    """List racecheck on our kernels with shared memory; cuBLAS's kernels would take long and report much."""
    yield Case("fp16", partial(sanitize, context, "racecheck", "fp16", KERNELS))


def profile(context: Context) -> Iterable[Case]:
    """List the plans whose kernels Nsight Compute profiles."""
    for name in PROFILED:
        yield Case(name, partial(profiled, context, name))


def profiled(context: Context, plan: str) -> Row:
    """Profile a plan's first launches of these kernels. Raises Skipped without access to performance counters."""
    command = [find_tool("ncu"), "--csv", "--target-processes", "all", "--metrics", ",".join(METRICS.values())]
    command += ["--kernel-name", f"regex:{PROFILED[plan]}", "--launch-count", PROFILED_LAUNCHES]
    done = run_under(context, *command, *target_command(context, "fp16", *PROFILED_SIZE, plan))
    output = done.stdout + done.stderr
    if done.returncode:
        if any(word in output for word in NOT_PERMITTED):
            raise Skipped(f"ncu cannot access performance counters: {output.strip().splitlines()[-1]}")
        return {
            "failed": [f"ncu: exit code {done.returncode}"],
            "stdout": done.stdout[-TAIL:],
            "stderr": done.stderr[-TAIL:],
        }
    launches = parse_ncu(done.stdout)
    return {"launches": launches, "failed": [] if launches else ["ncu recorded no launch"]}


def parse_ncu(text: str) -> list[Row]:
    """Parse ncu's CSV, which has a row per launch and metric."""
    lines = text.splitlines()
    head = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    launches: dict[str, Row] = {}
    names = {metric: name for name, metric in METRICS.items()}
    for row in csv.DictReader(lines[head:]):
        one = launches.setdefault(row["ID"], {"kernel": row["Kernel Name"], "grid": row.get("Grid Size", "")})
        value = float(row["Metric Value"].replace(",", ""))
        if row["Metric Name"] in names:
            one[names[row["Metric Name"]]] = value / 1e3 if row.get("Metric Unit") in ("ns", "nsecond") else value
    return list(launches.values())
