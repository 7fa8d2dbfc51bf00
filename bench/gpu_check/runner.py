"""Run stages one after the other, each in processes of its own, and keep a row of every case, whatever becomes of them.

A process that ends before its cases do, is killed at its limit or finds the device unusable costs the case at which it was;
the next process goes on behind it. What processes print goes to files, so that it is there after they are killed.
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
LEAST = 2.0  # seconds that must be left to start another process
GRACE = 10.0  # seconds in which a process whose cases are done has to end

Emit = Callable[[Row], None]


@dataclass
class Child:
    """A process that runs a stage's cases, and what it has reported."""

    process: subprocess.Popen[bytes]
    rows: int
    output: Any
    errors: Any
    left: list[str] | None = None  # cases without a row; None before it said what they are
    current: str = ""  # the case at which it is
    last: str = ""  # the last case that has a row
    until: float = 0.0  # when the current case's time is over
    done: bool = False
    unusable: bool = False  # whether it can do no more
    late: bool = False  # whether its time, or its case's, was over before it ended
    buffer: bytes = b""

    @classmethod
    def start(cls, command: Sequence[str], env: dict[str, str]) -> Child:
        """Start a command; the descriptor on which it is to report is its last argument."""
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
            start_new_session=True,  # a tool that the stage started ends with it
        )
        os.close(writing)
        return cls(process, rows, output, errors)

    def reports(self, until: float) -> Iterator[Row]:
        """Yield what it reports, until it ends or its time is over."""
        while True:
            soonest = min(until, self.until) if self.current else until
            if not select.select([self.rows], [], [], max(0.0, soonest - time.monotonic()))[0]:
                self.late = True
                return
            found = os.read(self.rows, 1 << 16)
            if not found:
                return
            *lines, self.buffer = (self.buffer + found).split(b"\n")
            yield from map(json.loads, lines)

    def note(self, report: Row) -> Row | None:
        """Remember a report; return it if it is a row."""
        if "case" in report:
            self.current, self.last, self.unusable = "", report["case"], "unusable" in report
            if self.left and self.last in self.left:
                self.left.remove(self.last)
            return report
        if "cases" in report:
            self.left = report["cases"]
        elif "begin" in report:
            self.current, self.until = report["begin"], time.monotonic() + report["limit"]
        else:
            self.done = True
        return None

    def kill(self) -> None:
        """End it and what it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        """Let go of its files."""
        os.close(self.rows)
        self.output.close()
        self.errors.close()

    def tails(self) -> Row:
        """Return the end of what it has printed."""
        return {"stdout": tail(self.output), "stderr": tail(self.errors)}


def tail(file: Any) -> str:
    """Return the last characters of a file."""
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - 4 * TAIL))
    return file.read().decode("utf-8", "replace")[-TAIL:]


@dataclass
class Runner:
    """Runs stages. command: what starts a child, without its arguments; emit is given every row, tell what was printed."""

    command: Sequence[str]
    context: Context
    emit: Emit
    tell: Callable[[str], None] = field(default=lambda text: None)

    def run(self, stage: Stage, only: str = "") -> None:
        """Run a stage, in as many processes as it takes and time allows."""
        until = time.monotonic() + stage.limit * self.context.time_scale
        after: str | None = ""
        while after is not None:
            after = self.one(stage, only, until, after)

    def one(self, stage: Stage, only: str, until: float, after: str) -> str | None:
        """Run the cases behind one in a process; return the last that has a row if others are left, else None."""
        begin = time.monotonic()
        words = ["--stage", stage.name, "--limit", f"{until - begin:.1f}", "--backend", self.context.backend]
        words += ["--small"] * self.context.small + ["--only", only] * bool(only) + ["--after", after] * bool(after)
        child = Child.start([*self.command, *words], os.environ | dict(stage.env))
        try:
            return self.follow(child, stage.name, until)
        finally:
            child.kill()
            printed = child.tails()
            self.tell(f"=== {stage.name} behind {after or 'nothing'}: exit code {child.process.returncode}, "
                      f"{time.monotonic() - begin:.1f} s\n{printed['stdout']}{printed['stderr']}")  # fmt: skip
            child.close()

    def follow(self, child: Child, stage: str, until: float) -> str | None:
        """Give on the rows of a child, and one for what has ended it, if it did not end by itself."""
        for report in child.reports(until):
            row = child.note(report)
            if row is not None:
                self.emit(row)
            if child.done or child.unusable:
                break
        name, problem = child.current or f"{stage}/process", ("", "")
        if child.late:
            whose = "case" if time.monotonic() < until else "stage"
            problem = "timed out", f"the time of the {whose} was over"
        elif child.unusable:
            pass  # its row has said so; it may hang at its end
        elif not wait(child.process, max(1.0, min(GRACE, until - time.monotonic()))):
            problem = "timed out", "the process did not end when its cases were done"
        elif child.process.returncode or not child.done:
            problem = "died", f"the process ended {how(child.process.returncode)}"
        child.kill()
        if problem[0]:
            self.emit({"case": name, "outcome": problem[0], "failed": [problem[1]], **child.tails()})
        if child.current and child.left:
            child.left.remove(child.current)
        last = child.current or child.last
        if child.done or not child.left:
            return None
        if not last or until - time.monotonic() < LEAST:
            for name in child.left:
                self.emit({"case": name, "outcome": "not run", "why": "its stage's time was over"})
            return None
        return last


def wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for a process to end; say whether it did."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def how(code: int) -> str:
    """Say how a process ended."""
    if code >= 0:
        return f"with exit code {code}"
    return f"by {signal.Signals(-code).name}"
