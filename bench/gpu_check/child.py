"""Run a stage's cases in this process and report each. The runner starts this for every stage.

    python -m bench.gpu_check.child --stage kernels --rows 7 --limit 30

Reports are JSON lines on the file descriptor --rows: first {"cases": [names]}, {"begin": name, "limit": seconds} before each
case, its row after it, and {"done": true} at the end. After an error that leaves the device unusable the process ends, and the
runner starts another one for the remaining cases.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import json
import math
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from .case import Case, Context, Row, Skipped, Stage

BUDGET = 0.8  # fraction of a measuring stage's time after which no new case is started
TAIL = 6000  # characters kept of a traceback and of a process's output


def main(stages: Sequence[Stage], argv: Sequence[str] | None = None) -> None:
    """Run the stage named in argv."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--stage", required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--limit", type=float, required=True)
    parser.add_argument("--backend", default="cupy")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--after", default="", help="the last case that has a row")
    args = parser.parse_args(argv)
    start = time.monotonic()
    end_with_parent()
    os.set_inheritable(args.rows, False)  # processes that a case starts must not keep it open
    stage = next(stage for stage in stages if stage.name == args.stage)
    with os.fdopen(args.rows, "w", encoding="utf-8") as rows:

        def report(row: Row) -> None:
            rows.write(json.dumps(plain(row), allow_nan=False) + "\n")
            rows.flush()

        run(stage, Context(args.backend, args.small), report, start, args.limit, args.only, args.after)


def run(
    stage: Stage,
    context: Context,
    report: Callable[[Row], None],
    start: float,
    limit: float,
    only: str = "",
    after: str = "",
) -> None:
    """Run the cases after `after`, until the device is unusable or `limit` seconds since `start` are over."""
    cases = {f"{stage.name}/{case.name}": case for case in stage.selected(context, only)}
    names = list(cases)
    names = names[names.index(after) + 1 :] if after else names
    report({"cases": names})
    case_limit = stage.limit / 2 if len(cases) > 1 else stage.limit  # a hanging case leaves time for others
    for name in names:
        left = limit - (time.monotonic() - start)
        scale, own = context.time_scale, cases[name].limit
        needed = (1 - BUDGET) * stage.limit if own is None else min(own, (1 - BUDGET) * stage.limit)
        if not stage.checks and left < needed * scale and name != names[0]:
            report({"case": name, "outcome": "not run", "why": "out of time"})
            continue
        seconds = max(0.1, min(left, (own or case_limit) * scale))
        report({"begin": name, "limit": seconds})
        faulthandler.dump_traceback_later(max(0.6 * seconds, seconds - 2), file=2)
        row = run_case(name, cases[name], context)
        faulthandler.cancel_dump_traceback_later()
        report(row)
        if "unusable" in row:
            return
        if not stage.checks:  # leave the memory to the next case's batch of 64
            with suppress(Exception):
                context.release()
    report({"done": True})


def run_case(name: str, case: Case, context: Context) -> Row:
    """Run a case, wait for the device and return its row, which records any error."""
    begin = time.perf_counter()
    error: BaseException | None = None
    row: Row = {"case": name, "outcome": "passed"}
    try:
        fields = case.run()
        context.wait()
        row |= fields
        if fields.get("failed"):
            row["outcome"] = "failed"
    except Skipped as e:
        row |= {"outcome": "skipped", "skipped": str(e)}
        if e.__cause__ is not None:
            error, row["traceback"] = e.__cause__, traceback.format_exc()[-TAIL:]
    except Exception as e:
        error, last = e, (str(e).strip().splitlines() or [""])[0]
        row |= {
            "outcome": "failed",
            "failed": [f"{type(e).__name__}: {last}"],
            "traceback": traceback.format_exc()[-TAIL:],
        }
    row["seconds"] = round(time.perf_counter() - begin, 3)
    if (row["outcome"] == "failed" or error is not None) and (why := context.unusable(error)):
        row["unusable"] = why
    return row


def plain(value: Any) -> Any:
    """Convert a value to what JSON can hold: NumPy scalars to Python's, non-finite numbers to text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def end_with_parent() -> None:
    """Have the system kill this process when the runner dies, so that none stays on the device."""
    with suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    from .checks import STAGES

    main(STAGES)
