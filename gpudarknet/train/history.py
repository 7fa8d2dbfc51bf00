"""The training curve, as a CSV file and a chart: loss, learning rate, and the validation score."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import TrainError
from ..io.atomic import atomic_write, check_writable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_POINTS = 2000  # per curve; of more, the chart shows the smallest and the largest of each interval
FORMATS = (".png", ".jpg", ".jpeg", ".pdf", ".svg")
Row = tuple[Any, ...]


@dataclass
class History:
    """The curve: rows (iteration, loss, average, rate, score or ""). chart: the image; the CSV file is next to it.

    end: max_batches; metric: name of the score; max_loss: upper end of the loss axis, 0 for the data's.
    """

    chart: Path
    end: int = 0
    metric: str = "mAP"
    max_loss: float = 0.0
    rows: list[Row] = field(default_factory=list)
    COLUMNS = ("iteration", "loss", "average", "rate", "map")

    @property
    def path(self) -> Path:
        """The CSV file."""
        return self.chart.with_suffix(".csv")

    @property
    def best(self) -> float:
        """The best score, minus infinity if there is none."""
        return float(self.scores[:, 1].max(initial=-np.inf))

    @property
    def scores(self) -> np.ndarray:
        """Rows (iteration, score)."""
        scores = np.array([(float(row[0]), float(row[4])) for row in self.rows if row[4] != ""]).reshape(-1, 2)
        return scores[np.isfinite(scores[:, 1])]

    def read(self, iteration: int) -> None:
        """Read the file of an interrupted run, up to an iteration; other lines than `write` writes are dropped."""
        if self.path.is_file():
            with open(self.path, newline="", encoding="utf-8", errors="replace") as file:
                rows = [tuple(row) for row in csv.reader(line.replace("\0", "") for line in file)]
            self.rows = [row for row in rows if is_row(row) and int(row[0]) <= iteration]

    def average(self, iteration: int) -> float:
        """Return the average loss after an iteration, NaN if the curve does not end there."""
        return float(self.rows[-1][2]) if self.rows and int(self.rows[-1][0]) == iteration else float("nan")

    def set_score(self, iteration: int, score: float | None) -> None:
        """Store the score of the last row, if that is of this iteration."""
        if self.rows and score is not None and int(self.rows[-1][0]) == iteration:
            self.rows[-1] = (*self.rows[-1][:4], score)

    def write(self) -> None:
        """Write the CSV file. Raises TrainError."""
        with atomic_write(self.path, TrainError) as tmp, open(tmp, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(self.COLUMNS)
            writer.writerows(self.rows)

    @property
    def drawable(self) -> bool:
        """Whether matplotlib is installed."""
        return find_spec("matplotlib") is not None

    def draw(self) -> None:
        """Write the chart, if matplotlib is installed. Raises TrainError."""
        if self.drawable:
            with atomic_write(self.chart, TrainError) as tmp:
                self.figure().savefig(tmp, dpi=100)

    def figure(self) -> Figure:
        """Draw the losses, on a log scale, and the score, of 0 to 100 % if it is a part of 1, over the iterations."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, MaxNLocator

        table = np.array([[float(value) for value in row[:3]] for row in self.rows]).reshape(-1, 3)
        iterations, losses, averages = table.T
        figure = Figure(figsize=(10, 6), layout="constrained")
        axes = figure.add_subplot(xlabel="iteration")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
        axes.set_ylabel("loss", color="tab:blue")
        axes.tick_params(axis="y", which="both", labelcolor="tab:blue")
        bottom, top = loss_limits(losses, averages, self.max_loss)
        axes.set_ylim(bottom, top)
        axes.set_yscale("log", nonpositive="mask")
        marker = "." if len(table) < 50 else ""
        x, y = thinned(iterations, losses)
        axes.plot(x, y, color="tab:blue", alpha=0.3, linewidth=0.8, marker=marker, label="loss of an iteration")
        x, y = thinned(iterations, averages)
        axes.plot(x, y, color="tab:blue", linewidth=1.8, marker=marker, label="average loss")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if top < 1000 * bottom else (1,), numticks=20))
        axes.yaxis.set_major_formatter(lambda loss, position: f"{loss:g}")
        axes.yaxis.set_minor_formatter("")
        first, last = (iterations[0], iterations[-1]) if len(table) else (0, 0)
        axes.set_xlim((first, last) if first < last else (first - 1, first + 1))
        if not ((losses >= bottom) & (losses <= top)).any():
            axes.text(0.5, 0.5, "no loss in this range", transform=axes.transAxes, ha="center", color="gray")
        axes.grid(which="both", alpha=0.25)
        scores, percent = self.scores, self.is_percentage
        handles = axes.get_lines()
        if len(scores):
            right = axes.twinx()
            right.set_ylabel(f"{self.metric}, %" if percent else self.metric, color="tab:red")
            right.tick_params(axis="y", labelcolor="tab:red")
            if percent:
                right.set_ylim(0, 100)
                right.set_yticks(range(0, 101, 10))
            points = scores * (1, 100 if percent else 1)
            handles += right.plot(
                *points.T, color="tab:red", marker="o", markersize=4, label=self.metric, clip_on=False
            )
        axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=3, frameon=False)
        axes.set_title(self.title(), fontsize=11)
        return figure

    @property
    def is_percentage(self) -> bool:
        """Whether all scores are between 0 and 1, and shown as 0 to 100 %."""
        scores = self.scores[:, 1]
        return bool(((scores >= 0) & (scores <= 1)).all())

    def title(self) -> str:
        """Return the state of the training in one line."""
        text = self.chart.stem.removeprefix("chart_")
        if self.rows:
            end = f" of {self.end}" if self.end else ""
            text += f": iteration {self.rows[-1][0]}{end}, average loss {float(self.rows[-1][2]):.4g}"
        scores = self.scores
        if len(scores):
            at, best = scores[scores[:, 1].argmax()]
            last, best = (f"{100 * v:.1f} %" if self.is_percentage else f"{v:.4g}" for v in (scores[-1, 1], best))
            text += f", {self.metric} {last}, best {best} at {at:.0f}"
        return text


