"""Let NVIDIA's tools watch a small network: compute-sanitizer (memory, races) and Nsight Compute (how well kernels do)."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from .case import Case, Context, Row, Skipped
from .child import TAIL
from .environment import probe, program
from .watched import KERNELS

ROOT = Path(__file__).resolve().parent.parent.parent
FOUND = 9  # the exit code by which compute-sanitizer says that it has found something
METRICS = {
    "us": "gpu__time_duration.sum",
    "dram_percent": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm_percent": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "occupancy_percent": "sm__warps_active.avg.pct_of_peak_sustained_active",
}
PROFILED = {  # what ncu is to look at -> the names of those kernels
    **{name: name for name in ("finish", "finish_patches", "im2col", "convolve_floats")},
    "gemm": "regex:gemm|nvjet|cutlass|xmma",  # cuBLAS's
}
PROFILED_SIZE = ("416", "416", "16")  # width, height and images: those of the small network would say nothing of speed
REFUSED = ("ERR_NVGPUCTRPERM", "not supported", "permission")  # what ncu says where it may not count


def watch(context: Context, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a tool on the small network. Raises Skipped where there is no GPU that it could watch."""
    if context.backend != "cupy":
        raise Skipped("it watches GPUs only")
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def watched(context: Context, precision: str, *size: str) -> tuple[str, ...]:
    """Return the command that runs the small network."""
    size = size if not context.small else ()
    return sys.executable, "-m", "bench.gpu_check.watched", precision, context.backend, str(int(context.small)), *size


def sanitize(context: Context, tool: str, precision: str, names: Sequence[str] = ()) -> Row:
    """Run the small network under compute-sanitizer; with names, only these kernels are watched."""
    chosen = [word for name in names for word in ("--kernel-name", f"kne={name}")]
    if tool == "memcheck" and probe(context.backend).get("emulated"):
        command = []  # an emulated device looks at every address itself
    else:
        command = [program("compute-sanitizer"), "--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "20"]
        if tool == "memcheck":  # libraries ask CUDA what it does not have, and are told so: those are no faults
            command += ["--report-api-errors", "no"]
    done = watch(context, *command, *chosen, *watched(context, precision))
    report = [line for line in done.stdout.splitlines() if line.startswith("=========")]
    row: Row = {"report": report[-20:], "failed": []}
    if done.returncode:
        row["failed"] = [report[-1] if report else f"exit code {done.returncode}"]
        row |= {"stdout": done.stdout[-TAIL:], "stderr": done.stderr[-TAIL:]}
    return row


def memcheck(precision: str, context: Context) -> Iterable[Case]:
    """List memcheck in a precision: out of bounds, misaligned."""
    yield Case(precision, partial(sanitize, context, "memcheck", precision))


def racecheck(context: Context) -> Iterable[Case]:
    """List racecheck on our kernels that use shared memory; cuBLAS's own would take long and say much."""
    yield Case("fp16", partial(sanitize, context, "racecheck", "fp16", KERNELS))


def profile(context: Context) -> Iterable[Case]:
    """List kernels that Nsight Compute looks at."""
    for name in PROFILED:
        yield Case(name, partial(profiled, context, name))


def profiled(context: Context, kernel: str) -> Row:
    """Return what Nsight Compute says of the first launches of a kernel. Raises Skipped where it may not count."""
    command = [program("ncu"), "--csv", "--target-processes", "all", "--metrics", ",".join(METRICS.values())]
    command += ["--kernel-name", PROFILED[kernel], "--launch-count", "3"]
    done = watch(context, *command, *watched(context, "fp16", *PROFILED_SIZE))
    said = done.stdout + done.stderr
    if done.returncode:
        if any(word in said for word in REFUSED):
            raise Skipped(f"ncu may not count here: {said.strip().splitlines()[-1]}")
        return {
            "failed": [f"ncu: exit code {done.returncode}"],
            "stdout": done.stdout[-TAIL:],
            "stderr": done.stderr[-TAIL:],
        }
    found = measured(done.stdout)
    return {"launches": found, "failed": [] if found else ["ncu saw no launch of it"]}


def measured(text: str) -> list[Row]:
    """Read ncu's table: a row for each launch and metric."""
    lines = text.splitlines()
    head = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    found: dict[str, Row] = {}
    names = {metric: name for name, metric in METRICS.items()}
    for row in csv.DictReader(lines[head:]):
        one = found.setdefault(row["ID"], {"grid": row.get("Grid Size", "")})
        value = float(row["Metric Value"].replace(",", ""))
        if row["Metric Name"] in names:
            one[names[row["Metric Name"]]] = value / 1e3 if row.get("Metric Unit") in ("ns", "nsecond") else value
    return list(found.values())
