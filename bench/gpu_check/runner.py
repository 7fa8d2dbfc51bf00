"""Run stages one after the other, each in separate processes, and emit a row for every case whatever happens.

If a process dies, is killed at its limit or finds the device unusable, only its current case is lost; another process continues
with the next case. Processes print to files, so that their output survives when they are killed.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .case import Context, Row, Stage
from .child import TAIL

ROOT = Path(__file__).resolve().parent.parent.parent
MIN_REMAINING = 2.0  # seconds that must remain to start another process
GRACE = 10.0  # seconds for a process to exit when its cases are done

Emit = Callable[[Row], None]


@dataclass
class Child:
    """A process that runs a stage's cases, and its reports so far."""

    process: subprocess.Popen[bytes]
    rows: int
    output: Any
    errors: Any
    left: list[str] | None = None  # cases without a row; None before the first report
    current: str = ""  # the running case
    last: str = ""  # the last case with a row
    deadline: float = 0.0  # deadline of the current case
    done: bool = False
    unusable: bool = False  # whether the device is unusable in this process
    timed_out: bool = False  # whether it or its case timed out
    buffer: bytes = b""

    @classmethod
    def start(cls, command: Sequence[str], env: dict[str, str]) -> Child:
        """Start a command; its last argument is the descriptor for its reports."""
        rows, writing = os.pipe()
        output, errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        process = subprocess.Popen(
            [*command, "--rows", str(writing)],
            cwd=ROOT,
            env=env,
            stdout=output,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            pass_fds=(writing,),
            start_new_session=True,  # so that tools started by the stage are killed with it
        )
        os.close(writing)
        return cls(process, rows, output, errors)

    def reports(self, deadline: float) -> Iterator[Row]:
        """Yield its reports until it ends or times out."""
        while True:
            soonest = min(deadline, self.deadline) if self.current else deadline
            if not select.select([self.rows], [], [], max(0.0, soonest - time.monotonic()))[0]:
                self.timed_out = True
                return
            data = os.read(self.rows, 1 << 16)
            if not data:
                return
            *lines, self.buffer = (self.buffer + data).split(b"\n")
            yield from map(json.loads, lines)

    def handle(self, report: Row) -> Row | None:
        """Process a report; return it if it is a row."""
        if "case" in report:
            self.current, self.last, self.unusable = "", report["case"], "unusable" in report
            if self.left and self.last in self.left:
                self.left.remove(self.last)
            return report
        if "cases" in report:
            self.left = report["cases"]
        elif "begin" in report:
            self.current, self.deadline = report["begin"], time.monotonic() + report["limit"]
        else:
            self.done = True
        return None

    def kill(self) -> None:
        """Kill it and the processes that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        """Close its files."""
        os.close(self.rows)
        self.output.close()
        self.errors.close()

    def tails(self) -> Row:
        """Return the end of its output."""
        return {"stdout": tail(self.output), "stderr": tail(self.errors)}


def tail(file: Any) -> str:
    """Return the last TAIL characters of a file."""
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - 4 * TAIL))
    return file.read().decode("utf-8", "replace")[-TAIL:]


@dataclass
class Runner:
    """Runs stages. command: starts a child, without its arguments; emit: receives every row; log: receives printed output."""

    command: Sequence[str]
    context: Context
    emit: Emit
    log: Callable[[str], None] = field(default=lambda text: None)

    def run(self, stage: Stage, only: str = "") -> None:
        """Run a stage in as many processes as needed and time allows."""
        deadline = time.monotonic() + stage.limit * self.context.time_scale
        after: str | None = ""
        while after is not None:
            after = self.run_process(stage, only, deadline, after)

    def run_process(self, stage: Stage, only: str, deadline: float, after: str) -> str | None:
        """Run the cases after `after` in a process; return the last case with a row if others remain, else None."""
        begin = time.monotonic()
        arguments = ["--stage", stage.name, "--limit", f"{deadline - begin:.1f}", "--backend", self.context.backend]
        arguments += ["--small"] * self.context.small + ["--only", only] * bool(only) + ["--after", after] * bool(after)
        child = Child.start([*self.command, *arguments], os.environ | dict(stage.env))
        try:
            return self.relay(child, stage.name, deadline)
        finally:
            child.kill()
            printed = child.tails()
            self.log(f"=== {stage.name} after {after or 'start'}: exit code {child.process.returncode}, "
                      f"{time.monotonic() - begin:.1f} s\n{printed['stdout']}{printed['stderr']}")  # fmt: skip
            child.close()

    def relay(self, child: Child, stage: str, deadline: float) -> str | None:
        """Emit a child's rows, and a row for what ended it unless it ended normally."""
        for report in child.reports(deadline):
            row = child.handle(report)
            if row is not None:
                self.emit(row)
            if child.done or child.unusable:
                break
        name, problem = child.current or f"{stage}/process", ("", "")
        if child.timed_out:
            whose = "case" if time.monotonic() < deadline else "stage"
            problem = "timed out", f"the {whose}'s time limit was reached"
        elif child.unusable:
            pass  # its row says so; it may hang on exit
        elif not wait(child.process, max(1.0, min(GRACE, deadline - time.monotonic()))):
            problem = "timed out", "the process did not exit after its last case"
        elif child.process.returncode or not child.done:
            problem = "died", f"the process ended {describe_exit(child.process.returncode)}"
        child.kill()
        if problem[0]:
            self.emit({"case": name, "outcome": problem[0], "failed": [problem[1]], **child.tails()})
        if child.current and child.left:
            child.left.remove(child.current)
        last = child.current or child.last
        if child.done or not child.left:
            return None
        if not last or deadline - time.monotonic() < MIN_REMAINING:
            for name in child.left:
                self.emit({"case": name, "outcome": "not run", "why": "the stage's time limit was reached"})
            return None
        return last


def wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for a process to end; return whether it did."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def describe_exit(code: int) -> str:
    """Describe an exit code."""
    if code >= 0:
        return f"with exit code {code}"
    return f"by {signal.Signals(-code).name}"
