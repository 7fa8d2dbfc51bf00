"""Run the stages of a check one after the other, each in a process of its own under a time limit.

The result file is written anew after every stage, so that a crash, a hang or a machine that is taken away loses one stage
and not the rest. A stage prints its result as JSON on the last line of stdout.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpudarknet.files import atomic

ROOT = Path(__file__).resolve().parent.parent
Result = dict[str, Any]


class Skipped(Exception):
    """What the stage needs is not on this machine; the message says what."""


@dataclass(frozen=True)
class Stage:
    """A part of a check: run(backend name) returns what it measured; "failed": [...] in it says what is wrong.

    limit: seconds it may take, starting Python and compiling kernels included. env: variables it runs under.
    """

    name: str
    run: Callable[[str], Result]
    limit: float
    env: dict[str, str] = field(default_factory=dict)


def run_all(module: str, stages: Sequence[Stage], backend: str, head: Result, path: Path) -> bool:
    """Run `python -m module STAGE BACKEND` for every stage; print and write how each went; return whether all passed."""
    result: Result = {**head, "passed": None, "stages": {}}
    for stage in stages:
        result["stages"][stage.name] = one = run_one(module, stage, backend)
        write(path, result)
        print(f"{stage.name:<12} {one['outcome']:<8} {one['seconds']:6.1f} s   {one.get('why', '')}", flush=True)
    result["passed"] = all(one["outcome"] in ("passed", "skipped") for one in result["stages"].values())
    write(path, result)
    return bool(result["passed"])


def run_one(module: str, stage: Stage, backend: str) -> Result:
    """Run one stage; return its outcome (passed, failed, skipped, timed out), how long it took, and its result."""
    command = [sys.executable, "-m", module, stage.name, backend]
    start = time.monotonic()
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | stage.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a tool that the stage started ends with it
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=stage.limit)
            one = read(stdout) if process.returncode == 0 else {"outcome": "failed", "why": last_line(stderr)}
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            one = {"outcome": "timed out", "why": f"it did not end in {stage.limit:g} s"}
    return {"limit": stage.limit, "seconds": round(time.monotonic() - start, 2), **one}


def read(stdout: str) -> Result:
    """Return the outcome that a stage printed."""
    try:
        return json.loads(last_line(stdout))
    except ValueError:
        return {"outcome": "failed", "why": "it printed no result"}


def run_here(stage: Stage, backend: str) -> None:
    """Run a stage in this process and print its outcome: what `python -m module STAGE BACKEND` does."""
    try:
        result = stage.run(backend)
    except Skipped as e:
        outcome: Result = {"outcome": "skipped", "why": str(e)}
    else:
        failed = result.get("failed", [])
        outcome = {"outcome": "failed" if failed else "passed", "result": result}
        if failed:
            outcome["why"] = f"{len(failed)} failed, first: {failed[0]}"
    print(json.dumps(outcome))


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1][:300]


def write(path: Path, result: Result) -> None:
    """Write the result file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as beside:
        beside.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
