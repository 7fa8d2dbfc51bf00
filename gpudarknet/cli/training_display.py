"""What a training prints: a live progress bar if standard output and error are a terminal, else Darknet's lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ..evaluate import Accuracy, Report
from ..train import Progress
from .evaluate import lines

QUIET_SECONDS = 10.0  # a validation that is shorter prints only its result
SLOW_SECONDS, SLOW_SHARE = 0.1, 0.1  # a wait for data is printed if it is longer, and a larger part of the iteration


class Display:
    """Prints an iteration as Darknet does, a long validation in quarters, and the result as `detector map` does.

    score: name of the metric; names: of the classes.
    """

    def __init__(self, score: str, names: Sequence[str], print: Callable[[str], None]):
        self.score, self.names, self.print = score, names, print
        self.count, self.begin, self.quarter = 0, 0.0, 0  # of a validation
        self.last: Progress | None = None

    def iteration(self, p: Progress) -> None:
        """Show an iteration. Scripts read its line, by commas; scripts that look for "images" must not find more lines."""
        if self.last and p.waited > max(SLOW_SECONDS, SLOW_SHARE * p.seconds):  # the first batch is always waited for
            self.print(f" Loaded: {p.waited:f} seconds, {p.waited / p.seconds:.0%} of the iteration")
        self.print(
            f" {p.iteration}: {p.loss:f}, {p.average:f} avg loss, {p.rate:f} rate, {p.seconds:f} seconds, {p.images} images,"
            f" {p.left / 3600:f} hours left ({p.batch / p.seconds:.4g} images/s)"
        )
        self.remarks(p)
        self.last = p

    def summary(self) -> None:
        """Print the speed of the whole run and the time that it lost to data."""
        if self.last is not None:
            run = self.last.run
            self.print(
                f"{run.images} images in {run.seconds:.4g} seconds: {run.images / run.seconds:.4g} images/s,"
                f" {run.waited:.3g} seconds ({run.waited / run.seconds:.1%}) of it waiting for data"
            )

    def remarks(self, p: Progress) -> None:
        """Print what is special about an iteration: a skipped step, a measured score."""
        if p.skipped:
            self.print(f" {p.iteration}: a gradient overflowed float16; step skipped, loss scale {p.scale:g}")
        if p.map is not None:
            self.print(f" {p.iteration}: {self.score} = {p.map:f}, best = {p.best:f}")

    def validating(self, count: int, total: int) -> None:
        """Show how many images of a validation are done."""
        now = time.monotonic()
        if count <= self.count or not self.count:
            self.begin, self.quarter = now, 1
        self.count = count
        if now - self.begin > QUIET_SECONDS and 4 * count >= self.quarter * total and count < total:
            left = (now - self.begin) / count * (total - count)
            self.print(f" {count} of {total} images validated, {left / 60:.1f} minutes left")
            self.quarter = 4 * count // total + 1

    def measured(self, result: Report | Accuracy) -> None:
        """Print the result of a validation of a detector."""
        if isinstance(result, Report):
            for line in lines(result, self.names, None):
                self.print(line)


@contextmanager
def display(begin: int, end: int, score: str, names: Sequence[str]) -> Iterator[Display]:
    """Yield the display of iterations `begin` to `end`."""
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        yield Display(score, names, lambda line: print(line, flush=True))
        return
    from rich import progress
    from rich.console import Console
    from rich.table import Column

    fixed = Column(no_wrap=True)  # on a narrow terminal, the bar shrinks
    columns = (
        progress.MofNCompleteColumn(table_column=fixed), progress.TimeRemainingColumn(table_column=fixed),
        progress.TextColumn("{task.description}", table_column=fixed), progress.BarColumn(bar_width=None),
    )  # fmt: skip

    class LiveDisplay(Display):
        """Shows iterations and the images of a validation as bars."""

        def iteration(self, p: Progress) -> None:
            speed = f"{p.batch / p.seconds:.4g} images/s, {p.waiting:.0%} waiting for data"
            text = f"loss {p.loss:.4g} avg {p.average:.4g} rate {p.rate:.3g} {speed}"
            bar.update(training, completed=p.iteration, description=text + (f" best {p.best:.1%}" if p.best else ""))
            bar.update(validation, visible=False)
            self.remarks(p)
            self.last = p

        def validating(self, count: int, total: int) -> None:
            if count <= self.count or not self.count:
                bar.reset(validation, total=total, visible=True)
            self.count = count
            bar.update(validation, completed=count)

    with progress.Progress(*columns, console=Console(highlight=False, stderr=True), expand=True) as bar:
        training = bar.add_task("", total=end, completed=begin)
        validation = bar.add_task("validation", visible=False)
        yield LiveDisplay(score, names, lambda line: bar.console.print(line, markup=False))
