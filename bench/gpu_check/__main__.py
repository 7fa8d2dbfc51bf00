"""Check and measure a machine with a GPU: `make gpu-check`, which is `python -m bench.gpu_check`.

Exit code 0: all passed, 1: something failed, 2: CuPy finds no usable GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from . import checks
from .accuracy import VARIABLE
from .case import Context, Row, Stage
from .environment import commit
from .runner import ROOT, Runner

MAX_LOG = 200_000  # characters of process output that a run adds to the log at most


@dataclass
class Report:
    """Writes rows to a file and to stdout immediately. fields: those common to all rows."""

    fields: Row
    file: TextIO
    rows: list[Row] = field(default_factory=list)

    def __call__(self, row: Row) -> None:
        """Write a whole row; signals are blocked meanwhile."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self.rows.append(row)
            line = json.dumps({"record": "gpu-check", **self.fields, **row}, allow_nan=False)
            self.file.write(line + "\n")
            self.file.flush()
            os.fsync(self.file.fileno())
            with suppress(BrokenPipeError):  # stdout is closed; the file has the row
                print(line, flush=True)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def summary(self, interrupted: str) -> Row:
        """Return the last row: a summary of what failed, was skipped or not run."""
        cases = [row for row in self.rows if "outcome" in row]
        failed = [f"{row['case']} ({row['failed'][0]})" for row in cases if row.get("failed")]
        skipped = Counter(row["skipped"] for row in cases if row["outcome"] == "skipped")
        left = Counter(row["case"].split("/")[0] for row in cases if row["outcome"] == "not run")
        passed = sum(row["outcome"] == "passed" for row in cases)
        summary = [f"{len(failed)} of {len(cases)} cases failed: {', '.join(failed)}" if failed else
                 f"{'all' if passed == len(cases) else passed} of {len(cases)} cases passed"]  # fmt: skip
        for title, counts in (("skipped", skipped), ("not run (out of time)", left)):
            if counts:
                reasons = ", ".join(name + (f" ({count})" if count > 1 else "") for name, count in counts.items())
                summary.append(f"{counts.total()} {title}: {reasons}")
        summary += [f"interrupted {interrupted}"] if interrupted else []
        passed_all = not failed and not interrupted
        return {"case": "end", "passed": passed_all, "interrupted": bool(interrupted), "summary": "; ".join(summary)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the requested parts."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check", description=__doc__.split("\n")[0])
    parser.add_argument("--part", choices=sorted(checks.PARTS), help="A: correctness and the main networks' speed (4 "
                        "minutes); B: the rest (5 minutes); default: A, then B")  # fmt: skip
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="folder for the results")
    parser.add_argument("--only", default="", metavar="CASE", help="run one case, or all whose names begin with this")
    parser.add_argument(
        "--small", action="store_true", help="small networks, few repetitions; implied on an emulated device"
    )
    parser.add_argument("--list", action="store_true", help="list the names of all cases")
    parser.add_argument(
        "--backend", choices=("cupy", "numpy"), default="cupy", help="numpy: try the check without a GPU"
    )
    args = parser.parse_args(argv)
    selected = {name: checks.PARTS[name] for name in ([args.part] if args.part else sorted(checks.PARTS))}
    context = Context(args.backend, args.small)
    if args.list:
        print_list(selected, context, args.only)
        return 0
    device = probe_device(args.backend, checks.PROBE * context.time_scale)
    if device["why"] is not None:
        print(f"gpu-check: no GPU to check: {device['why']}", file=sys.stderr)
        return 2
    context = Context(args.backend, args.small or device["emulated"])
    selected = {
        name: kept
        for name, stages in selected.items()
        if (kept := tuple(stage for stage in stages if stage.selected(context, args.only)))
    }
    if not selected:
        parser.error(f"--only {args.only}: no case has this name; see --list")
    if os.environ.get(VARIABLE):  # child processes run in another folder
        os.environ[VARIABLE] = str(Path(os.environ[VARIABLE]).resolve())
    args.out.mkdir(parents=True, exist_ok=True)
    passed = True
    for part, stages in selected.items():
        end = run(part, stages, context, device, args.out, args.only)
        passed = passed and end["passed"]
        if end["interrupted"]:
            break
    return 0 if passed else 1


def print_list(selected: dict[str, tuple[Stage, ...]], context: Context, only: str) -> None:
    """Print the names of all cases."""
    for part, stages in selected.items():
        print(f"part {part}: {checks.PROBE + sum(stage.limit for stage in stages):g} s at most")
        for stage in stages:
            for case in stage.selected(context, only):
                print(f"  {stage.name}/{case.name}")


def probe_device(backend: str, limit: float) -> Row:
    """Run `environment.probe` in a separate process, so that this one never touches the device."""
    code = f"import json; from bench.gpu_check.environment import probe; print(json.dumps(probe({backend!r})))"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=limit, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return {"why": f"CuPy did not respond within {limit:g} s"}
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"why": f"CuPy could not be probed: {last[-1]}"}


def run(
    part: str, stages: Sequence[Stage], context: Context, device: Row, folder: Path, only: str, command: Any = ()
) -> Row:
    """Run stages and append their rows to a file in the folder; return the last row."""
    now = datetime.datetime.now(datetime.timezone.utc)
    base = "-".join([f"{now:%Y-%m-%d}", *re.findall(r"\w+", str(device["device"]).lower()), "gpu-check"])
    fields: Row = {"part": part, **({"emulated": True} if device.get("emulated") else {})}
    name, dirty = commit()
    interrupted = ""
    path = folder / f"{base}-{part.lower()}.jsonl"
    drop_partial_row(path)
    with (
        open(path, "a", encoding="utf-8") as rows,
        open(folder / f"{base}.log", "a", encoding="utf-8") as log_file,
    ):
        report, remaining = Report(fields, rows), MAX_LOG

        def log(text: str) -> None:
            nonlocal remaining
            log_file.write(text[: max(remaining, 0)] + "\n")
            log_file.flush()
            remaining -= len(text)

        report({
            "case": "start", "date": now.isoformat(timespec="seconds"), "commit": name, "dirty": dirty,
            "backend": context.backend, "small": context.small, "only": only,
            **{key: value for key, value in device.items() if key not in ("why", "emulated")},
        })  # fmt: skip
        command = command or (sys.executable, "-X", "faulthandler", "-m", "bench.gpu_check.child")
        runner = Runner(command, context, report, log)
        before = signal.signal(signal.SIGTERM, interrupt)  # sent by `timeout`
        try:
            for stage in stages:
                runner.run(stage, only)
        except KeyboardInterrupt as e:
            interrupted = str(e) or "by SIGINT"
        finally:
            signal.signal(signal.SIGTERM, before)
        end = report.summary(interrupted)
        report(end)
        with suppress(BrokenPipeError):
            print(f"gpu-check: part {part}: {end['summary']}", flush=True)
    return end


def drop_partial_row(path: Path) -> None:
    """Drop a partial last row, left if the machine went away while it was written."""
    if path.exists():
        with open(path, "rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def interrupt(number: int, frame: object) -> None:
    """Turn a signal into an exception, so that children are ended and the last row is written."""
    raise KeyboardInterrupt(f"by {signal.Signals(number).name}")


if __name__ == "__main__":
    sys.exit(main())
