"""The training curve, as a CSV file and a chart: loss, learning rate, and the validation score."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..io.atomic import atomic_write


@dataclass
class History:
    """The curve: rows (iteration, loss, average, rate, map or "")."""

    path: Path
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    COLUMNS = ("iteration", "loss", "average", "rate", "map")

    @classmethod
    def resume(cls, path: Path, iteration: int) -> History:
        """Read the file of an interrupted run, up to an iteration."""
        rows: list[tuple[Any, ...]] = []
        if path.is_file():
            with open(path, newline="", encoding="utf-8") as file:
                rows = [tuple(row) for row in csv.reader(file)][1:]
        complete = [row for row in rows if len(row) == len(cls.COLUMNS) and row[0].isdecimal()]
        return cls(path, [row for row in complete if int(row[0]) <= iteration])

    def write(self, chart: bool, metric: str) -> None:
        """Write the CSV file and, if `chart` and matplotlib is installed, the chart; metric: the name of the score."""
        with atomic_write(self.path) as tmp, open(tmp, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(self.COLUMNS)
            writer.writerows(self.rows)
        if chart:
            draw_chart(self.path.with_suffix(".png"), self.rows, metric)


def draw_chart(path: Path, rows: list[tuple[Any, ...]], metric: str = "mAP") -> None:
    """Draw the loss and the validation score over the iterations; do nothing without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot(xlabel="iteration")
    axes.set_ylabel("average loss", color="tab:blue")
    curve = np.array([[float(row[0]), float(row[2])] for row in rows]).reshape(-1, 2)
    title = path.stem.removeprefix("chart_")
    if len(curve):
        title += f": iteration {curve[-1, 0]:.0f}, average loss {curve[-1, 1]:.4g}"
    axes.plot(curve[:, 0], curve[:, 1], color="tab:blue", linewidth=1)
    if len(curve):
        top = np.percentile(curve[:, 1], 95) * 1.2
        axes.set_ylim(0, top if top > 0 else 1)
    axes.grid(alpha=0.3)
    scores = [(float(row[0]), 100 * float(row[4])) for row in rows if row[4] != ""]
    if scores:
        right = axes.twinx()
        right.set_ylabel(f"{metric}, %", color="tab:red")
        right.set_ylim(0, 100)
        right.plot(*zip(*scores, strict=True), color="tab:red", marker=".")
        title += f", {metric} {scores[-1][1]:.1f} %, best {max(value for _, value in scores):.1f} %"
    axes.set_title(title, fontsize=10)
    with atomic_write(path) as tmp:
        figure.savefig(tmp, dpi=100)