def writable(chart: str | Path) -> Path:
    """Return the path of a chart, .png by default.

    Raises TrainError if it, or the CSV file next to it, cannot be written there, or would replace a table of something else.
    """
    path = Path(chart).expanduser()
    path = path if path.suffix else path.with_suffix(".png")
    if path.suffix.lower() not in FORMATS:
        raise TrainError(f"{chart}: a chart cannot be written as {path.suffix}; use {', '.join(FORMATS)}")
    table = path.with_suffix(".csv")
    for file in (path, table):
        check_writable(file, TrainError)
    if table.is_file():
        with open(table, encoding="utf-8", errors="replace") as opened:
            head = opened.readline().strip()
        if head != ",".join(History.COLUMNS):
            raise TrainError(
                f"{table}: is not a training curve, which would replace it; choose another name for the chart"
            )
    return path


def is_row(row: Sequence[str]) -> bool:
    """Return whether a line of a CSV file is a row of the curve."""
    try:
        return (
            len(row) == len(History.COLUMNS) and row[0].isdecimal() and bool([float(value or 0) for value in row[1:]])
        )
    except ValueError:
        return False


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return at most MAX_POINTS points of a curve: of each interval the smallest and the largest, in order."""
    if len(x) <= MAX_POINTS:
        return x, y
    kept = []
    for part in np.array_split(np.arange(len(x)), MAX_POINTS // 2):
        values = np.where(np.isfinite(y[part]), y[part], np.inf)
        kept += sorted({int(part[values.argmin()]), int(part[np.where(values < np.inf, values, -np.inf).argmax()])})
    return x[kept], y[kept]


def loss_limits(losses: np.ndarray, averages: np.ndarray, max_loss: float) -> tuple[float, float]:
    """Return the limits of the loss axis: of the averages and the middle 98 % of the losses, up to max_loss if that is set."""
    positive, averages = (a[np.isfinite(a) & (a > 0)] for a in (losses, averages))
    low, high = np.percentile(positive, (1, 99)) if len(positive) > 100 else (0.0, np.inf)
    shown = np.concatenate([positive[(positive >= low) & (positive <= high)], averages])
    if not len(shown):
        return 0.01, max_loss if max_loss > 0.01 else 1.0
    bottom, top = shown.min() / 1.3, shown.max() * 1.3
    if max_loss > 0:
        return float(min(bottom, max_loss / 10)), max_loss
    middle = (bottom * top) ** 0.5
    return float(min(bottom, middle / 2)), float(max(top, middle * 2))
