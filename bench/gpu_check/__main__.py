"""Check a machine with a GPU, and measure it: `make gpu-check`, which is `python -m bench.gpu_check`.

Exit code 0: all passed, 1: something failed, 2: there is no GPU that CuPy can use.
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

from . import parts
from .accuracy import VARIABLE
from .case import Context, Row, Stage
from .environment import commit
from .runner import ROOT, Runner

LOG = 200_000  # characters of what processes print that a run adds to the log at most


@dataclass
class Report:
    """Writes rows, to a file and to stdout, at once. fields: what all of them have."""

    fields: Row
    file: TextIO
    rows: list[Row] = field(default_factory=list)

    def __call__(self, row: Row) -> None:
        """Write a row, whole: who interrupts us has to wait."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self.rows.append(row)
            line = json.dumps({"record": "gpu-check", **self.fields, **row}, allow_nan=False)
            self.file.write(line + "\n")
            self.file.flush()
            os.fsync(self.file.fileno())
            with suppress(BrokenPipeError):  # nobody reads on; the file has it
                print(line, flush=True)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def summary(self, interrupted: str) -> Row:
        """Return the last row: in words what failed, what was skipped and why, what is left."""
        cases = [row for row in self.rows if "outcome" in row]
        failed = [f"{row['case']} ({row['failed'][0]})" for row in cases if row.get("failed")]
        skipped = Counter(row["skipped"] for row in cases if row["outcome"] == "skipped")
        left = Counter(row["case"].split("/")[0] for row in cases if row["outcome"] == "not run")
        passed = sum(row["outcome"] == "passed" for row in cases)
        words = [f"{len(failed)} of {len(cases)} cases failed: {', '.join(failed)}" if failed else
                 f"{'all' if passed == len(cases) else passed} of {len(cases)} cases passed"]  # fmt: skip
        for title, found in (("skipped", skipped), ("not run for want of time", left)):
            if found:
                reasons = ", ".join(name + (f" ({count})" if count > 1 else "") for name, count in found.items())
                words.append(f"{found.total()} {title}: {reasons}")
        words += [f"cut short: {interrupted}"] if interrupted else []
        passed_all = not failed and not interrupted
        return {"case": "end", "passed": passed_all, "interrupted": bool(interrupted), "summary": "; ".join(words)}


def main(words: Sequence[str] | None = None) -> int:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check", description=__doc__.split("\n")[0])
    parser.add_argument("--part", choices=sorted(parts.PARTS), help="A: is it right, how fast are the main networks (4 "
                        "minutes); B: the rest (5 minutes); default: A, then B")  # fmt: skip
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="folder of the results")
    parser.add_argument("--only", default="", metavar="CASE", help="a row by its name, or those whose names begin so")
    parser.add_argument(
        "--small", action="store_true", help="small networks, few repetitions; an emulated device implies it"
    )
    parser.add_argument("--list", action="store_true", help="show the names of all rows")
    parser.add_argument(
        "--backend", choices=("cupy", "numpy"), default="cupy", help="numpy tries the check without a GPU"
    )
    args = parser.parse_args(words)
    chosen = {name: parts.PARTS[name] for name in ([args.part] if args.part else sorted(parts.PARTS))}
    context = Context(args.backend, args.small)
    if args.list:
        show(chosen, context, args.only)
        return 0
    found = probed(args.backend, parts.PROBE * context.time_scale)
    if found["why"] is not None:
        print(f"gpu-check: no GPU to check: {found['why']}", file=sys.stderr)
        return 2
    context = Context(args.backend, args.small or found["emulated"])
    chosen = {
        name: kept
        for name, stages in chosen.items()
        if (kept := tuple(stage for stage in stages if stage.chosen(context, args.only)))
    }
    if not chosen:
        parser.error(f"--only {args.only}: no row has this name; --list shows them")
    if os.environ.get(VARIABLE):  # processes run in another folder
        os.environ[VARIABLE] = str(Path(os.environ[VARIABLE]).resolve())
    args.out.mkdir(parents=True, exist_ok=True)
    good = True
    for part, stages in chosen.items():
        end = run(part, stages, context, found, args.out, args.only)
        good = good and end["passed"]
        if end["interrupted"]:
            break
    return 0 if good else 1


def show(chosen: dict[str, tuple[Stage, ...]], context: Context, only: str) -> None:
    """Print the names of all rows."""
    for part, stages in chosen.items():
        print(f"part {part}: {parts.PROBE + sum(stage.limit for stage in stages):g} s at most")
        for stage in stages:
            for case in stage.chosen(context, only):
                print(f"  {stage.name}/{case.name}")


def probed(backend: str, limit: float) -> Row:
    """Return what `environment.probe` finds, in a process of its own: this one never touches the device."""
    code = f"import json; from bench.gpu_check.environment import probe; print(json.dumps(probe({backend!r})))"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=limit, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return {"why": f"CuPy did not answer within {limit:g} s"}
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"why": f"CuPy could not be tried: {last[-1]}"}


def run(
    part: str, stages: Sequence[Stage], context: Context, found: Row, folder: Path, only: str, command: Any = ()
) -> Row:
    """Run stages; write their rows into a file of the folder, which is added to if it exists; return the last row."""
    now = datetime.datetime.now(datetime.timezone.utc)
    base = "-".join([f"{now:%Y-%m-%d}", *re.findall(r"\w+", str(found["device"]).lower()), "gpu-check"])
    fields: Row = {"part": part, **({"emulated": True} if found.get("emulated") else {})}
    name, changed = commit()
    interrupted = ""
    path = folder / f"{base}-{part.lower()}.jsonl"
    drop_half_line(path)
    with (
        open(path, "a", encoding="utf-8") as rows,
        open(folder / f"{base}.log", "a", encoding="utf-8") as log,
    ):
        report, room = Report(fields, rows), LOG

        def tell(text: str) -> None:
            nonlocal room
            log.write(text[: max(room, 0)] + "\n")
            log.flush()
            room -= len(text)

        report({
            "case": "start", "date": now.isoformat(timespec="seconds"), "commit": name, "changed": changed,
            "backend": context.backend, "small": context.small, "only": only,
            **{key: value for key, value in found.items() if key not in ("why", "emulated")},
        })  # fmt: skip
        command = command or (sys.executable, "-X", "faulthandler", "-m", "bench.gpu_check.child")
        runner = Runner(command, context, report, tell)
        before = signal.signal(signal.SIGTERM, interrupt)  # which `timeout` sends
        try:
            for stage in stages:
                runner.run(stage, only)
        except KeyboardInterrupt as e:
            interrupted = str(e) or "interrupted"
        finally:
            signal.signal(signal.SIGTERM, before)
        end = report.summary(interrupted)
        report(end)
        with suppress(BrokenPipeError):
            print(f"gpu-check: part {part}: {end['summary']}", flush=True)
    return end


def drop_half_line(path: Path) -> None:
    """Drop the half of a row with which a file may end, if the machine was taken away while it was written."""
    if path.exists():
        with open(path, "rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def interrupt(number: int, frame: object) -> None:
    """Turn a signal into an exception, so that children are ended and the last row is written."""
    raise KeyboardInterrupt(f"by {signal.Signals(number).name}")


if __name__ == "__main__":
    sys.exit(main())
